"""What PPO, GRPO, RLOO and REINFORCE++ share: advantages weigh how likely each token, or completion, becomes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignment.losses.policy_gradient import clipped_ratio_loss, is_clipped, sequence_ratio_logps
from alignment.methods.base import Parts
from alignment.methods.kl import KLPenalty
from alignment.methods.online import OnlineMethod
from alignment.methods.pairwise import check_function
from alignment.methods.rollout_plan import RolloutPlan, check_sampling
from alignment.methods.terms import Term, Terms, Weighted
from alignment.ops.kl import k2, k3, k3_importance
from alignment.rewards.shaping import Shaping
from alignment.types import RolloutBatch, TokenLogps
from alignment.utils.errors import ConfigError

Ratio = Literal["token", "sequence", "sequence_mean"]
Normaliser = Literal["token", "sequence", "constant"]

_INPUTS = ("policy_logps", "old_logps", "advantages")


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
        check_sampling(parts.rollout.sampling)
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
        loss = {"policy": self._policy_term(batch, policy, old)}
        if self.kl is not None and self.kl.place == "loss":
            loss["kl"] = self._kl_term(batch, policy, old, self.kl)
        return Terms(loss=loss, metrics=self._metrics(batch, policy, old))

    def averaged(self, values: Float[Tensor, "tokens"], batch: RolloutBatch, policy: TokenLogps) -> Term:
        """Turns losses a token into a term, by the normaliser."""
        if self.normaliser == "token":
            return Term(values, "tokens", batch.token_weights)
        sums = policy.sum_by_sequence(values)
        divisor = policy.num_tokens if self.normaliser == "sequence" else self.longest
        return Term(sums / divisor, "sequences", batch.sequence_weights)

    def _policy_term(self, batch: RolloutBatch, policy: TokenLogps, old: Float[Tensor, "tokens"]) -> Term:
        if self.ratio == "token":
            losses = self.policy_loss(policy_logps=policy.token_logps, old_logps=old, advantages=batch.advantages)
            return self.averaged(losses, batch, policy)
        new, before = self._sequence_logps(policy, old)
        # Every token of a completion has its completion's advantage here.
        advantages = policy.sum_by_sequence(batch.advantages) / policy.num_tokens
        losses = self.policy_loss(policy_logps=new, old_logps=before, advantages=advantages)
        return Term(losses, "sequences", batch.sequence_weights)

    def _sequence_logps(
        self, policy: TokenLogps, old: Float[Tensor, "tokens"]
    ) -> tuple[Float[Tensor, "sequences"], Float[Tensor, "sequences"]]:
        if self.ratio == "sequence":
            return policy.sum_logps, policy.sum_by_sequence(old)
        ratios = sequence_ratio_logps(
            policy_logps=policy.token_logps,
            old_logps=old,
            sequence_index=policy.sequence_index,
            num_sequences=policy.num_sequences,
        )
        return ratios, torch.zeros_like(ratios)

    def _kl_term(self, batch: RolloutBatch, policy: TokenLogps, old: Float[Tensor, "tokens"], kl: KLPenalty) -> Term:
        assert batch.reference_logps is not None
        log_ratio = policy.token_logps - batch.reference_logps
        if kl.estimator == "k3_importance":
            values = k3_importance(log_ratio=log_ratio, importance_log_ratio=policy.token_logps - old)
        else:
            values = (k2 if kl.estimator == "k2" else k3)(log_ratio)
        average = self.averaged if self.ratio == "token" else self._by_sequence
        term = average(values, batch, policy)
        return Term(term.values, term.per, term.weights, coefficient=kl.coefficient)

    def _by_sequence(self, values: Float[Tensor, "tokens"], batch: RolloutBatch, policy: TokenLogps) -> Term:
        """Sums where the loss is of a whole sequence's log-prob, means where it is of the mean a token."""
        sums = policy.sum_by_sequence(values)
        return Term(sums if self.ratio == "sequence" else sums / policy.num_tokens, "sequences", batch.sequence_weights)

    def _metrics(self, batch: RolloutBatch, policy: TokenLogps, old: Float[Tensor, "tokens"]) -> Weighted:
        logps = policy.token_logps.detach()
        weights = batch.token_weights
        drawn = logps if batch.old_logps is None else batch.old_logps
        moved = k3(old - logps)
        values = {
            "policy/ratio_mean": (logps - old).exp(),
            "policy/sampler_mismatch": (drawn - batch.sampler_logps).abs().exp(),
            "kl/policy_old_token_nats": moved,
            "logps/completion_mean_nats": logps,
        }
        if policy.entropies is not None:
            values["policy/entropy_nats"] = policy.entropies
        metrics: Weighted = {name: (value, weights) for name, value in values.items()}
        if self.clip is not None:
            metrics["policy/clip_fraction"] = self._clipped(batch, policy, old, self.clip)
        self.kl_sums.add("kl", moved, weights)
        return metrics

    def _clipped(
        self, batch: RolloutBatch, policy: TokenLogps, old: Float[Tensor, "tokens"], clip: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        new, before, advantages, weights = policy.token_logps.detach(), old, batch.advantages, batch.token_weights
        if self.ratio != "token":
            new, before = self._sequence_logps(policy, old)
            advantages, weights = policy.sum_by_sequence(advantages) / policy.num_tokens, batch.sequence_weights
        clipped = is_clipped(
            policy_logps=new.detach(), old_logps=before, advantages=advantages, clip_low=clip[0], clip_high=clip[1]
        )
        return clipped.float(), weights
