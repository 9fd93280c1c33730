"""SimPO, Meng et al. 2024, arXiv 2405.14734."""

from __future__ import annotations

from typing import Annotated

from alignment.losses.simpo import simpo_loss
from alignment.methods.base import Parts
from alignment.methods.nll import chosen_nll_term
from alignment.methods.offline import PreferenceMethod
from alignment.methods.preference_metrics import preference_metrics
from alignment.methods.terms import Term, Terms
from alignment.types import PreferenceBatch, Role


class SimPO(PreferenceMethod):
    """Simple preference optimisation: the mean log-prob of a completion's tokens is the reward, without a reference.

    Args:
        beta: Scale of the reward.
        gamma: Target margin of rewards; ``None`` where it is given as a share of beta.
        gamma_beta_ratio: The target margin over beta, in nats a token; ``None`` where gamma itself is given.
        length_normalised: Whether log-probs are means (the paper) or sums over a completion's tokens.
        nll_coefficient: Weighs the chosen completions' cross-entropy, a mean over tokens; 0 leaves it out (the paper).
        parts: From the run.
    """

    roles = frozenset({Role.POLICY})

    def __init__(
        self,
        *,
        beta: Annotated[float, "(0, inf)"],
        gamma: Annotated[float, "[0, inf)"] | None,
        gamma_beta_ratio: Annotated[float, "[0, inf)"] | None,
        length_normalised: bool,
        nll_coefficient: Annotated[float, "[0, inf)"],
        parts: Parts,
    ) -> None:
        super().__init__(parts)
        self.beta = beta
        if gamma is None:
            assert gamma_beta_ratio is not None
            gamma = beta * gamma_beta_ratio
        self.gamma = gamma
        self.length_normalised = length_normalised
        self.nll_coefficient = nll_coefficient

    def terms(self, batch: PreferenceBatch) -> Terms:
        """Computes equation 6 on a micro-batch of pairs."""
        policy = self.policy(batch.tokens)
        chosen, rejected = (policy.mean_logps if self.length_normalised else policy.sum_logps).chunk(2)
        losses = simpo_loss(
            policy_chosen_logps=chosen, policy_rejected_logps=rejected, beta=self.beta, gamma=self.gamma
        )
        metrics = preference_metrics(
            chosen_rewards=self.beta * chosen,
            rejected_rewards=self.beta * rejected,
            policy=policy,
            weights=batch.weights,
        )
        terms = Terms(loss={"simpo": Term(losses, "records", batch.weights)}, metrics=metrics)
        if self.nll_coefficient:
            terms.loss["nll"] = chosen_nll_term(
                policy=policy, batch=batch, normaliser="token", coefficient=self.nll_coefficient
            )
        return terms
