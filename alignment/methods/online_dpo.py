"""Online DPO, Guo et al. 2024, arXiv 2402.04792: DPO on pairs that the policy has just written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from torch import Tensor

from alignment.methods.base import Parts
from alignment.methods.dpo import DPO
from alignment.methods.online_pairs import OnlinePairs, Pairing
from alignment.methods.pairwise import Mixture
from alignment.methods.rollout_plan import RolloutPlan
from alignment.rewards.shaping import Shaping


class OnlineDPO(OnlinePairs, DPO):
    """Direct preference optimisation on fresh completions, ranked by a reward.

    Args:
        pairing: ``best_worst`` makes one pair a prompt, ``all`` one of every two completions.
        min_margin: Least difference of a pair's rewards.
        beta: As in :class:`~alignment.methods.dpo.DPO`.
        loss: The same.
        divergence: The same.
        length_normalised: The same.
        nll_coefficient: The same.
        nll_normaliser: The same.
        weighting: The same.
        rollouts: As in :class:`~alignment.methods.online.OnlineMethod`.
        shaping: The same.
        parts: From the run.
    """

    def __init__(
        self,
        *,
        pairing: Pairing,
        min_margin: Annotated[float, "[0, inf)"],
        beta: Annotated[float, "(0, inf)"],
        loss: Callable[..., Tensor] | Mixture,
        divergence: Callable[..., Tensor],
        length_normalised: bool,
        nll_coefficient: Annotated[float, "[0, inf)"],
        nll_normaliser: Literal["sequence", "token"],
        weighting: Literal["none", "wpo"],
        rollouts: RolloutPlan,
        shaping: Shaping,
        parts: Parts,
    ) -> None:
        DPO.__init__(
            self,
            beta=beta,
            loss=loss,
            divergence=divergence,
            length_normalised=length_normalised,
            nll_coefficient=nll_coefficient,
            nll_normaliser=nll_normaliser,
            weighting=weighting,
            parts=parts,
        )
        self.set_up(rollouts=rollouts, kl=None, shaping=shaping, parts=parts)
        self.pairing, self.min_margin = pairing, min_margin
