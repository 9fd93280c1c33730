from __future__ import annotations

import numpy as np
import pytest
import torch

from alignment.advantages.rloo import leave_one_out


def random_rewards(groups=6, samples=5):
    return 3 * torch.randn(groups, samples, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2


def test_twin():
    """The others are picked out one by one."""
    rewards = random_rewards().numpy()
    expected = [[r - np.mean(np.delete(group, i)) for i, r in enumerate(group)] for group in rewards]
    np.testing.assert_allclose(leave_one_out(rewards=torch.tensor(rewards)).numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("samples", [2, 3, 8])
def test_it_is_the_distance_from_the_mean_stretched(samples):
    """E3: G / (G - 1) (r - mean)."""
    rewards = random_rewards(samples=samples)
    expected = samples / (samples - 1) * (rewards - rewards.mean(1, keepdim=True))
    torch.testing.assert_close(leave_one_out(rewards=rewards), expected, rtol=0, atol=1e-12)


def test_values_derived_by_hand():
    """1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2; and of two samples each is the other's baseline."""
    assert leave_one_out(rewards=torch.tensor([[1.0, 2.0, 6.0]])).tolist() == [[-3.0, -1.5, 4.5]]
    assert leave_one_out(rewards=torch.tensor([[5.0, 2.0]])).tolist() == [[3.0, -3.0]]


@pytest.mark.parametrize("value", [0.1, 1e8 + 8, -1e30])
@pytest.mark.parametrize("samples", [2, 3, 7, 1001])
def test_equal_rewards_have_advantage_exactly_zero(value, samples):
    assert (leave_one_out(rewards=torch.full((2, samples), value)) == 0).all()


def test_the_order_of_groups_and_samples_does_not_matter():
    rewards = random_rewards()
    groups, samples = torch.tensor([3, 1, 0, 5, 4, 2]), torch.tensor([4, 0, 3, 1, 2])
    shuffled = leave_one_out(rewards=rewards[groups][:, samples])
    torch.testing.assert_close(shuffled, leave_one_out(rewards=rewards)[groups][:, samples], rtol=0, atol=1e-14)


def test_the_penalty_before_the_baseline_is_another_number_than_after():
    """T26. Rewards (1, 0), penalties (.5, .1): within (.5, -.1) each is .6 from the other. After: (1 - .5, -1 - .1)."""
    rewards = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    penalties = torch.tensor([[0.5, 0.1]], dtype=torch.float64)
    before = leave_one_out(rewards=rewards - penalties)
    after = leave_one_out(rewards=rewards) - penalties
    np.testing.assert_allclose(before.numpy(), [[0.6, -0.6]], atol=1e-12)
    np.testing.assert_allclose(after.numpy(), [[0.5, -1.1]], atol=1e-12)
    # The baseline takes the mean penalty away: only then do the advantages of a group still add up to 0.
    assert before.sum().item() == pytest.approx(0.0, abs=1e-12)


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="groups of 1"):
        leave_one_out(rewards=torch.zeros(3, 1))
