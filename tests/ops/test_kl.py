"""The estimators against a KL that is known in closed form."""

from __future__ import annotations

import pytest
import torch

from alignment.ops.kl import k1, k2, k3

POLICY = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
KL = (POLICY * (POLICY / REFERENCE).log()).sum()


def test_k1_and_k3_are_unbiased():
    log_ratio = (POLICY / REFERENCE).log()
    torch.testing.assert_close((POLICY * k1(log_ratio)).sum(), KL)
    torch.testing.assert_close((POLICY * k3(log_ratio)).sum(), KL)


def test_k2_and_k3_are_never_negative():
    log_ratio = torch.linspace(-5, 5, 101, dtype=torch.float64)
    assert (k2(log_ratio) >= 0).all()
    assert (k3(log_ratio) >= 0).all()


@pytest.mark.parametrize(("estimator", "direction"), [(k2, "reverse"), (k3, "forward")])
def test_gradient_of_the_bare_estimator_as_a_loss(estimator, direction):
    """k2's is reverse KL's; k3's is forward KL's (docs of the objectives)."""
    logits = POLICY.log().clone().requires_grad_()
    log_policy = logits.log_softmax(0)
    (POLICY * estimator(log_policy - REFERENCE.log())).sum().backward()
    other = POLICY.log().clone().requires_grad_()
    log_p = other.log_softmax(0)
    if direction == "reverse":
        (log_p.exp() * (log_p - REFERENCE.log())).sum().backward()
    else:
        (REFERENCE * (REFERENCE.log() - log_p)).sum().backward()
    torch.testing.assert_close(logits.grad, other.grad)


def test_gradient_of_k1_as_a_loss_is_zero():
    logits = POLICY.log().clone().requires_grad_()
    (POLICY * k1(logits.log_softmax(0) - REFERENCE.log())).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
