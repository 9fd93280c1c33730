from __future__ import annotations

import numpy as np
import pytest
import torch

from alignment.advantages.grpo import group_advantages, has_spread
from alignment.advantages.moments import deviation

SCALES = ["group", "batch", "none"]


def twin(rewards, scale):
    """Group by group, sample by sample."""
    everything = [reward for group in rewards for reward in group]
    results = np.zeros_like(rewards)
    for g, group in enumerate(rewards):
        compared = {"group": list(group), "batch": everything, "none": None}[scale]
        divisor = 1.0 if compared is None else np.std(compared, ddof=1)
        for i, reward in enumerate(group):
            results[g, i] = 0.0 if len(set(group)) == 1 else (reward - sum(group) / len(group)) / divisor
    return results


def random_rewards(groups=6, samples=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    rewards = 3 * torch.randn(groups, samples, generator=generator, dtype=dtype) + 2
    rewards[1] = 0.1
    return rewards


@pytest.mark.parametrize("scale", SCALES)
def test_twin(scale):
    rewards = random_rewards()
    found = group_advantages(rewards=rewards, scale=scale).numpy()
    np.testing.assert_allclose(found, twin(rewards.numpy(), scale), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        # Groups (0, 2, 4) of mean 2 and (1, 1, 4) of mean 2.
        ("none", [[-2.0, 0.0, 2.0], [-1.0, -1.0, 2.0]]),
        # Variances (4 + 0 + 4) / 2 = 4 and (1 + 1 + 4) / 2 = 3.
        ("group", [[-1.0, 0.0, 1.0], [-1 / 3**0.5, -1 / 3**0.5, 2 / 3**0.5]]),
        # All six have mean 2 and variance (4 + 0 + 4 + 1 + 1 + 4) / 5 = 2.8.
        ("batch", [[-2 / 2.8**0.5, 0.0, 2 / 2.8**0.5], [-1 / 2.8**0.5, -1 / 2.8**0.5, 2 / 2.8**0.5]]),
    ],
)
def test_values_derived_by_hand(scale, expected):
    rewards = torch.tensor([[0.0, 2.0, 4.0], [1.0, 1.0, 4.0]], dtype=torch.float64)
    found = group_advantages(rewards=rewards, scale=scale)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_the_batchs_std_counts_differences_between_groups():
    """Groups (0, 2) and (10, 12): all four have mean 6 and variance (36 + 16 + 16 + 36) / 3."""
    rewards = torch.tensor([[0.0, 2.0], [10.0, 12.0]], dtype=torch.float64)
    found = group_advantages(rewards=rewards, scale="batch")
    a = 1 / (104 / 3) ** 0.5
    np.testing.assert_allclose(found.numpy(), [[-a, a], [-a, a]], rtol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -0.7, 1e8 + 8, -1e30, 1e-40])
@pytest.mark.parametrize("samples", [2, 3, 7, 1001])
def test_equal_rewards_have_advantage_exactly_zero(scale, dtype, value, samples):
    """T21: the mean of 1001 times 0.1 is not 0.1 in float32."""
    rewards = torch.full((2, samples), value, dtype=dtype)
    rewards[1] = torch.linspace(-1, 1, samples, dtype=dtype)
    advantages = group_advantages(rewards=rewards, scale=scale)
    assert advantages.dtype is dtype
    assert (advantages[0] == 0).all()
    assert (advantages[1, 0] < 0) & (advantages[1, -1] > 0)
    assert has_spread(rewards=rewards).tolist() == [False, True]


@pytest.mark.parametrize("scale", SCALES)
def test_a_batch_of_equal_groups_is_all_zero(scale):
    assert (group_advantages(rewards=torch.full((3, 4), 0.1), scale=scale) == 0).all()


@pytest.mark.parametrize("value", [1.0, 1e8, -3e4])
def test_a_spread_of_one_ulp_is_a_spread(value):
    """Neither lost nor blown up: one of four above, so (-1, -1, -1, 3) / 4 over an unbiased std of 1/2."""
    rewards = torch.full((1, 4), value)
    rewards[0, 3] = torch.nextafter(rewards[0, 3], torch.tensor(torch.inf))
    found = group_advantages(rewards=rewards, scale="group")
    torch.testing.assert_close(found, torch.tensor([[-0.5, -0.5, -0.5, 1.5]]))
    assert has_spread(rewards=rewards).all()


def test_a_tiny_spread_does_not_vanish_in_its_square():
    """(1e-30)^2 is 0 in float32."""
    found = group_advantages(rewards=torch.tensor([[0.0, 1e-30]]), scale="group")
    torch.testing.assert_close(found, torch.tensor([[-(0.5**0.5), 0.5**0.5]]))


@pytest.mark.parametrize("scale", SCALES)
def test_the_order_of_groups_and_samples_does_not_matter(scale):
    rewards = random_rewards()
    whole = group_advantages(rewards=rewards, scale=scale)
    generator = torch.Generator().manual_seed(1)
    groups, samples = torch.randperm(6, generator=generator), torch.randperm(5, generator=generator)
    shuffled = group_advantages(rewards=rewards[groups][:, samples], scale=scale)
    torch.testing.assert_close(shuffled, whole[groups][:, samples], rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_a_group_does_not_know_the_others(scale):
    rewards = random_rewards()
    alone = group_advantages(rewards=rewards[:1], scale=scale)
    torch.testing.assert_close(group_advantages(rewards=rewards, scale=scale)[:1], alone, rtol=0, atol=0)


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_a_reward_that_is_no_number_stays_visible(scale):
    rewards = random_rewards()
    rewards[0, 0] = torch.nan
    assert group_advantages(rewards=rewards, scale=scale)[0].isnan().all()


def test_one_sample_is_refused():
    with pytest.raises(ValueError, match="groups of 1"):
        group_advantages(rewards=torch.zeros(3, 1), scale="group")


def test_deviation_by_hand():
    """(1, 3, 8): mean 4, squares 9 + 1 + 16 = 26, over 3 or over 2."""
    values = torch.tensor([1.0, 3.0, 8.0], dtype=torch.float64)
    assert deviation(values, correction=0).item() == pytest.approx((26 / 3) ** 0.5, abs=1e-12)
    assert deviation(values, correction=1).item() == pytest.approx(13**0.5, abs=1e-12)
