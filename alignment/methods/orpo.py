"""ORPO, Hong et al. 2024, arXiv 2403.07691."""

from __future__ import annotations

from typing import Annotated, Literal

from alignment.losses.orpo import log_odds, orpo_loss
from alignment.methods.base import Parts
from alignment.methods.nll import chosen_nll_term
from alignment.methods.offline import PreferenceMethod
from alignment.methods.preference_metrics import preference_metrics
from alignment.methods.terms import Term, Terms
from alignment.types import PreferenceBatch, Role


class ORPO(PreferenceMethod):
    """Odds ratio preference optimisation: fine-tuning on the chosen side, with a penalty on the rejected one's odds.

    Deviations:
        The authors' code and TRL take the cross-entropy over prompts too, ``nll_over=prompt_and_completion``. The
        paper conditions on the prompt, ``nll_over=completion``, which is the default here.

    Args:
        odds_ratio_coefficient: The paper's lambda: weighs the odds ratio against the likelihood.
        nll_over: Tokens of the chosen side whose cross-entropy is taken.
        nll_normaliser: ``token`` weighs every one of them in the step alike, ``sequence`` every pair alike.
        parts: From the run.
    """

    roles = frozenset({Role.POLICY})

    def __init__(
        self,
        *,
        odds_ratio_coefficient: Annotated[float, "(0, inf)", "Without the odds ratio it is method=sft"],
        nll_over: Literal["completion", "prompt_and_completion"],
        nll_normaliser: Literal["token", "sequence"],
        parts: Parts,
    ) -> None:
        super().__init__(parts)
        self.odds_ratio_coefficient = odds_ratio_coefficient
        self.nll_over = nll_over
        self.nll_normaliser: Literal["token", "sequence"] = nll_normaliser

    @property
    def scores_prompt(self) -> bool:
        """Whether the cross-entropy is over the prompt too."""
        return self.nll_over == "prompt_and_completion"

    def terms(self, batch: PreferenceBatch) -> Terms:
        """Computes equation 6 on a micro-batch of pairs."""
        policy = self.policy(batch.tokens)
        chosen, rejected = policy.mean_logps.chunk(2)
        losses = orpo_loss(policy_chosen_mean_logps=chosen, policy_rejected_mean_logps=rejected)
        odds_ratio = Term(losses, "records", batch.weights, self.odds_ratio_coefficient)
        nll = chosen_nll_term(policy=policy, batch=batch, normaliser=self.nll_normaliser, coefficient=1.0)
        metrics = preference_metrics(
            chosen_rewards=self.odds_ratio_coefficient * chosen,
            rejected_rewards=self.odds_ratio_coefficient * rejected,
            policy=policy,
            weights=batch.weights,
        )
        log_odds_ratio = log_odds(mean_logps=chosen) - log_odds(mean_logps=rejected)
        metrics["odds/log_ratio_nats"] = (log_odds_ratio.detach(), batch.weights)
        return Terms(loss={"odds_ratio": odds_ratio, "nll": nll}, metrics=metrics)
