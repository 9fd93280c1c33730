"""DPO, Rafailov et al. 2023, arXiv 2305.18290, and its variants: each is a choice of what a pair costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from torch import Tensor

from alignment.methods.base import Parts
from alignment.methods.nll import chosen_nll_term
from alignment.methods.offline import PreferenceMethod
from alignment.methods.pairwise import (
    Mixture,
    PairInputs,
    PairwiseLoss,
    RewardShift,
    check_combination,
    policy_weights,
)
from alignment.methods.preference_metrics import preference_metrics
from alignment.methods.terms import Term, Terms
from alignment.types import Batch, PreferenceBatch, Role
from alignment.utils.errors import ConfigError


class DPO(PreferenceMethod):
    """Direct preference optimisation: the policy's log-ratio to the reference is the reward.

    Args:
        beta: Strength of the KL constraint.
        loss: What a pair of log-ratios costs; see :class:`~alignment.methods.pairwise.PairwiseLoss`.
        divergence: Turns log-ratios into rewards.
        length_normalised: Whether log-ratios are means over a completion's tokens instead of sums.
        nll_coefficient: Weighs the cross-entropy of the chosen completions (RPO, Pang et al. 2024, arXiv 2404.19733).
        nll_normaliser: Whether it is a mean over pairs or over tokens.
        weighting: ``wpo`` weighs pairs by how likely the policy is to write them (Zhou et al. 2024).
        parts: From the run.

    Raises:
        ConfigError: If a field could have no effect beside another.
    """

    roles = frozenset({Role.POLICY, Role.REFERENCE})

    def __init__(
        self,
        *,
        beta: Annotated[float, "(0, inf)"],
        loss: Callable[..., Tensor] | Mixture,
        divergence: Callable[..., Tensor],
        length_normalised: bool,
        nll_coefficient: Annotated[float, "[0, inf)"],
        nll_normaliser: Literal["sequence", "token"],
        weighting: Literal["none", "wpo"],
        parts: Parts,
    ) -> None:
        if nll_coefficient == 0 and nll_normaliser != "sequence":
            hint = "It would have no effect: set method.nll_coefficient, 1 in RPO's paper"
            raise ConfigError(
                "method.nll_normaliser", got=nll_normaliser, expected="sequence without a term", hint=hint
            )
        super().__init__(parts)
        self.beta, self.loss, self.divergence = beta, PairwiseLoss(loss), divergence
        self.length_normalised, self.weighting = length_normalised, weighting
        self.nll_coefficient = nll_coefficient
        self.nll_normaliser: Literal["sequence", "token"] = nll_normaliser
        self.shift = RewardShift() if "reward_shift" in self.loss.takes else None
        check_combination(loss=self.loss, divergence=divergence, weighting=weighting)

    def setup(self, stage: str) -> None:
        """Refuses to spread a step whose pairs are compared with one another."""
        if self.loss.compares_pairs and self.shares > 1:
            raise ConfigError(
                "data.micro_batch_size",
                got=f"a step in {self.shares} forward passes",
                expected="the whole step in one, because this method.loss sorts its pairs",
                hint="Set data.micro_batch_size to data.batch_size, and run one process, for example hardware=cpu",
            )

    def terms(self, batch: PreferenceBatch) -> Terms:
        """Computes the loss of a micro-batch of pairs; equation 7 of the paper as the YAML stands."""
        reference = self.reference_logps(batch)
        policy = self.policy(batch.tokens, collision=self.weighting == "wpo")
        policy_logps, reference_logps = (
            scored.mean_logps if self.length_normalised else scored.sum_logps for scored in (policy, reference)
        )
        chosen, rejected = (self.divergence(log_ratio=side) for side in (policy_logps - reference_logps).chunk(2))
        reference_chosen, reference_rejected = reference_logps.chunk(2)
        inputs = PairInputs(
            chosen_log_ratio=chosen,
            rejected_log_ratio=rejected,
            beta=self.beta,
            reference_margin=reference_chosen - reference_rejected,
            weights=batch.weights,
            reward_shift=0.0 if self.shift is None else self.shift.value.to(chosen.device),
        )
        losses, parts = self.loss(inputs)
        metrics = parts | preference_metrics(
            chosen_rewards=self.beta * chosen,
            rejected_rewards=self.beta * rejected,
            policy=policy,
            weights=batch.weights,
        )
        # Displacement reads this one: how far the chosen completions' own log-prob has moved, in nats.
        moved, _ = (policy.sum_logps - reference.sum_logps).detach().chunk(2)
        metrics["logps/chosen_shift_nats"] = (moved, batch.weights)
        metrics["logps/chosen_fell_share"] = ((moved < 0).float(), batch.weights)
        metrics["logps/chosen_mass_ratio"] = (moved.clamp(max=20).exp(), batch.weights)
        if self.weighting == "wpo":
            pair_weights = policy_weights(policy)
            losses = losses * pair_weights
            metrics["policy/wpo_weight"] = (pair_weights, batch.weights)
        if self.shift is not None:
            metrics["reward/shift"] = (self.shift.value.to(chosen.device).expand(chosen.shape), batch.weights)
            if self.trainer.training:
                self.shift.add(self.beta * (chosen + rejected) / 2, batch.weights)
        nll: dict[str, Term] = {}
        if self.nll_coefficient:
            nll["nll"] = chosen_nll_term(
                policy=policy, batch=batch, normaliser=self.nll_normaliser, coefficient=self.nll_coefficient
            )
        return Terms(loss={"dpo": Term(losses, "records", batch.weights)} | nll, metrics=metrics)

    def end_batch(self, batch: Batch) -> None:
        """Counts an optimiser step's rewards in when it has ended."""
        if self.shift is not None and not self.trainer.fit_loop._should_accumulate():
            self.shift.end_step()
        super().end_batch(batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the reward shift too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reward_shift"] = None if self.shift is None else self.shift.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores it."""
        super().on_load_checkpoint(checkpoint)
        if self.shift is not None:
            self.shift.load_state_dict(checkpoint["reward_shift"])
