import math

import numpy as np
import pytest
import torch

from alignment.losses.dpo import dpo_loss

from loss_tester import LossTester

ARGUMENTS = (
    "policy_chosen_sum_logps",
    "policy_rejected_sum_logps",
    "reference_chosen_sum_logps",
    "reference_rejected_sum_logps",
)


def twin(
    *,
    policy_chosen_sum_logps,
    policy_rejected_sum_logps,
    reference_chosen_sum_logps,
    reference_rejected_sum_logps,
    beta,
    label_smoothing,
):
    """Cross-entropy of the Bradley-Terry model whose reward is beta log(pi / pi_ref)."""
    reward_w = beta * (policy_chosen_sum_logps - reference_chosen_sum_logps)
    reward_l = beta * (policy_rejected_sum_logps - reference_rejected_sum_logps)
    top = np.maximum(reward_w, reward_l)
    log_normaliser = top + np.log(np.exp(reward_w - top) + np.exp(reward_l - top))
    return -(1 - label_smoothing) * (reward_w - log_normaliser) - label_smoothing * (reward_l - log_normaliser)


TESTER = LossTester(
    loss=dpo_loss,
    twin=twin,
    inputs=ARGUMENTS,
    settings=tuple({"beta": b, "label_smoothing": e} for b in (0.05, 0.1, 1.0) for e in (0.0, 0.2)),
)


def test_proofs():
    TESTER.check_all()


def _pair(chosen: float, rejected: float, *, beta: float, label_smoothing: float = 0.0) -> float:
    zero = torch.zeros(1, dtype=torch.float64)
    loss = dpo_loss(
        policy_chosen_sum_logps=zero + chosen,
        policy_rejected_sum_logps=zero + rejected,
        reference_chosen_sum_logps=zero,
        reference_rejected_sum_logps=zero,
        beta=beta,
        label_smoothing=label_smoothing,
    )
    return loss.item()


@pytest.mark.parametrize(
    ("chosen", "rejected", "beta", "smoothing", "expected"),
    [
        (0.0, 0.0, 0.1, 0.0, math.log(2)),
        (2.0, -1.0, 0.5, 0.0, math.log1p(math.exp(-1.5))),
        (-1.0, 2.0, 0.5, 0.0, math.log1p(math.exp(1.5))),
        (2.0, -1.0, 0.5, 0.1, 0.9 * math.log1p(math.exp(-1.5)) + 0.1 * math.log1p(math.exp(1.5))),
    ],
)
def test_values_derived_by_hand(chosen, rejected, beta, smoothing, expected):
    assert _pair(chosen, rejected, beta=beta, label_smoothing=smoothing) == pytest.approx(expected, abs=1e-12)


def test_gradient_weighs_a_pair_by_how_wrong_it_is():
    """Equation 7's gradient: -beta sigma(rejected reward - chosen reward) on the chosen log-prob."""
    chosen = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    loss = dpo_loss(
        policy_chosen_sum_logps=chosen,
        policy_rejected_sum_logps=zero,
        reference_chosen_sum_logps=zero,
        reference_rejected_sum_logps=zero,
        beta=0.2,
        label_smoothing=0.0,
    )
    loss.sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.2 / (1 + math.exp(0.2 * 1.5)), abs=1e-12)
