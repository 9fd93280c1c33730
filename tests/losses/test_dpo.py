import math

import numpy as np
import pytest
import torch

from alignment.losses.dpo import dpo_loss

from loss_tester import LossTester


def twin(*, chosen_log_ratio, rejected_log_ratio, beta, label_smoothing):
    """Cross-entropy of the Bradley-Terry model whose reward is beta log(pi / pi_ref)."""
    reward_w, reward_l = beta * chosen_log_ratio, beta * rejected_log_ratio
    top = np.maximum(reward_w, reward_l)
    log_normaliser = top + np.log(np.exp(reward_w - top) + np.exp(reward_l - top))
    return -(1 - label_smoothing) * (reward_w - log_normaliser) - label_smoothing * (reward_l - log_normaliser)


TESTER = LossTester(
    loss=dpo_loss,
    twin=twin,
    inputs=("chosen_log_ratio", "rejected_log_ratio"),
    settings=tuple({"beta": b, "label_smoothing": e} for b in (0.05, 0.1, 1.0) for e in (0.0, 0.2)),
    low=-8.0,
    high=8.0,
)
VALUES = [
    # chosen, rejected, settings, expected
    (0.0, 0.0, {"beta": 0.1, "label_smoothing": 0.0}, math.log(2)),
    (2.0, -1.0, {"beta": 0.5, "label_smoothing": 0.0}, math.log1p(math.exp(-1.5))),
    (-1.0, 2.0, {"beta": 0.5, "label_smoothing": 0.0}, math.log1p(math.exp(1.5))),
    (
        2.0,
        -1.0,
        {"beta": 0.5, "label_smoothing": 0.1},
        0.9 * math.log1p(math.exp(-1.5)) + 0.1 * math.log1p(math.exp(1.5)),
    ),
]


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(("chosen", "rejected", "settings", "expected"), VALUES)
def test_values_derived_by_hand(chosen, rejected, settings, expected):
    sides = {"chosen_log_ratio": torch.tensor([chosen], dtype=torch.float64)}
    sides["rejected_log_ratio"] = torch.tensor([rejected], dtype=torch.float64)
    assert dpo_loss(**sides, **settings).item() == pytest.approx(expected, abs=1e-12)


def test_gradient_weighs_a_pair_by_how_wrong_it_is():
    """Equation 7's gradient: -beta sigma(rejected reward - chosen reward) on the chosen log-prob."""
    chosen = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    dpo_loss(chosen_log_ratio=chosen, rejected_log_ratio=zero, beta=0.2, label_smoothing=0.0).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.2 / (1 + math.exp(0.2 * 1.5)), abs=1e-12)
