"""A penalty for saying the same again."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError


class RepetitionPenalty:
    """Minus the share of a completion's n-grams of tokens that occurred in it before, in (-1, 0].

    With t n-grams of which d are different it is d / t - 1. A completion of fewer than n tokens has no n-gram, and
    scores 0.

    Args:
        n: Tokens of an n-gram.
    """

    def __init__(self, *, n: int) -> None:
        if n < 1:
            raise ConfigError("reward.n", got=n, expected="at least 1")
        self.n = n

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Penalises each completion."""
        return Rewards(
            total=tuple(0.0 - repeated_share(rollout.completion_ids, n=self.n) for rollout in rollouts), components={}
        )


def repeated_share(items: Sequence[int], *, n: int) -> float:
    """Returns the share of n-grams that occurred before in the sequence.

    >>> repeated_share([1, 2, 1, 2, 1], n=2)  # (1, 2), (2, 1), (1, 2), (2, 1)
    0.5
    >>> repeated_share([1, 2], n=3)
    0.0
    """
    grams = [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0
