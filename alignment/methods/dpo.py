"""DPO, Rafailov et al. 2023, arXiv 2305.18290."""

from __future__ import annotations

from alignment.losses.dpo import dpo_loss
from alignment.methods.base import Parts
from alignment.methods.offline import PreferenceMethod, Term, Terms
from alignment.methods.preference_metrics import preference_metrics
from alignment.types import PreferenceBatch, Role
from alignment.utils.errors import ConfigError


class DPO(PreferenceMethod):
    """Direct preference optimisation: the policy's log-ratio to the reference is the reward.

    Args:
        beta: Strength of the KL constraint.
        label_smoothing: Probability that a label is flipped (conservative DPO).
        parts: From the run.

    Raises:
        ConfigError: If a field is out of its range.
    """

    roles = frozenset({Role.POLICY, Role.REFERENCE})

    def __init__(self, *, beta: float, label_smoothing: float, parts: Parts) -> None:
        if beta <= 0:
            raise ConfigError("method.beta", got=beta, expected="a number above 0", hint="the paper uses 0.1 to 0.5")
        if not 0 <= label_smoothing < 0.5:
            raise ConfigError("method.label_smoothing", got=label_smoothing, expected="a probability in [0, 0.5)")
        super().__init__(parts)
        self.beta = beta
        self.label_smoothing = label_smoothing

    def terms(self, batch: PreferenceBatch) -> Terms:
        """Computes equation 7 on a micro-batch of pairs."""
        policy, reference = self.policy(batch.tokens), self.reference_logps(batch)
        policy_chosen, policy_rejected = policy.sum_logps.chunk(2)
        reference_chosen, reference_rejected = reference.sum_logps.chunk(2)
        losses = dpo_loss(
            policy_chosen_sum_logps=policy_chosen,
            policy_rejected_sum_logps=policy_rejected,
            reference_chosen_sum_logps=reference_chosen,
            reference_rejected_sum_logps=reference_rejected,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
        )
        chosen_log_ratio, rejected_log_ratio = (
            policy_chosen - reference_chosen,
            policy_rejected - reference_rejected,
        )
        metrics = preference_metrics(
            chosen_rewards=self.beta * chosen_log_ratio,
            rejected_rewards=self.beta * rejected_log_ratio,
            policy=policy,
            weights=batch.weights,
        )
        # Displacement reads this one: how far the chosen completions' own log-prob has moved, in nats.
        metrics["logps/chosen_shift_nats"] = (chosen_log_ratio.detach(), batch.weights)
        metrics["logps/chosen_fell_share"] = ((chosen_log_ratio < 0).float(), batch.weights)
        return Terms(loss={"dpo": Term(losses, "records", batch.weights)}, metrics=metrics)
