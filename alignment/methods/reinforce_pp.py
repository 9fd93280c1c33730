"""REINFORCE++, Hu et al. 2025, arXiv 2501.03262."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch import Tensor

from alignment.advantages.moments import whitened
from alignment.advantages.reinforce_pp import group_centred, token_returns
from alignment.advantages.token_rewards import terminal_rewards
from alignment.methods.base import Parts
from alignment.methods.kl import KLPenalty
from alignment.methods.policy_gradient import Normaliser, PolicyGradientMethod
from alignment.methods.rollout_plan import RolloutPlan
from alignment.rewards.shaping import Shaping
from alignment.rollout.experience import Experience
from alignment.utils.errors import ConfigError


class ReinforcePP(PolicyGradientMethod):
    """REINFORCE with PPO's clip and no critic: returns are normalised over the whole batch instead.

    Args:
        gamma: Discount of later rewards, a token.
        baseline: ``none``, or ``group_mean``: a completion's reward less the mean of its prompt's, before it is
            normalised (the paper's REINFORCE++-baseline).
        policy_loss: As in :class:`~alignment.methods.policy_gradient.PolicyGradientMethod`.
        normaliser: The same.
        rollouts: As in :class:`~alignment.methods.online.OnlineMethod`.
        kl: The same.
        shaping: The same.
        parts: The same.
    """

    def __init__(
        self,
        *,
        gamma: Annotated[float, "(0, 1]"],
        baseline: Literal["none", "group_mean"],
        policy_loss: Callable[..., Tensor],
        normaliser: Normaliser,
        rollouts: RolloutPlan,
        kl: KLPenalty | None,
        shaping: Shaping,
        parts: Parts,
    ) -> None:
        if baseline == "group_mean" and rollouts.group_size < 2:
            hint = "the mean of a group of one is its own reward, and nothing would be left"
            raise ConfigError("method.rollouts.group_size", got=rollouts.group_size, expected="at least 2", hint=hint)
        super().__init__(
            policy_loss=policy_loss,
            ratio="token",
            normaliser=normaliser,
            rollouts=rollouts,
            kl=kl,
            shaping=shaping,
            parts=parts,
        )
        self.gamma, self.baseline = gamma, baseline

    def advantages(self, experience: Experience) -> Experience:
        """Normalises each token's return over all tokens that are learnt from, equations 3 and 4 of the paper."""
        rewards = experience.rewards
        if self.baseline == "group_mean":
            rewards = group_centred(rewards=experience.grouped(rewards)).flatten()
        paid = terminal_rewards(rewards=rewards, lengths=experience.lengths) - self.penalty(experience)
        returns = token_returns(token_rewards=paid, lengths=experience.lengths, gamma=self.gamma)
        weights = experience.per_token(experience.weights)
        advantages = whitened(values=returns, weights=weights)
        return replace(experience, advantages=torch.where(weights > 0, advantages, 0.0))
