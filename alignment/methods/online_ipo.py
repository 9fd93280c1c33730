"""Online IPO, Calandriello et al. 2024, arXiv 2403.08635: IPO on pairs that the policy has just written."""

from __future__ import annotations

from typing import Annotated, Literal

from alignment.methods.base import Parts
from alignment.methods.ipo import IPO
from alignment.methods.online_pairs import OnlinePairs, Pairing
from alignment.methods.rollout_plan import RolloutPlan
from alignment.rewards.shaping import Shaping


class OnlineIPO(OnlinePairs, IPO):
    """Identity preference optimisation on fresh completions, ranked by a reward.

    Args:
        pairing: ``best_worst`` makes one pair a prompt, ``all`` one of every two completions.
        min_margin: Least difference of a pair's rewards.
        tau: As in :class:`~alignment.methods.ipo.IPO`.
        reduction: The same.
        rollouts: As in :class:`~alignment.methods.online.OnlineMethod`.
        shaping: The same.
        parts: From the run.
    """

    def __init__(
        self,
        *,
        pairing: Pairing,
        min_margin: Annotated[float, "[0, inf)"],
        tau: Annotated[float, "(0, inf)"],
        reduction: Literal["mean", "sum"],
        rollouts: RolloutPlan,
        shaping: Shaping,
        parts: Parts,
    ) -> None:
        IPO.__init__(self, tau=tau, reduction=reduction, parts=parts)
        self.set_up(rollouts=rollouts, kl=None, shaping=shaping, parts=parts)
        self.pairing, self.min_margin = pairing, min_margin
