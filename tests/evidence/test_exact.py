"""Small worlds in which the optimum of a loss is known in closed form: the losses go there."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignment.losses.dpo import dpo_loss
from alignment.losses.ipo import ipo_loss


def minimise(loss: Callable[[Tensor], Tensor], *, answers: int, steps: int) -> Tensor:
    """Minimises a loss of log-probs over a softmax by L-BFGS in float64; returns the probabilities."""
    logits = torch.zeros(answers, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=steps, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits.log_softmax(0))
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().softmax(0)


@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_dpo_on_the_whole_population_is_the_closed_form(beta):
    """E2: with every Bradley-Terry preference in its proportion, pi = pi_ref exp(r / beta) / Z (DPO paper, eq. 4)."""
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(6, generator=generator, dtype=torch.float64)
    reference = torch.randn(6, generator=generator, dtype=torch.float64).log_softmax(0)
    pairs = torch.tensor(list(itertools.permutations(range(6), 2)))
    chosen, rejected = pairs.T
    share = (rewards[chosen] - rewards[rejected]).sigmoid() * (reference[chosen] + reference[rejected]).exp()

    def population(logps: Tensor) -> Tensor:
        ratios = logps - reference
        losses = dpo_loss(
            chosen_log_ratio=ratios[chosen], rejected_log_ratio=ratios[rejected], beta=beta, label_smoothing=0.0
        )
        return (share * losses).sum()

    got = minimise(population, answers=6, steps=2000)
    expected = (reference + rewards / beta).softmax(0)
    assert (got - expected).abs().sum() / 2 <= 1e-6
    assert (got - reference.exp()).abs().sum() / 2 > 0.1


@pytest.mark.parametrize(("tau", "expected"), [(0.1, 0.99331), (0.5, 0.73106), (1.0, 0.62246)])
def test_one_deterministic_pair(tau, expected):
    """E1: IPO stops at sigma(1 / (2 tau)); DPO, at any beta, goes on to certainty."""
    reference = torch.full((2,), 0.5, dtype=torch.float64).log()

    def ipo(logps: Tensor) -> Tensor:
        return ipo_loss(
            policy_chosen_logps=logps[:1],
            policy_rejected_logps=logps[1:],
            reference_chosen_logps=reference[:1],
            reference_rejected_logps=reference[1:],
            tau=tau,
        ).sum()

    def dpo(logps: Tensor) -> Tensor:
        ratios = logps - reference
        return dpo_loss(chosen_log_ratio=ratios[:1], rejected_log_ratio=ratios[1:], beta=tau, label_smoothing=0.0).sum()

    assert minimise(ipo, answers=2, steps=500)[0].item() == pytest.approx(expected, abs=1e-3)
    assert minimise(dpo, answers=2, steps=500)[0].item() >= 0.999
