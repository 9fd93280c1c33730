"""What PPO, GRPO, RLOO and REINFORCE++ share: advantages weigh how likely each token, or completion, becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignment.losses.policy_gradient import (
    clipped_ratio_loss,
    is_clipped,
    sequence_ratio_logps,
    truncated_importance,
)
from alignment.methods.base import Parts
from alignment.methods.kl import KLPenalty
from alignment.methods.online import OnlineMethod
from alignment.methods.pairwise import check_function
from alignment.methods.rollout_plan import RolloutPlan
from alignment.methods.terms import Term, Terms, Weighted
from alignment.ops.kl import k2, k3, k3_importance
from alignment.rewards.shaping import Shaping
from alignment.rollout.engine import narrowed_by
from alignment.types import RolloutBatch, Sampling, TokenLogps
from alignment.utils.errors import ConfigError

Ratio = Literal["token", "sequence", "sequence_mean"]
Normaliser = Literal["token", "sequence", "constant"]

_INPUTS = ("policy_logps", "old_logps", "advantages")


@dataclass(frozen=True)
class Ratios:
    """What an importance ratio is of: tokens, or completions.

    Attributes:
        policy_logps: Log-probs in nats, with gradient.
        old_logps: Under the policy that wrote.
        advantages: What each is worth.
        weights: 1 for what is learnt from, 0 for what is masked and for fillers.
        importance: How much likelier the old policy finds each than the engine that wrote it, up to a cap; 1 where
            that is not corrected.
    """

    policy_logps: Float[Tensor, "items"]
    old_logps: Float[Tensor, "items"]
    advantages: Float[Tensor, "items"]
    weights: Float[Tensor, "items"]
    importance: Float[Tensor, "items"] | float = 1.0


class PolicyGradientMethod(OnlineMethod):
    """Base of the methods whose loss is an advantage times an importance ratio.

    Args:
        policy_loss: Of log-probs and advantages; see :mod:`alignment.losses.policy_gradient`.
        ratio: What has a ratio: each ``token``; the whole ``sequence`` (RLOO); or the sequence, with the ratio's mean a
            token in its place (``sequence_mean``, GSPO).
        normaliser: Of losses a token: ``sequence`` takes the mean of each completion first (GRPO's paper), ``token``
            weighs all tokens of a step alike (DAPO), ``constant`` divides each completion's sum by
            ``rollout.sampling.max_new_tokens`` (Dr. GRPO).
        rollouts: As in :class:`~alignment.methods.online.OnlineMethod`.
        kl: The same.
        shaping: The same.
        parts: The same.

    Raises:
        ConfigError: A field is out of its range, or could have no effect beside another.
    """

    def __init__(
        self,
        *,
        policy_loss: Callable[..., Tensor],
        ratio: Ratio,
        normaliser: Normaliser,
        rollouts: RolloutPlan,
        kl: KLPenalty | None,
        shaping: Shaping,
        parts: Parts,
    ) -> None:
        super().__init__(rollouts=rollouts, kl=kl, shaping=shaping, parts=parts)
        if rollouts.one_step_off and rollouts.importance_cap is None:
            hint = "completions come from an older policy: weigh them, for example by method.rollouts.importance_cap=2"
            raise ConfigError("method.rollouts.importance_cap", got=None, expected="a number from 1", hint=hint)
        _check_every_token_may_come(parts.rollout.sampling)
        check_function("method.policy_loss", policy_loss, _INPUTS)
        if ratio != "token" and normaliser != "sequence":
            hint = f"with method.ratio={ratio} a completion has one loss, and no tokens to weigh"
            raise ConfigError("method.normaliser", got=normaliser, expected="sequence", hint=hint)
        self.policy_loss = policy_loss
        self.ratio: Ratio = ratio
        self.normaliser: Normaliser = normaliser
        self.longest = parts.rollout.sampling.max_new_tokens
        given = policy_loss.keywords if isinstance(policy_loss, partial) else {}
        # Only there does a clip take a token's gradient away.
        is_clipping = isinstance(policy_loss, partial) and policy_loss.func is clipped_ratio_loss
        self.clip: tuple[float, float] | None = (given["clip_low"], given["clip_high"]) if is_clipping else None

    def terms(self, batch: RolloutBatch) -> Terms:
        """Computes the loss of a micro-batch of completions."""
        return self.policy_terms(batch, self.score(batch))

    def score(self, batch: RolloutBatch) -> TokenLogps:
        """Returns the policy's log-probs at the temperature of sampling."""
        return self.policy(batch.tokens, self.temperature, entropy=self.is_logged)

    def policy_terms(self, batch: RolloutBatch, policy: TokenLogps) -> Terms:
        """Computes the parts of the loss that the policy has in any method, from its log-probs."""
        old = policy.token_logps.detach() if batch.old_logps is None else batch.old_logps
        ratios = self._ratios(batch, policy, old)
        loss = {"policy": self._policy_term(ratios, batch, policy)}
        if self.kl is not None and self.kl.place == "loss":
            loss["kl"] = self._kl_term(ratios, batch, policy, old, self.kl)
        return Terms(loss=loss, metrics=self._metrics(ratios, batch, policy, old))

    def averaged(self, values: Float[Tensor, "tokens"], batch: RolloutBatch, policy: TokenLogps) -> Term:
        """Turns losses a token into a term, by the normaliser."""
        if self.normaliser == "token":
            return Term(values, "tokens", batch.token_weights)
        sums = policy.sum_by_sequence(values)
        divisor = policy.num_tokens if self.normaliser == "sequence" else self.longest
        return Term(sums / divisor, "sequences", batch.sequence_weights)

    def _ratios(self, batch: RolloutBatch, policy: TokenLogps, old: Float[Tensor, "tokens"]) -> Ratios:
        mismatch = old - batch.sampler_logps
        if self.ratio == "token":
            importance = self._importance(mismatch)
            return Ratios(policy.token_logps, old, batch.advantages, batch.token_weights, importance)
        # Every token of a completion has its completion's advantage here.
        advantages = policy.sum_by_sequence(batch.advantages) / policy.num_tokens
        if self.ratio == "sequence":
            importance = self._importance(policy.sum_by_sequence(mismatch))
            old = policy.sum_by_sequence(old)
            return Ratios(policy.sum_logps, old, advantages, batch.sequence_weights, importance)
        logps = sequence_ratio_logps(
            policy_logps=policy.token_logps,
            old_logps=old,
            sequence_index=policy.sequence_index,
            num_sequences=policy.num_sequences,
        )
        importance = self._importance(policy.sum_by_sequence(mismatch) / policy.num_tokens)
        return Ratios(logps, torch.zeros_like(logps), advantages, batch.sequence_weights, importance)

    def _importance(self, log_ratio: Float[Tensor, "items"]) -> Float[Tensor, "items"] | float:
        cap = self.rollouts.importance_cap
        return 1.0 if cap is None else truncated_importance(log_ratio=log_ratio, cap=cap)

    def _policy_term(self, ratios: Ratios, batch: RolloutBatch, policy: TokenLogps) -> Term:
        losses = self.policy_loss(
            policy_logps=ratios.policy_logps, old_logps=ratios.old_logps, advantages=ratios.advantages
        )
        losses = losses * ratios.importance
        if self.ratio == "token":
            return self.averaged(losses, batch, policy)
        return Term(losses, "sequences", ratios.weights)

    def _kl_term(
        self, ratios: Ratios, batch: RolloutBatch, policy: TokenLogps, old: Float[Tensor, "tokens"], kl: KLPenalty
    ) -> Term:
        assert batch.reference_logps is not None
        log_ratio = policy.token_logps - batch.reference_logps
        if kl.estimator == "k3_importance":
            values = k3_importance(log_ratio=log_ratio, importance_log_ratio=policy.token_logps - old)
        else:
            values = (k2 if kl.estimator == "k2" else k3)(log_ratio)
        if self.ratio == "token":
            term = self.averaged(values * ratios.importance, batch, policy)
            return replace(term, coefficient=kl.coefficient)
        # Sums where the loss is of a whole sequence's log-prob, means where it is of the mean a token.
        sums = policy.sum_by_sequence(values)
        values = (sums if self.ratio == "sequence" else sums / policy.num_tokens) * ratios.importance
        return Term(values, "sequences", batch.sequence_weights, coefficient=kl.coefficient)

    def _metrics(
        self, ratios: Ratios, batch: RolloutBatch, policy: TokenLogps, old: Float[Tensor, "tokens"]
    ) -> Weighted:
        logps, weights = policy.token_logps.detach(), batch.token_weights
        moved = k3(old - logps)
        values = {
            "policy/ratio_mean": (logps - old).exp(),
            "kl/policy_old_token_nats": moved,
            "logps/completion_mean_nats": logps,
        }
        if policy.entropies is not None:
            values["policy/entropy_nats"] = policy.entropies
        if not self.rollouts.one_step_off:
            # Else most of it is what the policy has learnt in between.
            values["policy/sampler_mismatch"] = (old - batch.sampler_logps).abs().exp()
        metrics: Weighted = {name: (value, weights) for name, value in values.items()}
        if isinstance(ratios.importance, Tensor):
            metrics["policy/importance_mean"] = (ratios.importance, ratios.weights)
            capped = ratios.importance >= (self.rollouts.importance_cap or 1.0)
            metrics["policy/importance_capped"] = (capped.float(), ratios.weights)
        if self.clip is not None:
            clipped = is_clipped(
                policy_logps=ratios.policy_logps.detach(),
                old_logps=ratios.old_logps,
                advantages=ratios.advantages,
                clip_low=self.clip[0],
                clip_high=self.clip[1],
            )
            metrics["policy/clip_fraction"] = (clipped.float(), ratios.weights)
        if self.rollouts.max_kl_nats is not None:
            self.kl_sums.add("kl", moved, weights)
        return metrics


def _check_every_token_may_come(sampling: Sampling) -> None:
    """Refuses completions from another distribution than the one whose log-probs are trained (T17)."""
    for name, whole in narrowed_by(sampling).items():
        raise ConfigError(
            f"rollout.sampling.{name}",
            got=getattr(sampling, name),
            expected=f"{whole} in training",
            hint="completions would come from another distribution than the one whose log-probs are trained",
        )
