"""Means with intervals, by resampling prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
_CHUNK = 64  # resamples held in memory at a time


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval.

    Attributes:
        mean: The estimate itself.
        ci_low: Lower end of the interval.
        ci_high: Upper end.
        num: Samples that it rests on.
    """

    mean: float
    ci_low: float
    ci_high: float
    num: int


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], *, resamples: int, seed: int
) -> tuple[float, float, float]:
    """Returns sum(numerators) / sum(denominators) and its percentile interval.

    The bootstrap of Efron and Tibshirani (1993, chapter 13) over clusters: one entry a prompt, each holding
    everything that was sampled from it, so that the samples of a prompt need not be independent.

    Args:
        numerators: One a prompt.
        denominators: One a prompt, at least one of them positive; all 1 for a plain mean.
        resamples: How often to draw as many prompts with replacement.
        seed: Seeds the draw.

    Returns:
        The ratio, and the ends of its 95% interval. With one prompt the interval is the ratio itself.

    >>> bootstrap_ratio([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], resamples=100, seed=0)
    (0.5, 0.5, 0.5)
    """
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if len(top) == 0 or not bottom.sum() > 0:
        raise ValueError("an interval needs at least one prompt with something in it")
    random = np.random.default_rng(seed)
    ratios: list[np.ndarray] = []
    while sum(map(len, ratios)) < resamples:
        drawn = random.integers(0, len(top), size=(_CHUNK, len(top)))
        tops, bottoms = top[drawn].sum(1), bottom[drawn].sum(1)
        ratios.append(tops[bottoms > 0] / bottoms[bottoms > 0])
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(ratios)[:resamples], [tail, 1 - tail])
    return float(top.sum() / bottom.sum()), float(low), float(high)
