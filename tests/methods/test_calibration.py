"""The expected calibration error of a case computed by hand."""

import pytest
import torch

from alignment.methods.calibration import calibration_bins, with_calibration_error
from alignment.methods.metrics import MetricSums


def calibration_error(*micro_batches: list[tuple[float, float, float]]) -> float:
    """From triples of a probability, a label and a weight, the way that a validation takes."""
    sums = MetricSums()
    for items in micro_batches:
        probabilities, labels, weights = torch.tensor(items, dtype=torch.float64).unbind(1)
        bins = calibration_bins(probabilities=probabilities, labels=labels, weights=weights)
        for name, (values, counted) in bins.items():
            sums.add(name, values, counted)
    means = with_calibration_error(sums.pop_means())
    assert set(means) == {"calibration/expected_error"}
    return means["calibration/expected_error"]


#: Outcome - confidence by bins of .05 in confidence.
OVERCONFIDENT = [(0.97, 1.0, 1.0), (0.97, 0.0, 1.0), (0.99, 1.0, 1.0), (1.0, 0.9, 1.0)]  # .03 - .97 + .01 - .1 = -1.03
SAYS_NO = [(0.08, 0.0, 1.0)]  # confidence .92, and right: .08
SOFT = [(0.62, 0.9, 1.0), (0.38, 0.3, 1.0)]  # confidence .62 twice: .28 and .7 - .62 = .08
UNDECIDED = [(0.5, 0.0, 1.0)]  # counts as a yes: -.5
FILLER = [(0.75, 0.0, 0.0)]


def test_a_case_by_hand():
    """The size of each bin's sum, over 8 items; the filler is none."""
    expected = (1.03 + 0.08 + 0.36 + 0.5) / 8
    whole = calibration_error(OVERCONFIDENT + SAYS_NO + SOFT + UNDECIDED + FILLER)
    assert whole == pytest.approx(expected, abs=1e-12)
    # A bin is filled by several micro-batches.
    pieces = calibration_error(OVERCONFIDENT[:1] + SAYS_NO, SOFT[1:] + OVERCONFIDENT[1:] + FILLER, SOFT[:1] + UNDECIDED)
    assert pieces == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("probability", [0.75, 0.25])
def test_a_judge_that_is_right_as_often_as_it_says_has_no_error(probability):
    said, other = float(probability > 0.5), float(probability < 0.5)
    items = [(probability, said, 1.0)] * 3 + [(probability, other, 1.0)]
    assert calibration_error(items) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(items[:3]) == pytest.approx(0.25)
    assert calibration_error(items[3:]) == pytest.approx(0.75)


def test_what_else_was_measured_is_kept():
    assert with_calibration_error({"loss/prm": 1.5}) == {"loss/prm": 1.5}
