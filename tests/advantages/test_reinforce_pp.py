from __future__ import annotations

import numpy as np
import pytest
import torch

from alignment.advantages.moments import whitened
from alignment.advantages.reinforce_pp import group_centred, token_returns
from alignment.advantages.token_rewards import terminal_rewards

LENGTHS = (4, 1, 7, 2)
TOKENS = sum(LENGTHS)


def random_tokens(count=TOKENS):
    return torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_returns_agree_with_their_twin(gamma):
    rewards = random_tokens()
    expected, start = [], 0
    for length in LENGTHS:
        end = start + length
        expected += [sum(gamma ** (k - t) * rewards[k].item() for k in range(t, end)) for t in range(start, end)]
        start = end
    found = token_returns(token_rewards=rewards, lengths=torch.tensor(LENGTHS), gamma=gamma)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_returns_by_hand():
    """A score of 4 at the end and a penalty of 1 a token, gamma .5: 3, -1 + 1.5, -1 + .25; and a completion of one."""
    rewards = torch.tensor([-1.0, -1.0, 3.0, 5.0])
    found = token_returns(token_rewards=rewards, lengths=torch.tensor([3, 1]), gamma=0.5)
    assert found.tolist() == [-0.75, 0.5, 3.0, 5.0]


def test_returns_of_nothing():
    assert token_returns(token_rewards=torch.zeros(0), lengths=torch.zeros(0, dtype=torch.long), gamma=1.0).shape == (
        0,
    )


def test_an_undiscounted_score_is_the_return_of_every_token():
    rewards, lengths = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([3, 1, 2])
    paid = terminal_rewards(rewards=rewards, lengths=lengths)
    assert paid.tolist() == [0.0, 0.0, 2.0, -1.0, 0.0, 0.5]
    returns = token_returns(token_rewards=paid, lengths=lengths, gamma=1.0)
    assert torch.equal(returns, rewards.repeat_interleave(lengths))


@pytest.mark.parametrize(
    ("rewards", "lengths", "says"), [([1.0, 2.0], [3, 0], "at least one"), ([1.0], [3, 1], "1 rewards for 2")]
)
def test_a_score_needs_a_token(rewards, lengths, says):
    with pytest.raises(ValueError, match=says):
        terminal_rewards(rewards=torch.tensor(rewards), lengths=torch.tensor(lengths))


def test_whitening_agrees_with_its_twin():
    values = 5 * random_tokens(50) + 3
    weights = (torch.rand(50, generator=torch.Generator().manual_seed(1)) < 0.6).double()
    counted = [v for v, w in zip(values.tolist(), weights.tolist(), strict=True) if w]
    mean, std = np.mean(counted), np.std(counted)
    expected = [(v - mean) / std if w else 0.0 for v, w in zip(values, weights, strict=True)]
    found = whitened(values=values, weights=weights)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
    of_counted = found[weights > 0]
    assert of_counted.mean().item() == pytest.approx(0, abs=1e-12)
    assert of_counted.std(correction=0).item() == pytest.approx(1, abs=1e-12)


def test_whitening_by_hand():
    """(1, 3, 3, 5) has mean 3 and variance (4 + 0 + 0 + 4) / 4 = 2; the 100 does not count."""
    values = torch.tensor([1.0, 3.0, 100.0, 3.0, 5.0], dtype=torch.float64)
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    a = 2 / 2**0.5
    found = whitened(values=values, weights=weights)
    np.testing.assert_allclose(found.numpy(), [-a, 0, 0, 0, a], atol=1e-12)


def test_what_does_not_count_may_hold_anything():
    values = torch.tensor([1.0, torch.nan, 3.0, torch.inf])
    found = whitened(values=values, weights=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert found.tolist() == [-1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("value", [0.1, 1e8 + 8, -1e30])
@pytest.mark.parametrize("count", [1, 3, 1001])
def test_equal_values_are_whitened_to_exactly_zero(value, count):
    values, weights = torch.full((count,), value), torch.ones(count)
    assert (whitened(values=values, weights=weights) == 0).all()


def test_whitening_nothing_is_nothing():
    assert whitened(values=torch.ones(3), weights=torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_whitening_does_not_depend_on_the_order():
    """T10: nor on which rank's items come first."""
    values = random_tokens(50)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    weights = torch.ones(50, dtype=torch.float64)
    whole = whitened(values=values, weights=weights)
    shuffled = whitened(values=values[order], weights=weights)
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-14)


def test_a_fraction_of_a_weight_is_refused():
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        whitened(values=torch.ones(2), weights=torch.tensor([1.0, 0.5]))


def test_group_centred():
    """(1, 2, 6) has mean 3, and equal ones are exactly 0."""
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.1, 0.1, 0.1]])
    assert group_centred(rewards=rewards).tolist() == [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]
    with pytest.raises(ValueError, match="groups of 1"):
        group_centred(rewards=torch.zeros(3, 1))
