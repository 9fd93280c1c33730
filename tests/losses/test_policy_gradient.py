from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from alignment.losses.policy_gradient import (
    cispo_loss,
    clipped_ratio_loss,
    is_clipped,
    reinforce_loss,
    sequence_ratio_logps,
)

from loss_tester import LossTester

INPUTS = ("policy_logps", "old_logps", "advantages")
#: The last two have no lower bound: a ratio is above 0.
CLIPS = [(0.2, 0.2), (0.2, 0.28), (0.0003, 0.0004), (1.0, 0.3), (20.0, 0.2)]


def clipped_twin(*, policy_logps, old_logps, advantages, clip_low, clip_high, dual_clip):
    """Case by case, as the figure of the PPO paper draws it."""
    losses = []
    for policy, old, advantage in zip(policy_logps, old_logps, advantages, strict=True):
        ratio = np.exp(policy) / np.exp(old)
        if advantage >= 0:
            gain = advantage * (1 + clip_high if ratio > 1 + clip_high else ratio)
        else:
            gain = advantage * (1 - clip_low if ratio < 1 - clip_low else ratio)
            if dual_clip is not None and ratio > dual_clip:
                gain = dual_clip * advantage
        losses.append(-gain)
    return np.array(losses)


def reinforce_twin(*, policy_logps, old_logps, advantages):
    return np.array([-a * np.exp(p) / np.exp(o) for p, o, a in zip(policy_logps, old_logps, advantages, strict=True)])


def cispo_twin(*, policy_logps, old_logps, advantages, clip_low, clip_high):
    losses = []
    for policy, old, advantage in zip(policy_logps, old_logps, advantages, strict=True):
        ratio = min(np.exp(policy) / np.exp(old), 1 + clip_high)
        losses.append(-(ratio if clip_low is None else max(ratio, 1 - clip_low)) * advantage * policy)
    return np.array(losses)


CLIPPED = LossTester(
    loss=clipped_ratio_loss,
    twin=clipped_twin,
    inputs=INPUTS,
    settings=tuple({"clip_low": a, "clip_high": b, "dual_clip": c} for a, b in CLIPS for c in (None, 1.5, 3.0)),
    low=-2.0,
    high=2.0,
    items=60,
)
REINFORCE = LossTester(loss=reinforce_loss, twin=reinforce_twin, inputs=INPUTS, settings=({},), low=-2.0, high=2.0)
CISPO = LossTester(
    loss=cispo_loss,
    twin=cispo_twin,
    inputs=INPUTS,
    settings=tuple({"clip_low": a, "clip_high": b} for a in (None, 0.5, 20.0) for b in (0.3, 4.0)),
    low=-2.0,
    high=2.0,
    items=60,
)


@pytest.mark.parametrize("tester", [CLIPPED, REINFORCE, CISPO], ids=["clipped", "reinforce", "cispo"])
def test_proofs(tester):
    tester.check_twin()
    tester.check_items_are_independent()
    # Log-ratios of plus and minus 20, a factor of 5e8.
    tester.check_extremes(scale=20.0)


@pytest.mark.parametrize("tester", [CLIPPED, REINFORCE], ids=["clipped", "reinforce"])
def test_gradients(tester):
    """CISPO's is none of its value's: see below."""
    tester.check_gradient()


VALUES = [
    # ratio, advantage, settings, loss, gradient on the log-prob (-r A where it has one)
    (1.0, 3.0, (0.2, 0.2, None), -3.0, -3.0),
    (1.0, -3.0, (0.2, 0.2, None), 3.0, 3.0),
    (1.5, 2.0, (0.2, 0.2, None), -2.4, 0.0),  # min(3, 1.2 * 2)
    (1.25, 2.0, (0.2, 0.28, None), -2.5, -2.5),  # within 1.28: clip-higher
    (0.5, 2.0, (0.2, 0.2, None), -1.0, -1.0),  # min(1, 1.6): too low, but it is pulled back
    (0.5, -2.0, (0.2, 0.2, None), 1.6, 0.0),  # min(-1, -1.6)
    (1.5, -2.0, (0.2, 0.2, None), 3.0, 3.0),  # min(-3, -2.4)
    (5.0, -2.0, (0.2, 0.2, None), 10.0, 10.0),
    (5.0, -2.0, (0.2, 0.2, 3.0), 6.0, 0.0),  # max(-10, -6)
    (2.0, -2.0, (0.2, 0.2, 3.0), 4.0, 4.0),  # max(-4, -6)
    (5.0, 2.0, (0.2, 0.2, 3.0), -2.4, 0.0),  # the dual clip is for A < 0 only
    (7.0, 0.0, (0.2, 0.2, None), 0.0, 0.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "clips", "loss", "gradient"), VALUES)
