"""What a reward is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from alignment.types import Rewards, Rollout


class Reward(Protocol):
    """Judges completions. Higher is better."""

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Returns a total for each roll-out, in their order, and the components it was made from."""
        ...
