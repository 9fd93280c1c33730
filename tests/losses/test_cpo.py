import math

import numpy as np
import pytest
import torch

from alignment.losses.cpo import cpo_loss

from loss_tester import LossTester


def twin(*, policy_chosen_sum_logps, policy_rejected_sum_logps, beta, label_smoothing):
    """Cross-entropy of a two-way softmax over beta log pi with the label's probabilities."""
    scores = beta * np.stack([policy_chosen_sum_logps, policy_rejected_sum_logps])
    log_shares = scores - np.logaddexp(*scores)
    return -(np.array([1 - label_smoothing, label_smoothing]) @ log_shares)


TESTER = LossTester(
    loss=cpo_loss,
    twin=twin,
    inputs=("policy_chosen_sum_logps", "policy_rejected_sum_logps"),
    settings=tuple({"beta": b, "label_smoothing": e} for b in (0.05, 0.1, 1.0) for e in (0.0, 0.2)),
)


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(
    ("chosen", "rejected", "beta", "smoothing", "expected"),
    [
        (-7.0, -7.0, 0.1, 0.0, math.log(2)),
        (-4.0, -7.0, 0.5, 0.0, math.log1p(math.exp(-1.5))),
        (-7.0, -4.0, 0.5, 0.0, math.log1p(math.exp(1.5))),
        (-4.0, -7.0, 0.5, 0.1, 0.9 * math.log1p(math.exp(-1.5)) + 0.1 * math.log1p(math.exp(1.5))),
    ],
)
def test_values_derived_by_hand(chosen, rejected, beta, smoothing, expected):
    one = torch.ones(1, dtype=torch.float64)
    loss = cpo_loss(
        policy_chosen_sum_logps=chosen * one,
        policy_rejected_sum_logps=rejected * one,
        beta=beta,
        label_smoothing=smoothing,
    )
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_a_uniform_reference_cancels():
    """The paper's derivation from DPO: the same log-prob is taken off both completions."""
    values = TESTER.random_inputs()
    shifted = {name: value + 42.0 for name, value in values.items()}
    for setting in TESTER.settings:
        torch.testing.assert_close(cpo_loss(**shifted, **setting), cpo_loss(**values, **setting), rtol=0, atol=1e-12)
