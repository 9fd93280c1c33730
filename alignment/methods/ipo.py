"""IPO, Azar et al. 2023, arXiv 2310.12036."""

from __future__ import annotations

from typing import Annotated, Literal

from alignment.losses.ipo import ipo_loss
from alignment.methods.base import Parts
from alignment.methods.offline import PreferenceMethod
from alignment.methods.preference_metrics import preference_metrics
from alignment.methods.terms import Term, Terms
from alignment.types import PreferenceBatch, Role


class IPO(PreferenceMethod):
    """Identity preference optimisation: the log-ratio's margin is pulled to 1 / (2 tau) and no further.

    Deviations:
        The paper writes whole-sequence log-probs, ``reduction=sum``. Its authors later said that means a token were
        used, ``reduction=mean``, which is the default here.

    Args:
        tau: Strength of the regularisation.
        reduction: Whether a completion's log-prob is the mean or the sum over its tokens.
        parts: From the run.
    """

    roles = frozenset({Role.POLICY, Role.REFERENCE})

    def __init__(self, *, tau: Annotated[float, "(0, inf)"], reduction: Literal["mean", "sum"], parts: Parts) -> None:
        super().__init__(parts)
        self.tau = tau
        self.reduction = reduction

    def terms(self, batch: PreferenceBatch) -> Terms:
        """Computes equation 17 on a micro-batch of pairs."""
        reference, policy = self.reference_logps(batch), self.policy(batch.tokens)
        policy_logps, reference_logps = (
            scored.mean_logps if self.reduction == "mean" else scored.sum_logps for scored in (policy, reference)
        )
        policy_chosen, policy_rejected = policy_logps.chunk(2)
        reference_chosen, reference_rejected = reference_logps.chunk(2)
        losses = ipo_loss(
            policy_chosen_logps=policy_chosen,
            policy_rejected_logps=policy_rejected,
            reference_chosen_logps=reference_chosen,
            reference_rejected_logps=reference_rejected,
            tau=self.tau,
        )
        metrics = preference_metrics(
            chosen_rewards=self.tau * (policy_chosen - reference_chosen),
            rejected_rewards=self.tau * (policy_rejected - reference_rejected),
            policy=policy,
            weights=batch.weights,
        )
        return Terms(loss={"ipo": Term(losses, "records", batch.weights)}, metrics=metrics)
