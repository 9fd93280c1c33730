import math

import numpy as np
import pytest
import torch

from alignment.losses.robust import robust_loss

from loss_tester import LossTester


def twin(*, chosen_log_ratio, rejected_log_ratio, beta, label_smoothing):
    """The inverse of the noise's matrix applied to the losses of both labels."""
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    losses = np.stack([np.log1p(np.exp(-margin)), np.log1p(np.exp(margin))])
    noise = np.array([[1 - label_smoothing, label_smoothing], [label_smoothing, 1 - label_smoothing]])
    return (np.linalg.inv(noise) @ losses)[0]


TESTER = LossTester(
    loss=robust_loss,
    twin=twin,
    inputs=("chosen_log_ratio", "rejected_log_ratio"),
    settings=tuple({"beta": b, "label_smoothing": e} for b in (0.1, 1.0) for e in (0.0, 0.1, 0.4)),
    low=-8.0,
    high=8.0,
)
VALUES = [
    # chosen, rejected, settings, expected
    (0.0, 0.0, {"beta": 0.1, "label_smoothing": 0.3}, math.log(2)),
    (
        2.0,
        -1.0,
        {"beta": 0.5, "label_smoothing": 0.1},
        (0.9 * math.log1p(math.exp(-1.5)) - 0.1 * math.log1p(math.exp(1.5))) / 0.8,
    ),
]


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(("chosen", "rejected", "settings", "expected"), VALUES)
def test_values_derived_by_hand(chosen, rejected, settings, expected):
    sides = {"chosen_log_ratio": torch.tensor([chosen], dtype=torch.float64)}
    sides["rejected_log_ratio"] = torch.tensor([rejected], dtype=torch.float64)
    assert robust_loss(**sides, **settings).item() == pytest.approx(expected, abs=1e-12)


def test_the_mean_over_flipped_labels_is_the_loss_of_the_true_ones():
    """Its point: with a share e of labels flipped, the expectation is DPO's loss without noise."""
    sides = torch.tensor([1.2], dtype=torch.float64), torch.tensor([-0.7], dtype=torch.float64)
    settings = {"beta": 0.8, "label_smoothing": 0.2}
    right, wrong = (
        robust_loss(chosen_log_ratio=chosen, rejected_log_ratio=rejected, **settings).item()
        for chosen, rejected in (sides, sides[::-1])
    )
    assert 0.8 * right + 0.2 * wrong == pytest.approx(math.log1p(math.exp(-0.8 * 1.9)), abs=1e-12)