def test_values_derived_by_hand(ratio, advantage, clips, loss, gradient):
    policy = torch.tensor([math.log(ratio) - 2.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-2.0], dtype=torch.float64)
    low, high, dual = clips
    found = clipped_ratio_loss(
        policy_logps=policy,
        old_logps=old,
        advantages=torch.tensor([advantage], dtype=torch.float64),
        clip_low=low,
        clip_high=high,
        dual_clip=dual,
    )
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert policy.grad.item() == pytest.approx(gradient, abs=1e-12)


def random_items(count=500, spread=0.3):
    generator = torch.Generator().manual_seed(3)
    old = -2 * torch.rand(count, generator=generator, dtype=torch.float64)
    policy = (old + spread * torch.randn(count, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages = torch.randn(count, generator=generator, dtype=torch.float64)
    advantages[::7] = 0.0
    return policy, old, advantages


@pytest.mark.parametrize(
    "loss",
    [
        lambda **items: clipped_ratio_loss(**items, clip_low=0.2, clip_high=0.2, dual_clip=3.0),
        lambda **items: cispo_loss(**items, clip_low=None, clip_high=4.0),
        reinforce_loss,
    ],
    ids=["clipped", "cispo", "reinforce"],
)
def test_on_its_own_samples_each_has_reinforces_gradient(loss):
    """At r = 1: -A times that of the log-prob, whatever the clip (T14)."""
    _, old, advantages = random_items()
    policy = old.clone().requires_grad_()
    loss(policy_logps=policy, old_logps=old, advantages=advantages).sum().backward()
    torch.testing.assert_close(policy.grad, -advantages, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clips", CLIPS)
def test_clipped_is_where_the_gradient_is_gone(clips):
    policy, old, advantages = random_items()
    bounds = {"clip_low": clips[0], "clip_high": clips[1]}
    items = {"policy_logps": policy, "old_logps": old, "advantages": advantages}
    clipped_ratio_loss(**items, **bounds, dual_clip=None).sum().backward()
    expected = (policy.grad == 0) & (advantages != 0)
    assert torch.equal(is_clipped(**items, **bounds), expected)
    assert 20 < expected.sum() < 450


def test_clipped_counts_each_bound_with_the_advantage_that_pushes_over_it():
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.5, 1.1], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0, 1.0], dtype=torch.float64)
    found = is_clipped(
        policy_logps=ratio.log(), old_logps=torch.zeros(6), advantages=advantages, clip_low=0.2, clip_high=0.2
    )
    assert found.tolist() == [True, False, False, True, False, False]


