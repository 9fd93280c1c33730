"""RLOO, Ahmadian et al. 2024, arXiv 2402.14740."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import Tensor

from alignment.advantages.rloo import leave_one_out
from alignment.methods.base import Parts
from alignment.methods.kl import KLPenalty
from alignment.methods.policy_gradient import Normaliser, PolicyGradientMethod, Ratio
from alignment.methods.rollout_plan import RolloutPlan
from alignment.rewards.shaping import Shaping
from alignment.rollout.experience import Experience


class RLOO(PolicyGradientMethod):
    """REINFORCE leave-one-out: the baseline of a completion is the mean reward of the others of its prompt.

    The penalty is part of the reward before the baseline is taken off.

    Args:
        baseline: ``leave_one_out``, or ``none``: the reward as it is, which is REINFORCE (Williams 1992).
        policy_loss: As in :class:`~alignment.methods.policy_gradient.PolicyGradientMethod`.
        ratio: The same; ``sequence`` in the paper.
        normaliser: The same.
        rollouts: As in :class:`~alignment.methods.online.OnlineMethod`.
        kl: The same.
        shaping: The same.
        parts: The same.
    """

    def __init__(
        self,
        *,
        baseline: Literal["leave_one_out", "none"],
        policy_loss: Callable[..., Tensor],
        ratio: Ratio,
        normaliser: Normaliser,
        rollouts: RolloutPlan,
        kl: KLPenalty | None,
        shaping: Shaping,
        parts: Parts,
    ) -> None:
        if baseline == "leave_one_out":
            rollouts.check(least_group_size=2, has_critic=False)
        super().__init__(
            policy_loss=policy_loss,
            ratio=ratio,
            normaliser=normaliser,
            rollouts=rollouts,
            kl=kl,
            shaping=shaping,
            parts=parts,
        )
        self.baseline = baseline

    def advantages(self, experience: Experience) -> Experience:
        """Gives each token of a completion the completion's advantage, equation 8 of the paper."""
        advantages = experience.rewards - experience.sums(self.penalty(experience))
        if self.baseline == "leave_one_out":
            advantages = leave_one_out(rewards=experience.grouped(advantages)).flatten()
        return replace(experience, advantages=experience.per_token(advantages))
