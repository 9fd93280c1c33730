import math

import numpy as np
import pytest
import torch

from alignment.losses.bco import bco_loss

from loss_tester import LossTester


def twin(*, chosen_log_ratio, rejected_log_ratio, beta, reward_shift):
    """Binary cross-entropy of a classifier whose logit is the shifted reward."""

    def says_chosen(log_ratio):
        return 1 / (1 + np.exp(-(beta * log_ratio - reward_shift)))

    return -np.log(says_chosen(chosen_log_ratio)) - np.log(1 - says_chosen(rejected_log_ratio))


TESTER = LossTester(
    loss=bco_loss,
    twin=twin,
    inputs=("chosen_log_ratio", "rejected_log_ratio"),
    settings=tuple({"beta": b, "reward_shift": d} for b in (0.1, 1.0) for d in (0.0, -0.7)),
    low=-8.0,
    high=8.0,
)
VALUES = [
    # chosen, rejected, settings, expected
    (0.0, 0.0, {"beta": 0.1, "reward_shift": 0.0}, 2 * math.log(2)),
    (3.0, 1.0, {"beta": 1.0, "reward_shift": 2.0}, 2 * math.log1p(math.exp(-1))),
]


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(("chosen", "rejected", "settings", "expected"), VALUES)
def test_values_derived_by_hand(chosen, rejected, settings, expected):
    sides = {"chosen_log_ratio": torch.tensor([chosen], dtype=torch.float64)}
    sides["rejected_log_ratio"] = torch.tensor([rejected], dtype=torch.float64)
    assert bco_loss(**sides, **settings).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("reward_shift", [-2.0, 0.0, 0.5])
def test_it_bounds_dpos_loss_from_above(reward_shift):
    """The paper's theorem, for any shift."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 100, generator=generator, dtype=torch.float64) * 3
    loss = bco_loss(chosen_log_ratio=chosen, rejected_log_ratio=rejected, beta=1.0, reward_shift=reward_shift)
    assert (loss > -torch.nn.functional.logsigmoid(chosen - rejected)).all()
