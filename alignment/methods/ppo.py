"""PPO, Schulman et al. 2017, arXiv 1707.06347; for language models as in Ziegler et al. 2019, arXiv 1909.08593."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor
from torch.optim import Optimizer

from alignment.advantages.moments import whitened
from alignment.advantages.ppo import gae
from alignment.advantages.token_rewards import terminal_rewards
from alignment.methods.base import Parts, of_critic
from alignment.methods.kl import KLPenalty
from alignment.methods.pairwise import check_function
from alignment.methods.policy_gradient import Normaliser, PolicyGradientMethod
from alignment.methods.rollout_plan import RolloutPlan
from alignment.methods.terms import Term, Terms
from alignment.rewards.shaping import Shaping
from alignment.rollout.experience import Experience
from alignment.types import Role, RolloutBatch, TokenLogps, Values
from alignment.utils.errors import ConfigError


class PPO(PolicyGradientMethod):
    """Proximal policy optimisation: a critic says what each state is worth, and a token is worth what it adds.

    Args:
        gamma: Discount of later rewards, a token.
        lam: GAE's lambda: 1 trusts rewards, 0 the critic.
        whiten_advantages: Whether advantages are normalised over the whole batch.
        value_loss: Of values, old values and returns.
        value_coefficient: Weighs the critic's loss.
        critic_warmup_steps: Optimiser steps in which only the critic learns.
        policy_loss: As in :class:`~alignment.methods.policy_gradient.PolicyGradientMethod`.
        normaliser: The same.
        rollouts: As in :class:`~alignment.methods.online.OnlineMethod`.
        kl: The same.
        shaping: The same.
        parts: The same.
    """

    roles = frozenset({Role.POLICY, Role.CRITIC})

    def __init__(
        self,
        *,
        gamma: Annotated[float, "(0, 1]"],
        lam: Annotated[float, "[0, 1]"],
        whiten_advantages: bool,
        value_loss: Callable[..., Tensor],
        value_coefficient: Annotated[float, "(0, inf)"],
        critic_warmup_steps: Annotated[int, "[0, inf)"],
        policy_loss: Callable[..., Tensor],
        normaliser: Normaliser,
        rollouts: RolloutPlan,
        kl: KLPenalty | None,
        shaping: Shaping,
        parts: Parts,
    ) -> None:
        super().__init__(
            policy_loss=policy_loss,
            ratio="token",
            normaliser=normaliser,
            rollouts=rollouts,
            kl=kl,
            shaping=shaping,
            parts=parts,
        )
        for name in ("missing_eos_penalty", "overlong_penalty") if rollouts.truncated == "bootstrap" else ():
            if (got := getattr(shaping, name)) is not None:
                hint = "bootstrap leaves a completion that was cut off without a reward, and without its penalty"
                expected = "null with method.rollouts.truncated=bootstrap"
                raise ConfigError(f"method.shaping.{name}", got=got, expected=expected, hint=hint)
        check_function("method.value_loss", value_loss, ("values", "old_values", "returns"))
        self.gamma, self.lam, self.whiten_advantages = gamma, lam, whiten_advantages
        self.value_loss, self.value_coefficient = value_loss, value_coefficient
        self.critic_warmup_steps = critic_warmup_steps

    def advantages(self, experience: Experience) -> Experience:
        """Computes generalised advantages and returns from rewards a token, and normalises the advantages."""
        assert experience.values is not None
        assert experience.last_values is not None
        goes_on = experience.truncated & (self.rollouts.truncated == "bootstrap")
        rewards = torch.where(goes_on, 0.0, experience.rewards)
        paid = terminal_rewards(rewards=rewards, lengths=experience.lengths) - self.penalty(experience)
        advantages, returns = gae(
            token_rewards=paid,
            values=experience.values,
            bootstrap_values=torch.where(goes_on, experience.last_values, 0.0),
            lengths=experience.lengths,
            gamma=self.gamma,
            lam=self.lam,
        )
        weights = experience.per_token(experience.weights)
        if self.whiten_advantages:
            advantages = torch.where(weights > 0, whitened(values=advantages, weights=weights), 0.0)
        return replace(experience, advantages=advantages, returns=returns)

    def score(self, batch: RolloutBatch) -> TokenLogps:
        """Returns log-probs, and values where the head is on the policy's trunk."""
        has_values = self.policy.value_head is not None
        return self.policy(batch.tokens, self.temperature, entropy=self.is_logged, values=has_values)

    def terms(self, batch: RolloutBatch) -> Terms:
        """Computes the loss of policy and critic on a micro-batch of completions."""
        policy = self.score(batch)
        terms = self.policy_terms(batch, policy)
        return replace(terms, loss=terms.loss | {"value": self._value_term(batch, policy)})

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leaves all but the critic without a gradient while it warms up; zeros would count as steps of AdamW's."""
        if self.global_step < self.critic_warmup_steps:
            for parameter in (p for name, p in self.named_parameters() if not of_critic(name)):
                parameter.grad = None
        super().on_before_optimizer_step(optimizer)

    def _value_term(self, batch: RolloutBatch, policy: TokenLogps) -> Term:
        critic = self.bundle.critic
        own = None if critic is None else critic.model
        values: Values | None = policy.values if own is None else own(batch.tokens)
        assert values is not None
        losses = self.value_loss(values=values.before, old_values=batch.old_values, returns=batch.returns)
        return Term(losses, "tokens", batch.token_weights, coefficient=self.value_coefficient)
