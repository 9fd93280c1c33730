"""Optimisers of other libraries: what they keep, that a run goes on with it, and what is refused."""

from __future__ import annotations

import builtins
import importlib.util
from typing import Any

import pytest
import torch

from alignment.config.compose import compose
from alignment.methods.optimizers import adamw_8bit
from alignment.models.memory import MemoryPlan
from alignment.utils.errors import UserError

from method_tester import MethodTester
from runs import job, metrics, train, train_forked

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
EIGHT_BITS = ("optim=adamw_8bit", "optim.min_8bit_size=256")
OPTIONS: dict[str, Any] = {
    "lr": 1e-2,
    "betas": (0.9, 0.95),
    "eps": 1e-8,
    "weight_decay": 0.1,
    "min_8bit_size": 4096,
    "paged": False,
}


def test_without_the_package_its_extra_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("bitsandbytes"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"^optim=adamw_8bit needs .*pip install 'alignment\[gpu\]'"):
        adamw_8bit([], **OPTIONS)


def test_it_has_the_fields_of_adamw():
    ours, torchs = (compose("train", [f"optim={name}"]).optim for name in ("adamw_8bit", "adamw"))
    shared = ("lr", "betas", "eps", "weight_decay")
    assert [ours[key] for key in shared] == [torchs[key] for key in shared]


@needs_bitsandbytes
def test_moments_take_a_quarter_of_the_memory_and_small_tensors_are_exact():
    torch.manual_seed(0)
    start = [torch.randn(64, 128), torch.randn(16, 16)]
    mine, others = ([torch.nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    eight = adamw_8bit([{"params": mine}], **OPTIONS)
    exact = torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(20):
        for weights, optimizer in ((mine, eight), (others, exact)):
            sum((weight**2).sum() for weight in weights).backward()
            optimizer.step()
            optimizer.zero_grad()
    large, small = (eight.state[weight] for weight in mine)
    assert large["state1"].dtype == large["state2"].dtype == torch.uint8
    assert small["state1"].dtype == small["state2"].dtype == torch.float32
    torch.testing.assert_close(mine[1], others[1], rtol=1e-5, atol=1e-6)
    moved = (others[0] - start[0]).abs().mean()
    assert 0 < (mine[0] - others[0]).abs().mean() < 0.05 * moved


@needs_bitsandbytes
def test_a_run_learns_what_it_learns_with_32_bits(tmp_path):
    losses = {}
    for name, overrides in {"eight": EIGHT_BITS, "exact": ()}.items():
        cfg = job(
            tmp_path, "method=dpo", "trainer.max_epochs=null", "trainer.max_steps=30", "optim.lr=3e-3", *overrides
        )
        rows = metrics(train(cfg, tmp_path / name))
        losses[name] = sum(rows[step]["train/loss/total"] for step in range(21, 31)) / 10
        assert losses[name] < 0.8 * rows[1]["train/loss/total"]
    assert losses["eight"] != losses["exact"]
    assert losses["eight"] == pytest.approx(losses["exact"], rel=0.05)


@pytest.mark.parametrize(("optimiser", "gib"), [("adamw", 12), pytest.param("adamw_8bit", 6, marks=needs_bitsandbytes)])
def test_moments_of_8_bits_are_counted_as_such(optimiser, gib, tmp_path, monkeypatch):
    """A gradient of 4 bytes, and 8 or 2 of moments."""
    plans: list[MemoryPlan] = []
    monkeypatch.setattr("alignment.pipeline.train.count_parameters", lambda config: 2**30)
    monkeypatch.setattr("alignment.pipeline.train.require_memory", lambda plan, **what: plans.append(plan))
    train(job(tmp_path, "method=sft", f"optim={optimiser}", "trainer.max_steps=1", "export=null"), tmp_path / "run")
    assert plans == [MemoryPlan(weights=4 * 2**30, training=gib * 2**30)]


@needs_bitsandbytes
@pytest.mark.parametrize("at", [2, 4])
def test_resume_is_bitwise(at, tmp_path):
    MethodTester(("method=dpo", *EIGHT_BITS), uses_reference=True).check_resume_is_bitwise(tmp_path, at=at)


@needs_bitsandbytes
def test_two_processes_learn_what_one_does(tmp_path):
    """Not to the last bits: gradients that differ by rounding may round to another 8-bit number."""
    one = metrics(train(job(tmp_path, *EIGHT_BITS, "data.micro_batch_size=8"), tmp_path / "one"))
    two = metrics(train_forked(job(tmp_path, *EIGHT_BITS, "hardware=cpu_ddp2"), tmp_path / "two"))
    assert set(one) == set(two) == set(range(1, 7))
    for step, row in one.items():
        for name in ("train/loss/total", "train/optim/grad_norm"):
            assert two[step][name] == pytest.approx(row[name], rel=2e-4), (step, name)


@needs_bitsandbytes
def test_shards_are_refused(tmp_path):
    with pytest.raises(AssertionError, match=r"optim: got 'adamw_8bit with FSDP2', expected whole weights"):
        train_forked(job(tmp_path, *EIGHT_BITS, "hardware=cpu_fsdp2"), tmp_path / "run")
