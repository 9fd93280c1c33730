import math

import numpy as np
import pytest
import torch

from alignment.losses.discopop import discopop_loss

from loss_tester import LossTester


def twin(*, chosen_log_ratio, rejected_log_ratio, beta, tau):
    """A mixture of the logistic and the exponential loss."""
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    share = 1 / (1 + np.exp(-margin / tau))
    return (1 - share) * np.log(1 + np.exp(-margin)) + share * np.exp(-margin)


TESTER = LossTester(
    loss=discopop_loss,
    twin=twin,
    inputs=("chosen_log_ratio", "rejected_log_ratio"),
    settings=tuple({"beta": b, "tau": t} for b in (0.1, 0.5) for t in (0.05, 1.0)),
    low=-8.0,
    high=8.0,
)
VALUES = [
    # chosen, rejected, settings, expected
    (0.0, 0.0, {"beta": 0.1, "tau": 0.05}, (math.log(2) + 1) / 2),
    (10.0, 0.0, {"beta": 1.0, "tau": 0.05}, math.exp(-10)),
    (-10.0, 0.0, {"beta": 1.0, "tau": 0.05}, math.log1p(math.exp(10))),
]


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(("chosen", "rejected", "settings", "expected"), VALUES)
def test_values_derived_by_hand(chosen, rejected, settings, expected):
    sides = {"chosen_log_ratio": torch.tensor([chosen], dtype=torch.float64)}
    sides["rejected_log_ratio"] = torch.tensor([rejected], dtype=torch.float64)
    assert discopop_loss(**sides, **settings).item() == pytest.approx(expected, abs=1e-12)
