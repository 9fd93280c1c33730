"""Advantage and loss together against the gradient of the expected reward, which can be enumerated (E4).

A policy writes three tokens of a vocabulary of four, each from a softmax over its own logits for every prefix: 64
completions, 84 parameters, any reward.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from alignment.advantages.grpo import group_advantages
from alignment.advantages.ppo import gae
from alignment.advantages.reinforce_pp import token_returns
from alignment.advantages.rloo import leave_one_out
from alignment.advantages.token_rewards import terminal_rewards
from alignment.losses.policy_gradient import cispo_loss, clipped_ratio_loss, reinforce_loss

SYMBOLS, TOKENS = 4, 3
COMPLETIONS = torch.tensor(list(product(range(SYMBOLS), repeat=TOKENS)))
COUNT = len(COMPLETIONS)
NUM_PREFIXES = 1 + SYMBOLS + SYMBOLS**2
#: The row of logits from which each token is drawn, and the state before it: [completions, tokens].
PREFIXES = torch.stack(
    [
        torch.zeros(COUNT, dtype=torch.long),
        1 + COMPLETIONS[:, 0],
        1 + SYMBOLS + SYMBOLS * COMPLETIONS[:, 0] + COMPLETIONS[:, 1],
    ],
    dim=1,
)
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 0.7 * torch.randn(NUM_PREFIXES, SYMBOLS, generator=GENERATOR, dtype=torch.float64)
REWARDS = torch.randn(COUNT, generator=GENERATOR, dtype=torch.float64) + 1.0
LENGTHS = torch.full((COUNT,), TOKENS)


def token_logps(logits: Tensor) -> Tensor:
    """Of every completion's tokens: [completions, tokens]."""
    return logits.log_softmax(-1)[PREFIXES, COMPLETIONS]


def gradient(objective: Callable[[Tensor], Tensor]) -> Tensor:
    """With respect to the logits; the objective is of all completions' token log-probs."""
    logits = LOGITS.clone().requires_grad_()
    objective(token_logps(logits)).backward()
    assert logits.grad is not None
    return logits.grad


OLD = token_logps(LOGITS)
PROBABILITIES = OLD.sum(1).exp()
EXACT = gradient(lambda logps: -(logps.sum(1).exp() * REWARDS).sum())


