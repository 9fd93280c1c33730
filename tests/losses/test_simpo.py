import math

import numpy as np
import pytest
import torch

from alignment.losses.simpo import simpo_loss

from loss_tester import LossTester


def twin(*, policy_chosen_logps, policy_rejected_logps, beta, gamma):
    """Bradley-Terry's probability that the chosen reward beats the rejected one with gamma added."""
    chosen, rejected = beta * policy_chosen_logps, beta * policy_rejected_logps + gamma
    return np.logaddexp(chosen, rejected) - chosen


TESTER = LossTester(
    loss=simpo_loss,
    twin=twin,
    inputs=("policy_chosen_logps", "policy_rejected_logps"),
    settings=tuple({"beta": b, "gamma": g} for b in (0.1, 2.0, 2.5) for g in (0.0, 0.25, 1.6)),
)


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(
    ("chosen", "rejected", "beta", "gamma", "expected"),
    [
        (-1.0, -1.0, 2.0, 0.0, math.log(2)),
        (-1.0, -1.5, 2.0, 1.0, math.log(2)),  # the margin is just met
        (-1.0, -1.5, 2.0, 0.0, math.log1p(math.exp(-1.0))),
        (-1.5, -1.0, 2.0, 0.5, math.log1p(math.exp(1.5))),
    ],
)
def test_values_derived_by_hand(chosen, rejected, beta, gamma, expected):
    one = torch.ones(1, dtype=torch.float64)
    loss = simpo_loss(policy_chosen_logps=chosen * one, policy_rejected_logps=rejected * one, beta=beta, gamma=gamma)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_gradient_weighs_a_pair_by_how_far_it_is_from_the_margin():
    """The gradient on the chosen log-prob: -beta sigma(rejected reward - chosen reward + gamma)."""
    chosen = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-1.2], dtype=torch.float64)
    simpo_loss(policy_chosen_logps=chosen, policy_rejected_logps=rejected, beta=2.0, gamma=1.0).sum().backward()
    assert chosen.grad.item() == pytest.approx(-2.0 / (1 + math.exp(2.0 * 0.2 - 1.0)), abs=1e-12)
