import math

import numpy as np
import pytest
import torch

from alignment.losses.orpo import log_odds, orpo_loss

from loss_tester import LossTester

INPUTS = ("policy_chosen_mean_logps", "policy_rejected_mean_logps")


def twin(*, policy_chosen_mean_logps, policy_rejected_mean_logps):
    """Equation 7 in probabilities: the chosen odds' share of both odds."""
    chosen, rejected = np.exp(policy_chosen_mean_logps), np.exp(policy_rejected_mean_logps)
    chosen_odds, rejected_odds = chosen / (1 - chosen), rejected / (1 - rejected)
    return np.log((chosen_odds + rejected_odds) / chosen_odds)


#: A mean a token below -5 nats is worse than chance over a small vocabulary.
TESTER = LossTester(loss=orpo_loss, twin=twin, inputs=INPUTS, settings=({},), low=-5.0, high=-0.05)


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [(0.5, 0.5, math.log(2)), (0.5, 0.2, math.log(1.25)), (0.2, 0.5, math.log(5)), (0.9, 0.1, math.log(82 / 81))],
)
def test_values_derived_by_hand(chosen, rejected, expected):
    """Odds of 1/2, 1/5, 9/10 and 1/10 are 1, 1/4, 9 and 1/9."""
    logps = [torch.tensor([p], dtype=torch.float64).log() for p in (chosen, rejected)]
    loss = orpo_loss(policy_chosen_mean_logps=logps[0], policy_rejected_mean_logps=logps[1])
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("mean_logp", [-1.3e-4, -3.7e-9, -2.9e-12])
def test_near_certainty_the_odds_keep_their_digits(mean_logp):
    """T30: the plain log(1 - exp(M)) has lost most of them there."""
    value = log_odds(mean_logps=torch.tensor([mean_logp], dtype=torch.float64))
    # The series of log(p / (1 - p)) about p = 1, with x = -log p.
    x = -mean_logp
    assert value.item() == pytest.approx(-math.log(x) - x / 2 - x * x / 24, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("certain", [-1e-4, -1e-8, -1e-12, -1e-17, 0.0, 1e-7])
@pytest.mark.parametrize("side", [0, 1])
def test_certainty_is_finite(dtype, certain, side):
    """T30: value and gradient, whichever side is certain; rounding may even put a log-prob above 0."""
    logps = [torch.tensor([certain if side == place else -1.0], dtype=dtype, requires_grad=True) for place in (0, 1)]
    loss = orpo_loss(policy_chosen_mean_logps=logps[0], policy_rejected_mean_logps=logps[1])
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(value.grad).all() for value in logps)
    # A certain chosen side is all that is asked for; a certain rejected side costs about its log-odds.
    floor = -math.log(torch.finfo(dtype).eps)
    assert (loss.item() < 1e-3) if side == 0 else (9 < loss.item() < floor + 1)


def test_gradient_through_log_probs_of_tokens_is_finite_at_certainty():
    """A softmax that has saturated in fp32 gives log-probs of exactly 0."""
    logits = torch.tensor([[40.0, 0.0], [0.0, 0.1]], requires_grad=True)
    logps = logits.log_softmax(-1)[:, 0]
    assert logps[0].item() == 0.0
    orpo_loss(policy_chosen_mean_logps=logps[1:], policy_rejected_mean_logps=logps[:1]).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_gradient_of_the_log_odds():
    """d log odds / d M = 1 / (1 - p), the paper's equation 10."""
    probabilities = torch.tensor([0.1, 0.5, 0.99], dtype=torch.float64)
    logps = probabilities.log().requires_grad_()
    log_odds(mean_logps=logps).sum().backward()
    torch.testing.assert_close(logps.grad, 1 / (1 - probabilities), rtol=1e-12, atol=0)
