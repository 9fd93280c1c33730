from __future__ import annotations

import numpy as np
import pytest
import torch

from alignment.advantages.ppo import gae

LENGTHS = (4, 1, 7, 2)


def twin(token_rewards, values, bootstrap_values, lengths, gamma, lam):
    """Equation 16 as a double sum over each completion, its end written out."""
    advantages, start = [], 0
    for rollout, length in enumerate(lengths):
        r = token_rewards[start : start + length]
        v = [*values[start : start + length], bootstrap_values[rollout]]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        advantages += [sum((gamma * lam) ** k * deltas[t + k] for k in range(length - t)) for t in range(length)]
        start += length
    return np.array(advantages)


def random_case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(LENGTHS)
    token_rewards, values = torch.randn(2, tokens, generator=generator, dtype=torch.float64)
    bootstrap = torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64)
    return {
        "token_rewards": token_rewards,
        "values": values,
        "bootstrap_values": bootstrap,
        "lengths": torch.tensor(LENGTHS),
    }


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.8), (0.9, 0.0), (0.0, 0.5)])
def test_twin(gamma, lam):
    case = random_case()
    advantages, returns = gae(**case, gamma=gamma, lam=lam)
    arrays = {name: value.numpy() for name, value in case.items()}
    expected = twin(**arrays, gamma=gamma, lam=lam)
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(returns.numpy(), expected + arrays["values"], rtol=1e-12, atol=1e-12)


def test_three_tokens_by_hand():
    """T25, cut off after three tokens where the critic still expects 2; gamma .9, lambda .8, gamma lambda .72.

    delta_3 = 1.0 + .9 * 2.0 - .3 = 2.5                      A_3 = 2.5
    delta_2 = -.1 + .9 * .3 - .4 = -.23                      A_2 = -.23 + .72 * 2.5 = 1.57
    delta_1 = 0. + .9 * .4 - .5 = -.14                       A_1 = -.14 + .72 * 1.57 = .9904
    """
    advantages, returns = gae(
        token_rewards=torch.tensor([0.0, -0.1, 1.0], dtype=torch.float64),
        values=torch.tensor([0.5, 0.4, 0.3], dtype=torch.float64),
        bootstrap_values=torch.tensor([2.0], dtype=torch.float64),
        lengths=torch.tensor([3]),
        gamma=0.9,
        lam=0.8,
    )
    np.testing.assert_allclose(advantages.numpy(), [0.9904, 1.57, 2.5], atol=1e-12)
    np.testing.assert_allclose(returns.numpy(), [1.4904, 1.97, 2.8], atol=1e-12)


def test_an_end_is_worth_nothing_and_a_cut_what_the_critic_says():
    """T24: one token of reward 1 and value .25; after it 0, or 4 discounted by a half."""
    for bootstrap, expected in ((0.0, 0.75), (4.0, 2.75)):
        advantages, _ = gae(
            token_rewards=torch.tensor([1.0]),
            values=torch.tensor([0.25]),
            bootstrap_values=torch.tensor([bootstrap]),
            lengths=torch.tensor([1]),
            gamma=0.5,
            lam=0.9,
        )
        assert advantages.tolist() == [expected]


def test_without_discount_the_advantage_is_the_return_minus_the_value():
    """Equation 18 with gamma 1: the rewards still to come, the bootstrap, minus V."""
    case = random_case()
    advantages, returns = gae(**case, gamma=1.0, lam=1.0)
    expected, start = [], 0
    for length, bootstrap in zip(LENGTHS, case["bootstrap_values"], strict=True):
        rewards = case["token_rewards"][start : start + length]
        expected.append(rewards.flip(0).cumsum(0).flip(0) + bootstrap)
        start += length
    torch.testing.assert_close(returns, torch.cat(expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(advantages, torch.cat(expected) - case["values"], rtol=0, atol=1e-12)


def test_a_perfect_critic_leaves_no_advantage():
    """Rewards .5 a token and 1 at the end, and a critic that knows it, for any lambda."""
    rewards = torch.tensor([0.5, 0.5, 1.5, 0.5, 1.5], dtype=torch.float64)
    values = torch.tensor([2.5, 2.0, 1.5, 2.0, 1.5], dtype=torch.float64)
    for lam in (0.0, 0.5, 1.0):
        advantages, returns = gae(
            token_rewards=rewards,
            values=values,
            bootstrap_values=torch.zeros(2, dtype=torch.float64),
            lengths=torch.tensor([3, 2]),
            gamma=1.0,
            lam=lam,
        )
        torch.testing.assert_close(advantages, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(returns, values, rtol=0, atol=1e-12)


def test_a_completion_does_not_know_the_others():
    case = random_case()
    whole = gae(**case, gamma=0.9, lam=0.8)
    third = slice(5, 12)
    alone = gae(
        token_rewards=case["token_rewards"][third],
        values=case["values"][third],
        bootstrap_values=case["bootstrap_values"][2:3],
        lengths=case["lengths"][2:3],
        gamma=0.9,
        lam=0.8,
    )
    for of_all, of_one in zip(whole, alone, strict=True):
        torch.testing.assert_close(of_all[third], of_one, rtol=0, atol=0)


@pytest.mark.parametrize(("lengths", "says"), [([3, 0], "at least one"), ([2, 2], "4 tokens together, but 3")])
def test_lengths_that_do_not_fit_are_refused(lengths, says):
    with pytest.raises(ValueError, match=says):
        gae(
            token_rewards=torch.zeros(3),
            values=torch.zeros(3),
            bootstrap_values=torch.zeros(2),
            lengths=torch.tensor(lengths),
            gamma=1.0,
            lam=1.0,
        )
