"""A reward for length alone: for tests, and to see what a method does to length when nothing else pays."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError


class LengthReward:
    """1 at the target, falling in a straight line to 0 at ``tolerance_tokens`` away from it, and on below.

    Args:
        target_tokens: Completion tokens at which the reward is highest, the end of sequence included.
        tolerance_tokens: How far from the target the reward reaches 0.
    """

    def __init__(self, *, target_tokens: int, tolerance_tokens: int) -> None:
        if tolerance_tokens < 1:
            raise ConfigError("reward.tolerance_tokens", got=tolerance_tokens, expected="at least 1")
        self.target_tokens = target_tokens
        self.tolerance_tokens = tolerance_tokens

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Scores each completion by its number of tokens."""
        lengths = tuple(float(len(rollout.completion_ids)) for rollout in rollouts)
        total = tuple(1.0 - abs(length - self.target_tokens) / self.tolerance_tokens for length in lengths)
        return Rewards(total=total, components={"completion_tokens": lengths})
