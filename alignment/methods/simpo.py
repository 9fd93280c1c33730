"""SimPO, Meng et al. 2024, arXiv 2405.14734."""

from __future__ import annotations

from alignment.losses.simpo import simpo_loss
from alignment.methods.base import Parts
from alignment.methods.nll import chosen_nll_term
from alignment.methods.offline import PreferenceMethod
from alignment.methods.preference_metrics import preference_metrics
from alignment.methods.terms import Term, Terms
from alignment.types import PreferenceBatch, Role
from alignment.utils.errors import ConfigError


class SimPO(PreferenceMethod):
    """Simple preference optimisation: the mean log-prob of a completion's tokens is the reward, without a reference.

    Args:
        beta: Scale of the reward.
        gamma: Target margin of rewards; ``None`` where it is given as a share of beta.
        gamma_beta_ratio: The target margin over beta, in nats a token; ``None`` where gamma itself is given.
        length_normalised: Whether log-probs are means (the paper) or sums over a completion's tokens.
        nll_coefficient: Weighs the chosen completions' cross-entropy, a mean over tokens; 0 leaves it out (the paper).
        parts: From the run.

    Raises:
        ConfigError: If a field is out of its range, or the margin is given twice or never.
    """

    roles = frozenset({Role.POLICY})

    def __init__(
        self,
        *,
        beta: float,
        gamma: float | None,
        gamma_beta_ratio: float | None,
        length_normalised: bool,
        nll_coefficient: float,
        parts: Parts,
    ) -> None:
        if beta <= 0:
            raise ConfigError("method.beta", got=beta, expected="a number above 0", hint="the paper uses 2 to 2.5")
        if nll_coefficient < 0:
            raise ConfigError("method.nll_coefficient", got=nll_coefficient, expected="a number of at least 0")
        super().__init__(parts)
        self.beta = beta
        self.gamma = target_margin(beta=beta, gamma=gamma, gamma_beta_ratio=gamma_beta_ratio)
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


def target_margin(*, beta: float, gamma: float | None, gamma_beta_ratio: float | None) -> float:
    """Returns gamma from the one of the two fields that is given; raises ConfigError for both, none, or below 0."""
    if (gamma is None) == (gamma_beta_ratio is None):
        raise ConfigError(
            "method.gamma",
            got=gamma,
            expected=f"either it or method.gamma_beta_ratio (got {gamma_beta_ratio}) to be a number",
            hint="Both name the target margin: set one, and the other to null, as in method.gamma_beta_ratio=null",
        )
    for name, value in (("gamma", gamma), ("gamma_beta_ratio", gamma_beta_ratio)):
        if value is not None and value < 0:
            raise ConfigError(f"method.{name}", got=value, expected="a number of at least 0")
    return gamma if gamma is not None else beta * (gamma_beta_ratio or 0.0)
