"""Reward models on preferences, Stiennon et al. 2020, arXiv 2009.01325."""

from __future__ import annotations

from typing import Annotated

import torch

from alignment.losses.reward_model import centering_penalty, reward_model_loss
from alignment.methods.base import Parts
from alignment.methods.calibration import calibration_bins, with_calibration_error
from alignment.methods.metrics import MetricSums
from alignment.methods.offline import OfflineMethod
from alignment.methods.terms import Term, Terms, Weighted
from alignment.types import Head, PreferenceBatch, Role


class RewardModel(OfflineMethod):
    """Learns one value a completion from pairs, whose difference is the log-odds of a preference.

    Margins, ties and divided votes come with the records. For an ensemble, train one with each of several seeds.

    Args:
        centering_coefficient: Weighs the penalty that pins the level of the rewards; 0 leaves it open.
        parts: From the run.
    """

    batch_type = PreferenceBatch
    roles = frozenset({Role.REWARD})
    head = Head.SCORE
    uses_soft_labels = True

    def __init__(self, *, centering_coefficient: Annotated[float, "[0, inf)"], parts: Parts) -> None:
        super().__init__(parts)
        self.centering_coefficient = centering_coefficient

    def terms(self, batch: PreferenceBatch) -> Terms:
        """Computes the Bradley-Terry loss of a micro-batch of pairs."""
        chosen, rejected = self.reward(batch.tokens).chunk(2)
        hard = torch.ones_like(batch.margins)
        probabilities = hard if batch.probabilities is None else batch.probabilities
        losses = reward_model_loss(
            chosen_rewards=chosen, rejected_rewards=rejected, margins=batch.margins, probabilities=probabilities
        )
        loss = {"reward_model": Term(losses, "records", batch.weights)}
        if self.centering_coefficient:
            penalties = centering_penalty(chosen_rewards=chosen, rejected_rewards=rejected)
            loss["centering"] = Term(penalties, "records", batch.weights, self.centering_coefficient)
        margin = (chosen - rejected).detach()
        lengths = torch.bincount(batch.tokens.sequence_index, minlength=batch.tokens.num_sequences).float().chunk(2)
        metrics: Weighted = {
            "reward/chosen": (chosen, batch.weights),
            "reward/rejected": (rejected, batch.weights),
            "reward/margin": (margin, batch.weights),
            # A tie has no right order.
            "reward/accuracy": ((margin > 0).float(), batch.weights * (probabilities != 0.5)),
            "length/chosen_tokens": (lengths[0], batch.weights),
            "length/rejected_tokens": (lengths[1], batch.weights),
        }
        if not self.training:
            metrics |= calibration_bins(probabilities=margin.sigmoid(), labels=probabilities, weights=batch.weights)
        return Terms(loss=loss, metrics=metrics)

    def means(self, sums: MetricSums) -> dict[str, float]:
        """Returns what was collected, with the calibration error made of its bins."""
        return with_calibration_error(super().means(sums))
