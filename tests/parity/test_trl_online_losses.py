"""Losses and advantages of GRPO and RLOO against TRL's trainers on the same numbers, in float64.

TRL's own ``_compute_loss`` runs on a stand-in that holds the settings it reads and gives it log-probs, so no model is
between the two. Its advantages come from real trainers on a tiny model, whose rewards are replaced.

Where the two define something differently:

- Normaliser. Ours are unreduced; the reductions below are TRL's, written out: ``grpo`` a mean over tokens, then over
  completions; ``bnpo`` over the micro-batch's tokens; ``dapo`` and ``cispo`` over the tokens of the whole generation
  batch; ``dr_grpo`` over completions times the longest length allowed.
- ``delta`` bounds the ratio from above whatever the advantage's sign. With delta > 1 + epsilon_high it acts where A < 0
  only and is the dual clip. Below that TRL takes the larger of the two bounds there, and ours the dual clip itself.
- CISPO. TRL's ``epsilon_high`` is the upper bound itself, ours (the paper's) lies that far above 1; TRL has no lower
  one. It counts as clipped only what has A > 0, in a metric that ours does not have.
- GSPO. Both average log-ratios over a completion's tokens; TRL's masked mean of one value per completion is that value.
- ``use_bias_correction_kl`` multiplies k3 by the token's ratio with its gradient: ours is k3_importance.
- GRPO's advantages. TRL adds 1e-4 to the std: ours agree after that is undone. Its std is the unbiased one, and for
  ``batch`` that of all rewards, not centred by group. Where a float32 mean of equal rewards is off by a rounding error
  TRL's advantage is that error over 1e-4; ours is 0.
- RLOO's advantages agree as they are. Its KL is k1 summed over tokens, inside the reward.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from datasets import Dataset
from equal_inputs import save_model, word_tokenizer
from peer_case import FAMILIES, VOCABULARY
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from alignment.advantages.grpo import group_advantages
from alignment.advantages.rloo import leave_one_out
from alignment.losses.policy_gradient import (
    cispo_loss,
    clipped_ratio_loss,
    is_clipped,
    sequence_ratio_logps,
)
from alignment.ops.kl import k3, k3_importance

LENGTHS = torch.tensor([7, 3, 1, 5, 7, 2])
LONGEST, LONGEST_ALLOWED = 7, 16
MASK = (torch.arange(LONGEST) < LENGTHS[:, None]).long()
#: Of the whole generation batch, of which this one is a micro-batch.
ALL_TOKENS = 61.0
REDUCTIONS = {
    "grpo": lambda tokens: torch.stack([part.mean() for part in tokens.split(LENGTHS.tolist())]).mean(),
    "bnpo": lambda tokens: tokens.mean(),
    "dapo": lambda tokens: tokens.sum() / ALL_TOKENS,
    "cispo": lambda tokens: tokens.sum() / ALL_TOKENS,
    "dr_grpo": lambda tokens: tokens.sum() / (len(LENGTHS) * LONGEST_ALLOWED),
}


class Numbers:
    """Random log-probs, padded as TRL wants them; ratios of tokens lie within and beyond all clips."""

    def __init__(self, spread: float = 0.6):
        generator = torch.Generator().manual_seed(0)
        shape = MASK.shape
        self.old = -3 * torch.rand(shape, generator=generator, dtype=torch.float64)
        noise, far = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
        self.policy = self.old + spread * noise
        self.reference = self.old + 0.5 * far
        self.advantages = torch.tensor([0.8, -1.2, 0.5, 1.1, -0.9, -0.3], dtype=torch.float64)

    def flat(self, values: Tensor) -> Tensor:
        """Flat over tokens, as ours come."""
        return values[MASK > 0]


class Accelerator:
    """One process."""

    num_processes = 1

    def gather(self, values: Tensor) -> Tensor:
        return values

    def reduce(self, values: Tensor, reduction: str) -> Tensor:
        return values


def stand_in(logps: Tensor, **settings: Any) -> Any:
    """What TRL's losses read of their trainer."""
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, torch.zeros_like(logps), None),
        accelerator=Accelerator(),
        model=SimpleNamespace(training=True),
        _metrics={"train": defaultdict(list)},
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST_ALLOWED,
        **settings,
    )


def trl_inputs(numbers: Numbers) -> dict[str, Tensor]:
    """What TRL's losses read of a batch; the ids are never looked at."""
    ids = torch.zeros_like(MASK)
    return {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1] + 1,
        "completion_ids": ids,
        "completion_mask": MASK,
        "advantages": numbers.advantages,
        "old_per_token_logps": numbers.old,
        "ref_per_token_logps": numbers.reference,
        "old_logps": (numbers.old * MASK).sum(1),
        "num_items_in_batch": torch.tensor(ALL_TOKENS),
    }


