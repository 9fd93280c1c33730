"""What online methods log, from log-probs, rewards and values made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from by_hand import logged, scored, tokens_of

from alignment.diagnostics.rollouts import rollout_metrics, value_metrics
from alignment.losses.policy_gradient import cispo_loss, clipped_ratio_loss
from alignment.methods.grpo import GRPO
from alignment.methods.kl import KLPenalty
from alignment.methods.metrics import MetricSums
from alignment.methods.online import OnlineMethod
from alignment.methods.terms import TermsMethod
from alignment.rollout.experience import Experience
from alignment.types import Rollout, RolloutBatch

#: pi / pi_old of the tokens of three completions, their advantages, and pi_old / sampler; the last one is masked.
RATIOS = [[1.5, 1.25], [0.5, 0.5, 0.9], [9.0]]
ADVANTAGES = [[1.0, 1.0], [-1.0, 1.0, -1.0], [1.0]]
MISMATCH = [[2.0, 0.5], [1.0, 4.0, 1.0], [64.0]]
OLD = [[-1.0, -2.0], [-1.5, -3.0, -0.5], [-4.0]]
ENTROPIES = [[0.5, 1.5], [1.0, 1.0, 2.0], [9.0]]
CLIP = partial(clipped_ratio_loss, clip_low=0.2, clip_high=0.3, dual_clip=None)


def flat(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor([value for tokens in values for value in tokens])


def of_learnt(values: list[list[float]]) -> list[float]:
    """The tokens of the completions that are not masked."""
    return [value for tokens in values[:2] for value in tokens]


def values_of(
    monkeypatch, *, policy_loss=CLIP, ratio: str = "token", cap: float | None = None, max_kl: float | None = None
):
    """All that a step with these completions logs, and the method."""
    method = object.__new__(GRPO)
    torch.nn.Module.__init__(method)
    method.ratio = ratio
    method.normaliser = "token" if ratio == "token" else "sequence"
    method.rollouts = SimpleNamespace(importance_cap=cap, one_step_off=cap is not None, max_kl_nats=max_kl)
    method.policy_loss, method.clip = policy_loss, (0.2, 0.3) if policy_loss is CLIP else None
    method.kl = KLPenalty(coefficient=0.5, place="loss", estimator="k2", target_nats=None, horizon=None)
    method.kl_sums = MetricSums()
    policy = scored(*OLD, entropies=flat(ENTROPIES))
    old = policy.token_logps
    batch = RolloutBatch(
        ids=("a", "b", "c"),
        weights=torch.ones(3),
        counts={},
        tokens=tokens_of(policy),
        sequence_weights=torch.tensor([1.0, 1.0, 0.0]),
        advantages=flat(ADVANTAGES),
        sampler_logps=old - flat(MISMATCH).log(),
        old_logps=old,
        reference_logps=old + flat(RATIOS).log() - 0.2,
    )
    # What was written has a log of its own.
    monkeypatch.setattr(GRPO, "means", TermsMethod.means)
    terms = method.policy_terms(batch, replace(policy, token_logps=old + flat(RATIOS).log()))
    return logged(method, terms), method


def test_ratios_clips_and_kl_of_tokens(monkeypatch):
    """1.5 and A > 0, .5 and A < 0 are out of bounds; .5 and A > 0 is pulled back, 1.25 is below 1 + clip_high."""
    got, _ = values_of(monkeypatch)
    ratios = of_learnt(RATIOS)
    policy = -(1.3 + 1.25 - 0.8 + 0.5 - 0.9) / 5
    assert got == pytest.approx(
        {
            "loss/policy": policy,
            "loss/kl": 0.02,
            "loss/total": policy + 0.5 * 0.02,
            "policy/ratio_mean": sum(ratios) / 5,
            "policy/clip_fraction": 2 / 5,
            # k3 of the old policy to this one: r - 1 - log r.
            "kl/policy_old_token_nats": sum(r - 1 - math.log(r) for r in ratios) / 5,
            "logps/completion_mean_nats": (sum(of_learnt(OLD)) + sum(map(math.log, ratios))) / 5,
            "policy/entropy_nats": 6 / 5,
            "policy/sampler_mismatch": (2 + 2 + 1 + 4 + 1) / 5,
        },
        rel=1e-5,
    )


def test_what_was_written_earlier_is_weighed_and_the_mismatch_unsaid(monkeypatch):
    """Weights 2, .5, 1, 4 and 1, of which the cap of 2 leaves two at it."""
    got, _ = values_of(monkeypatch, cap=2.0)
    assert got["policy/importance_mean"] == pytest.approx((2 + 0.5 + 1 + 2 + 1) / 5)
    assert got["policy/importance_capped"] == pytest.approx(2 / 5)
    assert "policy/sampler_mismatch" not in got


@pytest.mark.parametrize(
    ("ratio", "clipped", "capped", "importance"),
    [
        # Ratios 1.875 and .225, advantages 1 and -1/3: both out of bounds; weights 1 and 4.
        ("sequence", 1.0, 0.5, (1 + 3) / 2),
        # Their roots, 1.37 and .608.
        ("sequence_mean", 1.0, 0.0, (1 + 4 ** (1 / 3)) / 2),
    ],
)
def test_clips_and_weights_of_completions(monkeypatch, ratio, clipped, capped, importance):
    got, _ = values_of(monkeypatch, ratio=ratio, cap=3.0)
    assert got["policy/clip_fraction"] == clipped
    assert got["policy/importance_capped"] == capped
    assert got["policy/importance_mean"] == pytest.approx(importance)
    # Said of tokens whatever a ratio is of.
    assert got["policy/ratio_mean"] == pytest.approx(sum(of_learnt(RATIOS)) / 5)


def test_a_loss_that_clips_no_gradient_has_no_clip_fraction(monkeypatch):
    got, _ = values_of(monkeypatch, policy_loss=partial(cispo_loss, clip_low=None, clip_high=0.3))
    assert "policy/clip_fraction" not in got


def test_the_kl_that_ends_a_pass_is_what_is_logged(monkeypatch):
    got, method = values_of(monkeypatch, max_kl=0.5)
    assert method.kl_sums.pop_means() == {"kl": pytest.approx(got["kl/policy_old_token_nats"])}
    _, method = values_of(monkeypatch)
    assert len(method.kl_sums) == 0


def experience(**more) -> Experience:
    """Two prompts with two completions each, of 1, 2, 1 and 3 tokens; the third was cut off, and is masked."""
    rollouts = tuple(
        Rollout(f"p{place // 2}", "x", (1,), (5,) * length, "y", reason, place % 2, token_logps=(-1.0,) * length)
        for place, (length, reason) in enumerate(((1, "stop"), (2, "stop"), (1, "length"), (3, "stop")))
    )
    return Experience(
        rollouts=rollouts,
        group_size=2,
        raw_rewards=torch.tensor([1.0, 0.0, 0.5, 0.75]),
        components={"right": torch.tensor([1.0, 0.0, 1.0, 1.0])},
        rewards=torch.tensor([0.5, -0.5, 0.25, 0.25]),
        weights=torch.tensor([1.0, 1.0, 0.0, 1.0]),
        **more,
    )


def test_what_completions_are_like():
    """Sample standard deviations of the raw rewards: sqrt(1/2) and .25 sqrt(1/2). Shaped, the second group is flat."""
    reference = torch.tensor([-1.5, -1.0, -3.0, -0.5, -2.0, -1.0, -1.0])
    found = experience(reference_logps=reference)
    metrics = rollout_metrics(found)
    assert metrics["advantage/zero_std_groups"].tolist() == [0.0, 1.0]
    values = {name: (tensor.mean().item(), len(tensor)) for name, tensor in metrics.items()}
    assert values == {
        "reward/total": (2.25 / 4, 4),
        "reward/shaped": (0.5 / 4, 4),
        "reward/right": (3 / 4, 4),
        "length/completion_tokens": (7 / 4, 4),
        "length/truncated_share": (1 / 4, 4),
        "reward/group_std": (pytest.approx(1.25 * math.sqrt(0.5) / 2), 2),
        "advantage/zero_std_groups": (1 / 2, 2),
        # Sums of a completion: .5, 0 + 2, -.5 and 1 + 0 + 0.
        "kl/policy_reference_nats": ((0.5 + 2 - 0.5 + 1) / 4, 4),
    }


def test_groups_of_one_and_no_reference_say_less():
    names = rollout_metrics(Experience(**vars(experience()) | {"group_size": 1}))
    assert not {"reward/group_std", "advantage/zero_std_groups", "kl/policy_reference_nats"} & names.keys()


def test_how_well_a_critic_foresees():
    """Of learnt tokens returns 1 2 3 2 3 1 (mean 2, variance 2/3), errors .5 .5 -.5 -.5 0 0 (variance 1/6)."""
    returns = torch.tensor([1.0, 2.0, 3.0, 77.0, 2.0, 3.0, 1.0])
    errors = torch.tensor([0.5, 0.5, -0.5, 99.0, -0.5, 0.0, 0.0])
    values = value_metrics(experience(values=returns - errors, returns=returns))
    assert values["value/explained_variance"].tolist() == pytest.approx([0.75])
    assert values["value/mean"].tolist() == pytest.approx([2.0])
    constant = value_metrics(experience(values=torch.full((7,), 4.0), returns=returns))
    assert constant["value/explained_variance"].tolist() == pytest.approx([0.0])
    assert constant["value/mean"].tolist() == [4.0]
    assert value_metrics(experience()) == {}


def test_what_was_written_is_counted_with_its_useful_groups():
    noted: dict[str, torch.Tensor] = {}
    method = SimpleNamespace(
        budget={"tokens_generated": 10.0},
        kl=SimpleNamespace(coefficient=0.25),
        rollout_log=SimpleNamespace(add=lambda metrics, device: noted.update(metrics)),
        device=None,
    )
    found = Experience(**vars(experience()) | {"group_size": 1})
    OnlineMethod._note(method, found, num_useful=1)
    assert method.budget["tokens_generated"] == 17.0
    assert noted["advantage/used_groups"].tolist() == [0.25]
    assert noted["kl/coefficient"].tolist() == [0.25]
    assert noted["reward/total"].mean().item() == 2.25 / 4
