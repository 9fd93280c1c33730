"""A reward for a completion of a given form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from alignment.rewards.reading import compiled
from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError


class RegexReward:
    """1 where a regular expression matches the completion, else 0.

    Python's ``re`` has no limit of its own: a pattern that can match one text in many ways, such as ``(a+)+$``, may
    take time exponential in the text's length, and polynomial time is usual. ``max_characters`` bounds the length,
    which tames the latter and not the former: write patterns without repetition inside repetition.

    Components: ``too_long``, 1 where a completion was not looked at.

    Args:
        pattern: The regular expression; flags stand in it, such as ``(?s)`` for dots that match line ends.
        match: ``fullmatch`` wants the whole completion to match, ``search`` some part of it.
        max_characters: A longer completion scores 0.
    """

    def __init__(self, *, pattern: str, match: Literal["search", "fullmatch"], max_characters: int) -> None:
        expression = compiled(pattern, key="reward.pattern")
        if max_characters < 1:
            raise ConfigError("reward.max_characters", got=max_characters, expected="at least 1")
        self._matches = expression.fullmatch if match == "fullmatch" else expression.search
        self.max_characters = max_characters

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Matches each completion."""
        too_long = tuple(float(len(rollout.completion) > self.max_characters) for rollout in rollouts)
        total = tuple(
            0.0 if skipped else float(self._matches(rollout.completion) is not None)
            for rollout, skipped in zip(rollouts, too_long, strict=True)
        )
        return Rewards(total=total, components={"too_long": too_long})