def trl_grpo(
    numbers: Numbers,
    *,
    loss_type: str,
    level: str = "token",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.28,
    delta: float | None = None,
    beta: float = 0.0,
    corrected: bool = False,
) -> tuple[Tensor, Tensor, dict[str, list[float]]]:
    """TRL's loss, its gradient on the log-probs, and its metrics."""
    logps = numbers.policy.clone().requires_grad_()
    trainer = stand_in(
        logps,
        loss_type=loss_type,
        importance_sampling_level=level,
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        beta=beta,
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=corrected, steps_per_generation=1),
    )
    loss = GRPOTrainer._compute_loss(trainer, None, trl_inputs(numbers))
    loss.backward()
    assert logps.grad is not None
    return loss.detach(), numbers.flat(logps.grad), trainer._metrics["train"]


class Ours:
    """The same batch, flat over tokens."""

    def __init__(self, numbers: Numbers):
        self.policy = numbers.flat(numbers.policy).requires_grad_()
        self.old = numbers.flat(numbers.old)
        self.reference = numbers.flat(numbers.reference)
        self.advantages = numbers.advantages
        self.index = torch.arange(len(LENGTHS)).repeat_interleave(LENGTHS)
        self.items = {
            "policy_logps": self.policy,
            "old_logps": self.old,
            "advantages": self.advantages.repeat_interleave(LENGTHS),
        }

    def assert_same(self, loss: Tensor, expected: tuple[Tensor, Tensor, Any]) -> None:
        (gradient,) = torch.autograd.grad(loss, self.policy)
        torch.testing.assert_close(loss.detach(), expected[0], rtol=1e-12, atol=0)
        assert expected[1].abs().max() > 1e-3
        torch.testing.assert_close(gradient, expected[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dual_clip", [None, 1.4])
@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dapo", "dr_grpo"])
def test_clipped_ratio(loss_type, dual_clip):
    numbers = Numbers()
    ours = Ours(numbers)
    expected = trl_grpo(numbers, loss_type=loss_type, delta=dual_clip)
    loss = clipped_ratio_loss(**ours.items, clip_low=0.2, clip_high=0.28, dual_clip=dual_clip)
    ours.assert_same(REDUCTIONS[loss_type](loss), expected)


def test_the_dual_clip_and_both_clips_act_in_this_case():
    """Or the cases above would prove nothing about them."""
    numbers = Numbers()
    ours = Ours(numbers)
    ratio, negative = (ours.policy - ours.old).exp(), ours.items["advantages"] < 0
    assert (negative & (ratio > 1.4)).sum() >= 2
    assert (negative & (ratio < 0.8)).sum() >= 2
    assert (~negative & (ratio > 1.28)).sum() >= 2
    plain = trl_grpo(numbers, loss_type="bnpo")[0]
    assert abs(plain - trl_grpo(numbers, loss_type="bnpo", delta=1.4)[0]) > 1e-3


def test_a_delta_within_the_clip_range_is_no_dual_clip():
    """r = 1.5, A = -1, epsilon_high .28, delta 1.1: TRL has max(1.1, 1.28), ours 1.1."""
    numbers = Numbers()
    numbers.policy = numbers.old + torch.tensor(1.5, dtype=torch.float64).log()
    numbers.advantages = torch.full((len(LENGTHS),), -1.0, dtype=torch.float64)
    assert trl_grpo(numbers, loss_type="bnpo", delta=1.1)[0].item() == pytest.approx(1.28, abs=1e-12)
    loss = clipped_ratio_loss(**Ours(numbers).items, clip_low=0.2, clip_high=0.28, dual_clip=1.1)
    assert loss.mean().item() == pytest.approx(1.1, abs=1e-12)


def test_share_of_clipped_tokens():
    numbers = Numbers()
    _, _, metrics = trl_grpo(numbers, loss_type="grpo")
    ours = is_clipped(**Ours(numbers).items, clip_low=0.2, clip_high=0.28).double().mean()
    assert 0.1 < ours < 0.9
    assert ours.item() == pytest.approx(metrics["clip_ratio/region_mean"][0], abs=1e-6)


@pytest.mark.parametrize("upper", [1.3, 5.0])
def test_cispo(upper):
    numbers = Numbers(spread=1.0)
    ours = Ours(numbers)
    expected = trl_grpo(numbers, loss_type="cispo", epsilon_high=upper)
    ours.assert_same(REDUCTIONS["cispo"](cispo_loss(**ours.items, clip_low=None, clip_high=upper - 1)), expected)


@pytest.mark.parametrize("dual_clip", [None, 1.4])
def test_gspo(dual_clip):
    numbers = Numbers()
    ours = Ours(numbers)
    expected = trl_grpo(numbers, loss_type="grpo", level="sequence", delta=dual_clip)
    log_ratio = sequence_ratio_logps(
        policy_logps=ours.policy, old_logps=ours.old, sequence_index=ours.index, num_sequences=len(LENGTHS)
    )
    loss = clipped_ratio_loss(
        policy_logps=log_ratio,
        old_logps=torch.zeros_like(log_ratio),
        advantages=ours.advantages,
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=dual_clip,
    )
    ours.assert_same(loss.mean(), expected)


@pytest.mark.parametrize("corrected", [False, True])
def test_kl_in_the_loss(corrected):
    numbers = Numbers()
    ours = Ours(numbers)
    expected = trl_grpo(numbers, loss_type="grpo", beta=0.3, corrected=corrected)
    log_ratio = ours.policy - ours.reference
    penalty = (
        k3_importance(log_ratio=log_ratio, importance_log_ratio=ours.policy - ours.old) if corrected else k3(log_ratio)
    )
    loss = clipped_ratio_loss(**ours.items, clip_low=0.2, clip_high=0.28, dual_clip=None)
    ours.assert_same(REDUCTIONS["grpo"](loss + 0.3 * penalty), expected)
    assert penalty.mean().item() == pytest.approx(expected[2]["kl"][0], abs=1e-6)


def test_rloo_takes_a_completion_as_one_action():
    """The ratio of sums, not of means; clipped as PPO's."""
    numbers = Numbers(spread=0.1)
    ours = Ours(numbers)
    logps = numbers.policy.clone().requires_grad_()
    trainer = stand_in(logps, epsilon_low=0.2, epsilon_high=0.28)
    expected = RLOOTrainer._compute_loss(trainer, None, trl_inputs(numbers))
    expected.backward()
    sums = [torch.stack([part.sum() for part in v.split(LENGTHS.tolist())]) for v in (ours.policy, ours.old)]
    items = {"policy_logps": sums[0], "old_logps": sums[1], "advantages": ours.advantages}
    loss = clipped_ratio_loss(**items, clip_low=0.2, clip_high=0.28, dual_clip=None)
    ours.assert_same(loss.mean(), (expected.detach(), numbers.flat(logps.grad), None))
    clipped = is_clipped(**items, clip_low=0.2, clip_high=0.28).double().mean().item()
    assert 0 < clipped < 1
    assert clipped == pytest.approx(trainer._metrics["train"]["clip_ratio/region_mean"][0], abs=1e-6)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    save_model(folder, architecture="llama", config=FAMILIES["llama"] | {"vocab_size": VOCABULARY}, seed=3)
    return folder


def trl_advantages(
    start: Path, rewards: Tensor, trainer: Any, config: Any, *, penalties: Tensor | None = None, **fields: Any
) -> Tensor:
    """What TRL's trainer makes of these rewards of its own completions of three tokens at most."""
    groups, samples = rewards.shape
    built = trainer(
        model=AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config(
            output_dir=str(start / "trl"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            per_device_train_batch_size=rewards.numel(),
            num_generations=samples,
            max_completion_length=3,
            **fields,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["w3 w4"] * groups}),
        processing_class=word_tokenizer(VOCABULARY),
    )
    built._calculate_rewards = lambda *_: rewards.reshape(-1, 1).clone()
    built.model.train()
    rows = [{"prompt": "w3 w4"} for _ in range(rewards.numel())]
    batch = built._generate_and_score_completions(rows)
    advantages = batch["advantages"]
    assert advantages.dtype is rewards.dtype
    return advantages.view(groups, samples)


def some_rewards() -> Tensor:
    """Nine: TRL rounds n / (n - 1) to float32, which is exact for 3 / 2 and 9 / 8."""
    rewards = 2 * torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    rewards[2] = 0.1
    return rewards


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_of_grpo(start, scale):
    rewards = some_rewards()
    theirs = trl_advantages(start, rewards, GRPOTrainer, GRPOConfig, scale_rewards=scale)
    std = {"group": rewards.std(1, keepdim=True), "batch": rewards.std(), "none": None}[scale]
    if std is not None:
        theirs = theirs * (std + 1e-4) / torch.where(std < 1e-9, 1.0, std)
    ours = group_advantages(rewards=rewards, scale=scale)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert (ours[2] == 0).all()


def test_equal_rewards_are_zero_in_ours_only(start):
    """T21: seven times .1 in float32 has a mean that is not .1."""
    rewards = torch.full((1, 7), 0.1, dtype=torch.float32)
    theirs = trl_advantages(start, rewards, GRPOTrainer, GRPOConfig, scale_rewards="group")
    assert theirs.abs().max() > 0
    assert (group_advantages(rewards=rewards, scale="group") == 0).all()


def test_advantages_of_rloo(start):
    rewards = some_rewards()
    theirs = trl_advantages(start, rewards, RLOOTrainer, RLOOConfig, beta=0.0)
    torch.testing.assert_close(leave_one_out(rewards=rewards), theirs, rtol=0, atol=1e-12)
