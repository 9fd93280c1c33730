"""Process reward models, Lightman et al. 2023, arXiv 2305.20050."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from alignment.losses.prm import prm_loss
from alignment.methods.base import Parts
from alignment.methods.calibration import calibration_bins, with_calibration_error
from alignment.methods.metrics import MetricSums
from alignment.methods.offline import OfflineMethod
from alignment.methods.terms import Term, Terms, Weighted
from alignment.types import Head, Role, StepwiseBatch, TokenBatch


class PRM(OfflineMethod):
    """Learns for each step of a solution whether it is right, read at the step's last token.

    Args:
        labels: ``soft`` takes a label as a probability; ``hard`` counts a step as right when its label is above 0
            (Math-Shepherd's hard estimation: some roll-out reached the answer).
        parts: From the run.
    """

    batch_type = StepwiseBatch
    roles = frozenset({Role.REWARD})
    head = Head.STEPS

    def __init__(self, *, labels: Literal["soft", "hard"], parts: Parts) -> None:
        super().__init__(parts)
        self.labels = labels

    def terms(self, batch: StepwiseBatch) -> Terms:
        """Computes the cross-entropy of a micro-batch of solutions, every labelled step of the batch alike."""
        labels = batch.labels if self.labels == "soft" else (batch.labels > 0).float()
        logits = self.reward(batch.tokens)
        weights = batch.weights[batch.tokens.sequence_index]
        probabilities = logits.detach().softmax(-1)[:, 1]
        says_right, is_right = probabilities >= 0.5, labels >= 0.5
        located = first_false(says_right, batch.tokens) == first_false(is_right, batch.tokens)
        metrics: Weighted = {
            "process/step_accuracy": ((says_right == is_right).float(), weights),
            "process/wrong_step_recall": ((~says_right).float(), weights * ~is_right),
            "process/first_error_accuracy": (located.float(), batch.weights),
            "process/label_mean": (labels, weights),
        }
        if not self.training:
            metrics |= calibration_bins(probabilities=probabilities, labels=labels, weights=weights)
        losses = prm_loss(step_logits=logits, labels=labels)
        return Terms(loss={"prm": Term(losses, "tokens", weights)}, metrics=metrics)

    def means(self, sums: MetricSums) -> dict[str, float]:
        """Returns what was collected, with the calibration error made of its bins."""
        return with_calibration_error(super().means(sums))


def first_false(flags: Bool[Tensor, "steps"], tokens: TokenBatch) -> Int[Tensor, "sequences"]:
    """Returns the flat index of each solution's first labelled step that is False, or the number of steps."""
    places = torch.arange(len(flags), device=flags.device).masked_fill(flags, len(flags))
    first = places.new_full((tokens.num_sequences,), len(flags))
    return first.scatter_reduce(0, tokens.sequence_index, places, "amin")
