import math

import pytest

from alignment.report.statistics import mean_interval, smooth, student_t_quantile, thin

# Two-sided 95%, from any printed table.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("df", "expected"), TABLE.items())
def test_t_quantile_equals_the_printed_table(df, expected):
    assert student_t_quantile(df) == pytest.approx(expected, abs=5e-4)


def test_mean_interval_by_hand():
    interval = mean_interval([1.0, 2.0, 3.0])  # standard deviation 1, standard error 1/sqrt(3)
    assert interval.mean == 2.0
    assert interval.high - interval.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert interval.mean - interval.low == pytest.approx(interval.high - interval.mean)
    assert interval.num == 3


def test_mean_interval_of_few_or_bad_values():
    assert mean_interval([]) is None
    assert mean_interval([math.nan]) is None
    one = mean_interval([0.5, math.inf])
    assert (one.mean, one.low, one.num) == (0.5, None, 1)


def test_smoothing_keeps_gaps_and_leaves_them_out_of_their_neighbours():
    smoothed = smooth([1.0, math.nan, 3.0], window=3)
    assert smoothed[0] == 1.0
    assert math.isnan(smoothed[1])
    assert smoothed[2] == 3.0


def test_thinning_keeps_spikes_ends_and_gaps():
    values = [0.0] * 1000
    values[500], values[501], values[700] = 9.0, -9.0, math.nan
    steps, kept = thin(range(1000), values, most=100)
    assert len(steps) <= 203
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (0, 999)
    assert dict(zip(steps, kept, strict=True))[500] == 9.0
    assert dict(zip(steps, kept, strict=True))[501] == -9.0
    assert math.isnan(dict(zip(steps, kept, strict=True))[700])


def test_few_points_are_left_alone():
    assert thin([1, 2], [0.1, 0.2], most=2) == ([1, 2], [0.1, 0.2])
