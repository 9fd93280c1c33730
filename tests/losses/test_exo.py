import math

import numpy as np
import pytest
import torch

from alignment.losses.exo import exo_loss

from loss_tester import LossTester


def twin(*, chosen_log_ratio, rejected_log_ratio, beta, label_smoothing):
    """KL from the policy's distribution over the two completions to the label's."""
    rewards = beta * np.stack([chosen_log_ratio, rejected_log_ratio])
    policy = np.exp(rewards) / np.exp(rewards).sum(0)
    label = np.array([1 - label_smoothing, label_smoothing])[:, None]
    return (policy * np.log(policy / label)).sum(0)


TESTER = LossTester(
    loss=exo_loss,
    twin=twin,
    inputs=("chosen_log_ratio", "rejected_log_ratio"),
    settings=tuple({"beta": b, "label_smoothing": e} for b in (0.1, 1.0) for e in (0.001, 0.2)),
    low=-8.0,
    high=8.0,
)
VALUES = [
    # chosen, rejected, settings, expected
    (0.0, 0.0, {"beta": 0.1, "label_smoothing": 0.25}, 0.5 * math.log(4 / 3)),
    (math.log(3), 0.0, {"beta": 1.0, "label_smoothing": 0.25}, 0.0),
]


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(("chosen", "rejected", "settings", "expected"), VALUES)
def test_values_derived_by_hand(chosen, rejected, settings, expected):
    sides = {"chosen_log_ratio": torch.tensor([chosen], dtype=torch.float64)}
    sides["rejected_log_ratio"] = torch.tensor([rejected], dtype=torch.float64)
    assert exo_loss(**sides, **settings).item() == pytest.approx(expected, abs=1e-12)


def test_the_minimum_is_where_the_policy_says_what_the_label_says():
    chosen = torch.tensor([math.log(999)], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    exo_loss(chosen_log_ratio=chosen, rejected_log_ratio=zero, beta=1.0, label_smoothing=0.001).sum().backward()
    assert abs(chosen.grad.item()) < 1e-15