def test_an_overflowing_ratio_that_is_clipped_has_no_nan():
    """exp(200) is infinite in float32; 0 times that would be NaN."""
    policy = torch.tensor([200.0, 200.0, 200.0, -200.0], requires_grad=True)
    loss = clipped_ratio_loss(
        policy_logps=policy,
        old_logps=torch.zeros(4),
        advantages=torch.tensor([1.0, 0.0, -1.0, -1.0]),
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=3.0,
    )
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([-1.2, 0.0, 3.0, 0.8]))
    assert policy.grad.tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("clip_low", "weights"),
    # ratios 0.1, 1, 10 under an upper bound of 5, and from below by 1 - 0.4, by nothing, and by 1 - 20 < 0
    [(0.4, [0.6, 1.0, 5.0]), (None, [0.1, 1.0, 5.0]), (20.0, [0.1, 1.0, 5.0])],
)
def test_cispo_keeps_every_tokens_gradient(clip_low, weights):
    """Equations 4 and 5: minus the clipped ratio times A, and nothing through the ratio itself."""
    policy = torch.tensor([-3.0, -3.0, -3.0], dtype=torch.float64, requires_grad=True)
    old = policy.detach() - torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64).log()
    advantages = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
    loss = cispo_loss(policy_logps=policy, old_logps=old, advantages=advantages, clip_low=clip_low, clip_high=4.0)
    loss.sum().backward()
    expected = -torch.tensor(weights, dtype=torch.float64) * advantages
    torch.testing.assert_close(policy.grad, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(loss.detach(), expected * -3.0, rtol=0, atol=1e-12)


def test_reinforce_corrects_for_the_old_policy():
    """pi(y) / pi_old(y) = .6 / .2: three times the advantage, in value and gradient."""
    policy = torch.tensor([math.log(0.6)], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([math.log(0.2)], dtype=torch.float64)
    loss = reinforce_loss(policy_logps=policy, old_logps=old, advantages=torch.tensor([2.0], dtype=torch.float64))
    loss.sum().backward()
    assert loss.item() == pytest.approx(-6.0, abs=1e-12)
    assert policy.grad.item() == pytest.approx(-6.0, abs=1e-12)


def sequence_twin(policy_logps, old_logps, sequence_index, num_sequences):
    """The geometric mean of the tokens' ratios."""
    results = []
    for sequence in range(num_sequences):
        ratios = [
            np.exp(p - o) for p, o, s in zip(policy_logps, old_logps, sequence_index, strict=True) if s == sequence
        ]
        results.append(np.log(np.prod(ratios) ** (1 / len(ratios))) if ratios else 0.0)
    return np.array(results)


def test_sequence_ratio_agrees_with_its_twin():
    policy, old, _ = random_items(40)
    index = torch.randint(5, (40,), generator=torch.Generator().manual_seed(0))
    index[index == 3] = 4
    found = sequence_ratio_logps(policy_logps=policy, old_logps=old, sequence_index=index, num_sequences=6)
    expected = sequence_twin(policy.detach().numpy(), old.numpy(), index.numpy(), 6)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12, atol=1e-12)
    assert expected[3] == expected[5] == 0.0
    assert torch.autograd.gradcheck(
        lambda logps: sequence_ratio_logps(policy_logps=logps, old_logps=old, sequence_index=index, num_sequences=6),
        (policy,),
    )


def test_sequence_ratio_by_hand():
    """Log-ratios 1, 2, 3 of one completion and -1 of another: means 2 and -1, lengths 3 and 1."""
    found = sequence_ratio_logps(
        policy_logps=torch.tensor([0.0, 0.0, 0.0, -3.0]),
        old_logps=torch.tensor([-1.0, -2.0, -3.0, -2.0]),
        sequence_index=torch.tensor([0, 0, 0, 1]),
        num_sequences=2,
    )
    assert found.tolist() == [2.0, -1.0]


def test_a_clipped_sequence_has_no_gradient_in_any_token():
    """GSPO, with the ratio of the sequence as the policy's log-prob and 0 as the old one's."""
    policy = torch.tensor([0.5, 0.1, 0.05], dtype=torch.float64, requires_grad=True)
    ratio = sequence_ratio_logps(
        policy_logps=policy,
        old_logps=torch.zeros(3, dtype=torch.float64),
        sequence_index=torch.tensor([0, 0, 1]),
        num_sequences=2,
    )
    # Means .3 and .05: e^.3 = 1.35 is above 1.2 though e^.1 is not; e^.05 is below.
    loss = clipped_ratio_loss(
        policy_logps=ratio,
        old_logps=torch.zeros_like(ratio),
        advantages=torch.ones(2, dtype=torch.float64),
        clip_low=0.2,
        clip_high=0.2,
        dual_clip=None,
    )
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach().numpy(), [-1.2, -math.exp(0.05)], rtol=1e-12)
    np.testing.assert_allclose(policy.grad.numpy(), [0.0, 0.0, -math.exp(0.05)], rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_that_of_the_inputs(dtype):
    items = dict.fromkeys(INPUTS, torch.zeros(2, dtype=dtype))
    assert clipped_ratio_loss(**items, clip_low=0.2, clip_high=0.2, dual_clip=None).dtype is dtype
    assert cispo_loss(**items, clip_low=None, clip_high=0.2).dtype is dtype
    assert reinforce_loss(**items).dtype is dtype
    index = torch.tensor([0, 0])
    ratio = sequence_ratio_logps(
        policy_logps=items["policy_logps"], old_logps=items["old_logps"], sequence_index=index, num_sequences=1
    )
    assert ratio.dtype is dtype
