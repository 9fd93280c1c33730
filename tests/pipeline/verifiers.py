"""Rewards for the tests of ``align label``."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.types import Rewards, Rollout


class CountsLetters:
    """Right is an answer whose number of characters leaves the rest that its record names, divided by two."""

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        total = tuple(float(len(rollout.completion) % 2 == rollout.answer["rest"]) for rollout in rollouts)
        return Rewards(total=total, components={})


class AgreesWithAll:
    """Every answer is right."""

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        return Rewards(total=(1.0,) * len(rollouts), components={})
