"""Bootstrap intervals, against cases that can be worked out."""

from __future__ import annotations

import numpy as np
import pytest

from alignment.evaluation.intervals import bootstrap_ratio


def test_the_interval_of_a_coin_is_the_binomials():
    # 100 prompts, half of them 1: a resampled mean is Binomial(100, 0.5) / 100, whose 2.5% and 97.5% points are
    # 0.40 and 0.60.
    mean, low, high = bootstrap_ratio([0.0] * 50 + [1.0] * 50, [1.0] * 100, resamples=20_000, seed=0)
    assert mean == 0.5
    assert low == pytest.approx(0.40, abs=0.011)
    assert high == pytest.approx(0.60, abs=0.011)


def test_intervals_cover_the_truth_as_often_as_they_say():
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        values = random.normal(3.0, 1.0, size=60)
        _, low, high = bootstrap_ratio(list(values), [1.0] * 60, resamples=500, seed=seed)
        covered += low <= 3.0 <= high
    assert 0.90 < covered / 300 < 0.98


def test_a_ratio_is_of_sums():
    mean, low, high = bootstrap_ratio([1.0, 9.0], [1.0, 3.0], resamples=2000, seed=0)
    assert mean == 2.5
    # Resamples are (a, a): 1, (a, b): 2.5 and (b, b): 3.
    assert (low, high) == (1.0, 3.0)


def test_prompts_without_weight_are_left_out_of_a_resample():
    mean, low, high = bootstrap_ratio([2.0, 0.0], [1.0, 0.0], resamples=500, seed=0)
    assert (mean, low, high) == (2.0, 2.0, 2.0)


def test_one_prompt_has_no_spread():
    assert bootstrap_ratio([3.0], [2.0], resamples=100, seed=0) == (1.5, 1.5, 1.5)


def test_the_seed_decides():
    values = list(np.random.default_rng(1).normal(size=30))
    a, b, c = (bootstrap_ratio(values, [1.0] * 30, resamples=100, seed=seed) for seed in (0, 0, 1))
    assert a == b != c


@pytest.mark.parametrize(("values", "weights"), [([], []), ([0.0], [0.0])])
def test_nothing_to_average_is_refused(values, weights):
    with pytest.raises(ValueError, match="at least one prompt"):
        bootstrap_ratio(values, weights, resamples=10, seed=0)
