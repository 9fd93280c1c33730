import numpy as np
import pytest
import torch

from alignment.losses.hinge import hinge_loss

from loss_tester import LossTester


def twin(*, chosen_log_ratio, rejected_log_ratio, beta, margin):
    return np.maximum(0, margin + beta * rejected_log_ratio - beta * chosen_log_ratio)


TESTER = LossTester(
    loss=hinge_loss,
    twin=twin,
    inputs=("chosen_log_ratio", "rejected_log_ratio"),
    settings=tuple({"beta": b, "margin": m} for b in (0.1, 1.0) for m in (0.5, 1.0)),
    low=-8.0,
    high=8.0,
)
VALUES = [
    # chosen, rejected, settings, expected
    (0.0, 0.0, {"beta": 0.1, "margin": 1.0}, 1.0),
    (4.0, 0.0, {"beta": 0.1, "margin": 1.0}, 0.6),
    (20.0, 0.0, {"beta": 0.1, "margin": 1.0}, 0.0),
    (20.0, 0.0, {"beta": 0.1, "margin": 3.0}, 1.0),
]


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(("chosen", "rejected", "settings", "expected"), VALUES)
def test_values_derived_by_hand(chosen, rejected, settings, expected):
    sides = {"chosen_log_ratio": torch.tensor([chosen], dtype=torch.float64)}
    sides["rejected_log_ratio"] = torch.tensor([rejected], dtype=torch.float64)
    assert hinge_loss(**sides, **settings).item() == pytest.approx(expected, abs=1e-12)


def test_a_pair_that_is_far_enough_apart_teaches_nothing():
    chosen = torch.tensor([11.0, 9.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)
    hinge_loss(chosen_log_ratio=chosen, rejected_log_ratio=zero, beta=0.1, margin=1.0).sum().backward()
    assert chosen.grad.tolist() == [0.0, -0.1]
