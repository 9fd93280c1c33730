"""The estimators against a KL that is known in closed form, and their expected gradients by enumeration (T20)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignment.losses.policy_gradient import reinforce_loss
from alignment.ops.kl import k1, k2, k3, k3_importance

POLICY = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
OLD = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
KL = (POLICY * (POLICY / REFERENCE).log()).sum()


def gradient(objective: Callable[[Tensor], Tensor]) -> Tensor:
    """With respect to the logits of a softmax policy; the objective is of its log-probs of every outcome."""
    logits = POLICY.log().clone().requires_grad_()
    objective(logits.log_softmax(0)).backward()
    assert logits.grad is not None
    return logits.grad


def reverse_kl(policy_logps: Tensor) -> Tensor:
    """KL(policy || reference), the sum over all outcomes."""
    return (policy_logps.exp() * (policy_logps - REFERENCE.log())).sum()


def forward_kl(policy_logps: Tensor) -> Tensor:
    """KL(reference || policy)."""
    return (REFERENCE * (REFERENCE.log() - policy_logps)).sum()


def test_k1_and_k3_are_unbiased():
    log_ratio = (POLICY / REFERENCE).log()
    torch.testing.assert_close((POLICY * k1(log_ratio)).sum(), KL)
    torch.testing.assert_close((POLICY * k3(log_ratio)).sum(), KL)


def test_values_by_hand():
    """Policy .6, reference .2, old .4. l = ln 3; k2 = l^2 / 2; k3 = 1/3 - 1 + ln 3; times .6 / .4 = 1.5."""
    log_ratio = torch.tensor(3.0, dtype=torch.float64).log()
    assert k2(log_ratio).item() == pytest.approx(1.0986122886681098**2 / 2, abs=1e-12)
    assert k3(log_ratio).item() == pytest.approx(1.0986122886681098 - 2 / 3, abs=1e-12)
    importance = torch.tensor(1.5, dtype=torch.float64).log()
    value = k3_importance(log_ratio=log_ratio, importance_log_ratio=importance)
    assert value.item() == pytest.approx(1.5 * (1.0986122886681098 - 2 / 3), abs=1e-12)


def test_k3_with_importance_is_unbiased_for_samples_of_an_older_policy():
    log_ratio, importance = (POLICY / REFERENCE).log(), (POLICY / OLD).log()
    values = k3_importance(log_ratio=log_ratio, importance_log_ratio=importance)
    torch.testing.assert_close((OLD * values).sum(), KL, rtol=1e-12, atol=0)
    # Without the weight it is another number: the test could fail.
    assert abs((OLD * k3(log_ratio)).sum() - KL) > 0.01


def test_k2_and_k3_are_never_negative():
    log_ratio = torch.linspace(-5, 5, 101, dtype=torch.float64)
    assert (k2(log_ratio) >= 0).all()
    assert (k3(log_ratio) >= 0).all()
    assert (k3_importance(log_ratio=log_ratio, importance_log_ratio=log_ratio.flip(0)) >= 0).all()


def test_k3_keeps_its_digits_near_equal_policies():
    """k3 = l^2/2 - l^3/6 + ...: with l = 1e-4 in float64, 4.99983e-9; exp(-l) - 1 written out loses half of them."""
    log_ratio = torch.tensor(1e-4, dtype=torch.float64)
    assert k3(log_ratio).item() == pytest.approx(1e-8 / 2 - 1e-12 / 6 + 1e-16 / 24, rel=1e-8)


@pytest.mark.parametrize(("estimator", "divergence"), [(k2, reverse_kl), (k3, forward_kl)])
def test_gradient_of_the_bare_estimator_as_a_loss(estimator, divergence):
    """k2's is reverse KL's; k3's is forward KL's (docs of the objectives)."""
    found = gradient(lambda logps: (POLICY * estimator(logps - REFERENCE.log())).sum())
    torch.testing.assert_close(found, gradient(divergence), rtol=0, atol=1e-12)


def test_forward_and_reverse_kl_have_other_gradients():
    """What tells the two cases above from each other."""
    assert (gradient(forward_kl) - gradient(reverse_kl)).abs().max() > 0.05


def test_gradient_of_k1_as_a_loss_is_zero():
    found = gradient(lambda logps: (POLICY * k1(logps - REFERENCE.log())).sum())
    torch.testing.assert_close(found, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", [POLICY, OLD], ids=["on-policy", "off-policy"])
def test_gradient_of_k3_with_importance_is_reverse_kls(sampler):
    """Also where the importance ratio is 1: its own gradient is what counts."""
    found = gradient(
        lambda logps: (
            sampler * k3_importance(log_ratio=logps - REFERENCE.log(), importance_log_ratio=logps - sampler.log())
        ).sum()
    )
    torch.testing.assert_close(found, gradient(reverse_kl), rtol=0, atol=1e-12)


def test_a_held_importance_ratio_leaves_k3s_gradient_as_it_was():
    """The weight must be differentiated: as a constant it gives forward KL's gradient again."""
    found = gradient(
        lambda logps: (
            OLD * k3_importance(log_ratio=logps - REFERENCE.log(), importance_log_ratio=logps.detach() - OLD.log())
        ).sum()
    )
    torch.testing.assert_close(found, gradient(forward_kl), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", [POLICY, OLD], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_gradient_of_k1_in_the_reward_is_reverse_kls(sampler, baseline):
    """R = -k1, held fixed, pushed by REINFORCE; any constant baseline leaves the expectation as it is."""
    rewards = -k1((POLICY / REFERENCE).log()) - baseline
    found = gradient(
        lambda logps: (sampler * reinforce_loss(policy_logps=logps, old_logps=sampler.log(), advantages=rewards)).sum()
    )
    torch.testing.assert_close(found, gradient(reverse_kl), rtol=0, atol=1e-12)


def test_float64_gradients():
    generator = torch.Generator().manual_seed(0)
    log_ratio, importance = (
        torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    assert torch.autograd.gradcheck(k2, (log_ratio,))
    assert torch.autograd.gradcheck(k3, (log_ratio,))
    assert torch.autograd.gradcheck(
        lambda left, right: k3_importance(log_ratio=left, importance_log_ratio=right), (log_ratio, importance)
    )
