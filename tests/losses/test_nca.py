import math

import numpy as np
import pytest
import torch

from alignment.losses.nca import nca_loss

from loss_tester import LossTester


def twin(*, chosen_log_ratio, rejected_log_ratio, beta):
    def data(reward):
        return -np.log(1 / (1 + np.exp(-reward)))

    chosen, rejected = beta * chosen_log_ratio, beta * rejected_log_ratio
    return data(chosen) + (data(-chosen) + data(-rejected)) / 2


TESTER = LossTester(
    loss=nca_loss,
    twin=twin,
    inputs=("chosen_log_ratio", "rejected_log_ratio"),
    settings=tuple({"beta": b} for b in (0.1, 1.0)),
    low=-8.0,
    high=8.0,
)
VALUES = [
    # chosen, rejected, settings, expected
    (0.0, 0.0, {"beta": 0.1}, 2 * math.log(2)),
    (
        2.0,
        -4.0,
        {"beta": 0.5},
        math.log1p(math.exp(-1)) + 0.5 * math.log1p(math.exp(1)) + 0.5 * math.log1p(math.exp(-2)),
    ),
]


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(("chosen", "rejected", "settings", "expected"), VALUES)
def test_values_derived_by_hand(chosen, rejected, settings, expected):
    sides = {"chosen_log_ratio": torch.tensor([chosen], dtype=torch.float64)}
    sides["rejected_log_ratio"] = torch.tensor([rejected], dtype=torch.float64)
    assert nca_loss(**sides, **settings).item() == pytest.approx(expected, abs=1e-12)


def test_the_chosen_side_has_a_best_value_of_its_own():
    """sigma(beta c) = 2 / 3 whatever the rejected side does: the likelihood is held up, and no further."""
    chosen = torch.tensor([math.log(2)], dtype=torch.float64, requires_grad=True)
    nca_loss(chosen_log_ratio=chosen, rejected_log_ratio=torch.tensor([-9.0]), beta=1.0).sum().backward()
    assert abs(chosen.grad.item()) < 1e-12
