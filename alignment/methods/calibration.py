"""How far a judge's confidence is from how often it is right."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from alignment.methods.terms import Weighted

NUM_BINS = 10
_BIN = "calibration/bin_"


def calibration_bins(
    *,
    probabilities: Float[Tensor, "items"],
    labels: Float[Tensor, "items"],
    weights: Float[Tensor, "items"],
) -> Weighted:
    """Returns what :func:`with_calibration_error` makes the expected calibration error from.

    An item falls into the bin of its confidence, of ten equal bins from .5 to 1. Each bin's value is (outcome -
    confidence) in the bin and 0 outside, so that its mean over ALL items is the bin's share times its gap.

    Args:
        probabilities: The model's probability of the event.
        labels: Whether it came about, or how likely it is that it did, in [0, 1].
        weights: 0 for fillers.
    """
    predicted = probabilities.detach()
    says_yes = predicted >= 0.5
    confidence = torch.where(says_yes, predicted, 1 - predicted)
    outcome = torch.where(says_yes, labels, 1 - labels)
    place = ((confidence - 0.5) * 2 * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    gap = outcome - confidence
    return {f"{_BIN}{index}": (torch.where(place == index, gap, 0.0), weights) for index in range(NUM_BINS)}


def with_calibration_error(means: dict[str, float]) -> dict[str, float]:
    """Replaces the bins' means by their sum's size: the expected calibration error (Guo et al. 2017, equation 3).

    >>> with_calibration_error({"loss": 1.0, "calibration/bin_0": -0.25, "calibration/bin_1": 0.5})
    {'loss': 1.0, 'calibration/expected_error': 0.75}
    """
    bins = [value for name, value in means.items() if name.startswith(_BIN)]
    rest = {name: value for name, value in means.items() if not name.startswith(_BIN)}
    return rest | {"calibration/expected_error": sum(map(abs, bins))} if bins else rest