def per_sequence(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A completion is one action: [completions, tokens] -> [completions]."""
    return lambda logps, old, advantages: loss(policy_logps=logps.sum(1), old_logps=old.sum(1), advantages=advantages)


def per_token(loss: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Each token is one, and a completion's share is the sum."""

    def of_completions(logps: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
        items = advantages[:, None].expand(logps.shape) if advantages.dim() == 1 else advantages
        flat = {"policy_logps": logps.flatten(), "old_logps": old.flatten(), "advantages": items.flatten()}
        return loss(**flat).view(logps.shape).sum(1)

    return of_completions


def clipped(**items: Tensor) -> Tensor:
    return clipped_ratio_loss(**items, clip_low=0.2, clip_high=0.2, dual_clip=3.0)


def cispo(**items: Tensor) -> Tensor:
    return cispo_loss(**items, clip_low=None, clip_high=0.3)


LOSSES = {
    "reinforce, sequences": per_sequence(reinforce_loss),
    "reinforce, tokens": per_token(reinforce_loss),
    "clipped, sequences": per_sequence(clipped),
    "clipped, tokens": per_token(clipped),
    "cispo, tokens": per_token(cispo),
}
each_loss = pytest.mark.parametrize("loss", list(LOSSES.values()), ids=list(LOSSES))


def assert_exact(found: Tensor, expected: Tensor = EXACT) -> None:
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@each_loss
@pytest.mark.parametrize("baseline", [0.0, 1.3])
def test_with_a_constant_baseline(loss, baseline):
    """REINFORCE, and every loss on its own samples, over all 64 completions."""
    assert_exact(gradient(lambda logps: (PROBABILITIES * loss(logps, OLD, REWARDS - baseline)).sum()))


def test_reinforce_is_exact_for_samples_of_another_policy_too():
    other = token_logps(LOGITS.flip(0))
    loss = LOSSES["reinforce, sequences"]
    assert_exact(gradient(lambda logps: (other.sum(1).exp() * loss(logps, other, REWARDS)).sum()))


def all_pairs(advantages: Callable[..., Tensor], loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """The expected gradient of a group of two, over all 4096 of them."""
    places = torch.cartesian_prod(torch.arange(COUNT), torch.arange(COUNT))
    weights = PROBABILITIES[places].prod(1)
    of_groups = advantages(rewards=REWARDS[places])
    return gradient(
        lambda logps: sum(
            (weights * loss(logps[places[:, i]], OLD[places[:, i]], of_groups[:, i])).sum() / 2 for i in range(2)
        )
    )


@each_loss
def test_leave_one_out_is_unbiased(loss):
    assert_exact(all_pairs(leave_one_out, loss))


def test_a_baseline_that_knows_the_sample_shrinks_the_gradient():
    """The group's mean holds the sample itself: (G - 1) / G of the gradient, half of it for two (Dr. GRPO)."""
    found = all_pairs(lambda rewards: group_advantages(rewards=rewards, scale="none"), LOSSES["clipped, tokens"])
    assert_exact(found, EXACT / 2)


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_scaling_changes_the_gradient(scale):
    found = all_pairs(lambda rewards: group_advantages(rewards=rewards, scale=scale), LOSSES["clipped, tokens"])
    assert (found - EXACT).abs().max() > 0.01


@pytest.mark.parametrize("loss", [LOSSES["reinforce, tokens"], LOSSES["clipped, tokens"]])
def test_any_critic_is_a_baseline(loss):
    """T25: what a critic says of the state BEFORE a token leaves the expected gradient as it is, right or wrong."""
    critic = torch.randn(NUM_PREFIXES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    advantages, returns = gae(
        token_rewards=terminal_rewards(rewards=REWARDS, lengths=LENGTHS),
        values=critic[PREFIXES].flatten(),
        bootstrap_values=torch.zeros(COUNT, dtype=torch.float64),
        lengths=LENGTHS,
        gamma=1.0,
        lam=1.0,
    )
    assert_exact(gradient(lambda logps: (PROBABILITIES * loss(logps, OLD, advantages.view(COUNT, TOKENS))).sum()))
    torch.testing.assert_close(returns, REWARDS.repeat_interleave(TOKENS), rtol=0, atol=1e-12)


def test_a_critic_that_sees_the_token_is_no_baseline():
    """What the test above guards against: the value of the state after each token."""
    critic = torch.randn(NUM_PREFIXES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    states = critic[PREFIXES]
    late = torch.cat([states[:, 1:], states[:, :1]], dim=1)
    advantages = REWARDS[:, None] - late
    found = gradient(lambda logps: (PROBABILITIES * LOSSES["clipped, tokens"](logps, OLD, advantages)).sum())
    assert (found - EXACT).abs().max() > 0.05


@pytest.mark.parametrize("lam", [0.0, 0.6])
def test_a_perfect_critic_may_be_trusted(lam):
    """With the true values of the states any lambda is unbiased."""
    critic = torch.zeros(NUM_PREFIXES, dtype=torch.float64)
    for prefix in range(NUM_PREFIXES):
        reached = PREFIXES.eq(prefix).any(1)
        critic[prefix] = (PROBABILITIES * REWARDS)[reached].sum() / PROBABILITIES[reached].sum()
    advantages, _ = gae(
        token_rewards=terminal_rewards(rewards=REWARDS, lengths=LENGTHS),
        values=critic[PREFIXES].flatten(),
        bootstrap_values=torch.zeros(COUNT, dtype=torch.float64),
        lengths=LENGTHS,
        gamma=1.0,
        lam=lam,
    )
    loss = LOSSES["clipped, tokens"]
    assert_exact(gradient(lambda logps: (PROBABILITIES * loss(logps, OLD, advantages.view(COUNT, TOKENS))).sum()))


def test_returns_of_rewards_on_every_token():
    """A penalty -l on each token and the score at the end: each token answers for what follows it only."""
    reference = token_logps(LOGITS.roll(1, 0))
    rewards = terminal_rewards(rewards=REWARDS, lengths=LENGTHS).view(COUNT, TOKENS) - 0.3 * (OLD - reference)
    returns = token_returns(token_rewards=rewards.flatten(), lengths=LENGTHS, gamma=1.0).view(COUNT, TOKENS)
    found = gradient(lambda logps: (PROBABILITIES * LOSSES["clipped, tokens"](logps, OLD, returns)).sum())

    def regularised(logps: Tensor) -> Tensor:
        """E[R] - .3 KL(policy || reference), differentiated whole."""
        return -(logps.sum(1).exp() * (REWARDS - 0.3 * (logps - reference).sum(1))).sum()

    assert_exact(found, gradient(regularised))


@pytest.mark.parametrize(
    ("advantages", "loss", "expected"),
    [
        (leave_one_out, LOSSES["reinforce, sequences"], EXACT),
        (leave_one_out, LOSSES["clipped, tokens"], EXACT),
        # Groups of four without leaving one out: three quarters.
        (lambda rewards: group_advantages(rewards=rewards, scale="none"), LOSSES["clipped, tokens"], 0.75 * EXACT),
    ],
    ids=["RLOO", "first PPO step", "Dr. GRPO"],
)
def test_sampled_gradients_lie_around_the_enumerated_one(advantages, loss, expected):
    """20,000 samples in groups of four: within 3 standard errors in each of the parameters."""
    groups, samples = 5000, 4
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(PROBABILITIES, groups * samples, replacement=True, generator=generator)
    of_groups = advantages(rewards=REWARDS[drawn].view(groups, samples))
    logps = OLD[drawn].requires_grad_()
    (loss(logps, OLD[drawn], of_groups.flatten()).sum() / samples).backward()
    # d loss / d logits of each group, through the derivative of every completion's token log-probs.
    jacobian = torch.autograd.functional.jacobian(token_logps, LOGITS)
    per_completion = torch.einsum("nt,ntps->nps", logps.grad, jacobian[drawn])
    per_group = per_completion.view(groups, samples, NUM_PREFIXES, SYMBOLS).sum(1)
    errors = per_group.std(0) / groups**0.5
    assert ((per_group.mean(0) - expected).abs() / errors).max() < 3
    # Sharp enough to tell a gradient that is a fifth too small.
    assert (expected.abs() / errors).max() > 15
