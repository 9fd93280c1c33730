"""GRPO, Shao et al. 2024, arXiv 2402.03300, and its presets: Dr. GRPO, DAPO, GSPO, CISPO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import Tensor

from alignment.advantages.grpo import group_advantages
from alignment.methods.base import Parts
from alignment.methods.kl import KLPenalty
from alignment.methods.policy_gradient import Normaliser, PolicyGradientMethod, Ratio
from alignment.methods.rollout_plan import RolloutPlan
from alignment.rewards.shaping import Shaping
from alignment.rollout.experience import Experience


class GRPO(PolicyGradientMethod):
    """Group relative policy optimisation: a completion is worth what it is above the others of its prompt.

    Args:
        scale: What the distance to the group's mean is divided by: the std of the ``group``, of the ``batch``, or
            ``none`` (Dr. GRPO).
        policy_loss: As in :class:`~alignment.methods.policy_gradient.PolicyGradientMethod`.
        ratio: The same.
        normaliser: The same.
        rollouts: As in :class:`~alignment.methods.online.OnlineMethod`.
        kl: The same.
        shaping: The same.
        parts: The same.
    """

    least_group_size = 2

    def __init__(
        self,
        *,
        scale: Literal["group", "batch", "none"],
        policy_loss: Callable[..., Tensor],
        ratio: Ratio,
        normaliser: Normaliser,
        rollouts: RolloutPlan,
        kl: KLPenalty | None,
        shaping: Shaping,
        parts: Parts,
    ) -> None:
        super().__init__(
            policy_loss=policy_loss,
            ratio=ratio,
            normaliser=normaliser,
            rollouts=rollouts,
            kl=kl,
            shaping=shaping,
            parts=parts,
        )
        self.scale: Literal["group", "batch", "none"] = scale

    def advantages(self, experience: Experience) -> Experience:
        """Gives each token of a completion the completion's advantage, section 4.1.2 of the paper."""
        rewards = experience.rewards - experience.sums(self.penalty(experience))
        advantages = group_advantages(rewards=experience.grouped(rewards), scale=self.scale)
        return replace(experience, advantages=experience.per_token(advantages.flatten()))
