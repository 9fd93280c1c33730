import math

import numpy as np
import pytest
import torch

from alignment.losses.apo import apo_down_loss, apo_zero_loss

from loss_tester import LossTester


def sigma(x):
    return 1 / (1 + np.exp(-x))


def twin(*, chosen_log_ratio, rejected_log_ratio, beta):
    """Equation 7 and a constant."""
    chosen, rejected = beta * chosen_log_ratio, beta * rejected_log_ratio
    return 1 - sigma(chosen) + sigma(rejected)


TESTER = LossTester(
    loss=apo_zero_loss,
    twin=twin,
    inputs=("chosen_log_ratio", "rejected_log_ratio"),
    settings=tuple({"beta": b} for b in (0.1, 1.0)),
    low=-8.0,
    high=8.0,
)
VALUES = [
    # chosen, rejected, settings, expected
    (0.0, 0.0, {"beta": 0.1}, 1.0),
    (math.log(3), -math.log(3), {"beta": 1.0}, 0.5),
]


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(("chosen", "rejected", "settings", "expected"), VALUES)
def test_values_derived_by_hand(chosen, rejected, settings, expected):
    sides = {"chosen_log_ratio": torch.tensor([chosen], dtype=torch.float64)}
    sides["rejected_log_ratio"] = torch.tensor([rejected], dtype=torch.float64)
    assert apo_zero_loss(**sides, **settings).item() == pytest.approx(expected, abs=1e-12)


def twin_down(*, chosen_log_ratio, rejected_log_ratio, beta):
    """Equation 8 and a constant."""
    chosen, rejected = beta * chosen_log_ratio, beta * rejected_log_ratio
    return sigma(chosen) + 1 - sigma(chosen - rejected)


def test_proofs_of_down():
    LossTester(
        loss=apo_down_loss, twin=twin_down, inputs=TESTER.inputs, settings=TESTER.settings, low=-8.0, high=8.0
    ).check_all()


def test_zero_raises_the_chosen_side_and_down_lowers_it():
    slopes = []
    for loss in (apo_zero_loss, apo_down_loss):
        sides = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (2.0, -2.0)]
        loss(chosen_log_ratio=sides[0], rejected_log_ratio=sides[1], beta=1.0).sum().backward()
        slopes.append([side.grad.item() for side in sides])
    (zero_chosen, zero_rejected), (down_chosen, down_rejected) = slopes
    assert zero_chosen < 0 < zero_rejected
    assert down_chosen > 0
    assert down_rejected > 0
