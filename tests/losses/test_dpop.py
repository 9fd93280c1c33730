import math

import numpy as np
import pytest
import torch

from alignment.losses.dpop import dpop_loss

from loss_tester import LossTester


def twin(*, chosen_log_ratio, rejected_log_ratio, beta, penalty):
    fell = np.where(chosen_log_ratio < 0, -chosen_log_ratio, 0)
    return np.logaddexp(0, -beta * (chosen_log_ratio - rejected_log_ratio - penalty * fell))


TESTER = LossTester(
    loss=dpop_loss,
    twin=twin,
    inputs=("chosen_log_ratio", "rejected_log_ratio"),
    settings=tuple({"beta": b, "penalty": p} for b in (0.1, 0.3) for p in (0.5, 50.0)),
    low=-8.0,
    high=8.0,
)
VALUES = [
    # chosen, rejected, settings, expected
    (0.0, 0.0, {"beta": 0.3, "penalty": 50.0}, math.log(2)),
    (1.0, 0.0, {"beta": 1.0, "penalty": 2.0}, math.log1p(math.exp(-1))),
    (-1.0, -2.0, {"beta": 1.0, "penalty": 2.0}, math.log1p(math.exp(1))),
]


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(("chosen", "rejected", "settings", "expected"), VALUES)
def test_values_derived_by_hand(chosen, rejected, settings, expected):
    sides = {"chosen_log_ratio": torch.tensor([chosen], dtype=torch.float64)}
    sides["rejected_log_ratio"] = torch.tensor([rejected], dtype=torch.float64)
    assert dpop_loss(**sides, **settings).item() == pytest.approx(expected, abs=1e-12)


def test_a_chosen_completion_below_its_reference_is_pulled_harder():
    slopes = []
    for value in (0.1, -0.1):
        chosen = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        rejected = torch.tensor([value], dtype=torch.float64)
        dpop_loss(chosen_log_ratio=chosen, rejected_log_ratio=rejected, beta=0.3, penalty=5.0).sum().backward()
        slopes.append(chosen.grad.item())
    below = 1 / (1 + math.exp(-0.3 * 0.5))  # the penalty alone: the margin is 0
    assert slopes == pytest.approx([-0.3 / 2, -0.3 * 6 * below], abs=1e-12)
