"""CPO, Xu et al. 2024, arXiv 2401.08417."""

from __future__ import annotations

from typing import Annotated, Literal

from alignment.losses.cpo import cpo_loss
from alignment.methods.base import Parts
from alignment.methods.nll import chosen_nll_term
from alignment.methods.offline import PreferenceMethod
from alignment.methods.preference_metrics import preference_metrics
from alignment.methods.terms import Term, Terms
from alignment.types import PreferenceBatch, Role


class CPO(PreferenceMethod):
    """Contrastive preference optimisation: DPO against a uniform reference, held by the chosen side's likelihood.

    Deviations:
        The paper writes the likelihood as the log-prob of a whole completion. Its authors' code and TRL take the
        mean over a batch's chosen tokens, ``nll_normaliser=token``, which is the default here.

    Args:
        beta: Scale of the reward.
        nll_coefficient: Weighs the chosen completions' cross-entropy.
        nll_normaliser: ``token`` weighs every chosen token of the step alike, ``sequence`` every pair alike.
        label_smoothing: Probability that a label is flipped.
        parts: From the run.
    """

    roles = frozenset({Role.POLICY})

    def __init__(
        self,
        *,
        beta: Annotated[float, "(0, inf)"],
        nll_coefficient: Annotated[float, "[0, inf)"],
        nll_normaliser: Literal["token", "sequence"],
        label_smoothing: Annotated[float, "[0, 0.5)"],
        parts: Parts,
    ) -> None:
        super().__init__(parts)
        self.beta = beta
        self.nll_coefficient = nll_coefficient
        self.nll_normaliser: Literal["token", "sequence"] = nll_normaliser
        self.label_smoothing = label_smoothing

    def terms(self, batch: PreferenceBatch) -> Terms:
        """Computes the loss's two parts on a micro-batch of pairs."""
        policy = self.policy(batch.tokens)
        chosen, rejected = policy.sum_logps.chunk(2)
        losses = cpo_loss(
            policy_chosen_sum_logps=chosen,
            policy_rejected_sum_logps=rejected,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
        )
        metrics = preference_metrics(
            chosen_rewards=self.beta * chosen,
            rejected_rewards=self.beta * rejected,
            policy=policy,
            weights=batch.weights,
        )
        terms = Terms(loss={"cpo": Term(losses, "records", batch.weights)}, metrics=metrics)
        if self.nll_coefficient:
            terms.loss["nll"] = chosen_nll_term(
                policy=policy, batch=batch, normaliser=self.nll_normaliser, coefficient=self.nll_coefficient
            )
        return terms
