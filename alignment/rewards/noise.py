"""A reward that knows nothing: the control beside which a method's gain is read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError


class NoiseReward:
    """1 or 0 by the fall of a coin, whatever was written.

    What improves under it has not been learnt from a reward: some models gain on mathematics from coin flips (Shao et
    al. 2025, arXiv 2506.10947). A coin belongs to the roll-outs' seed, the prompt and the number of the sample, so
    that runs repeat.

    Args:
        share: Probability of a 1.
        seed: Of the coins.

    Raises:
        ConfigError: ``share`` is not between 0 and 1.
    """

    def __init__(self, *, share: float, seed: int) -> None:
        if not 0 < share < 1:
            raise ConfigError("reward.share", got=share, expected="above 0 and below 1")
        self.share, self.seed = share, seed

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Throws a coin for each completion."""
        return Rewards(total=tuple(float(self._coin(rollout) < self.share) for rollout in rollouts), components={})

    def _coin(self, rollout: Rollout) -> float:
        name = f"{self.seed}/{rollout.seed}/{rollout.prompt_id}/{rollout.sample}".encode()
        return int.from_bytes(hashlib.sha256(name).digest()[:6]) / 2**48
