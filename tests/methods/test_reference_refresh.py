"""A reference that follows the policy: TR-DPO (T36)."""

from __future__ import annotations

import json
import math

import pytest
import torch

from alignment.diagnostics.checkpoint import STATE
from alignment.utils.errors import UserError

from method_tester import TWO_PROCESSES, MethodTester
from runs import job, metrics, train

REFRESHED = MethodTester(
    overrides=("method=dpo", "method.beta=0.5", "reference.refresh_every_n_steps=3", "reference.refresh_mix=0.6"),
    uses_reference=True,
)


def state(run_dir, step: int) -> dict:
    return torch.load(run_dir / "checkpoints" / f"step-{step:06d}" / STATE, weights_only=True)


def test_after_a_hard_refresh_the_reference_is_the_policy(tmp_path):
    cfg = job(tmp_path, "method=dpo", "reference.refresh_every_n_steps=3", "callbacks.checkpoint.every_n_steps=3")
    run_dir = train(cfg, tmp_path / "run")
    rows = metrics(run_dir)
    for step, row in rows.items():
        fresh = step in (1, 4)  # the first step, and the first after the refresh
        assert (abs(row["train/loss/total"] - math.log(2)) < 1e-6) == fresh, step
    saved = state(run_dir, 3)
    for name, value in saved["reference"].items():
        torch.testing.assert_close(value, saved["state_dict"][f"policy.{name}"], rtol=0, atol=1e-7)


def test_a_soft_refresh_mixes(tmp_path):
    cfg = job(tmp_path, *REFRESHED.overrides, "callbacks.checkpoint.every_n_steps=1", "trainer.max_steps=3")
    run_dir = train(cfg, tmp_path / "run")
    before, after = state(run_dir, 2), state(run_dir, 3)
    for name, value in after["reference"].items():
        expected = 0.4 * before["reference"][name] + 0.6 * after["state_dict"][f"policy.{name}"]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def test_the_optimiser_is_left_alone(tmp_path):
    """Up to the refresh two runs are one: the refresh after step 3 moves no weight and no moment."""
    short = ("method=dpo", "method.beta=0.5", "callbacks.checkpoint.every_n_steps=3", "trainer.max_steps=6")
    plain = state(train(job(tmp_path, *short), tmp_path / "plain"), 3)
    refreshed = state(train(job(tmp_path, *short, "reference.refresh_every_n_steps=3"), tmp_path / "refreshed"), 3)
    assert plain["reference"] is None
    for name, value in plain["state_dict"].items():
        assert torch.equal(value, refreshed["state_dict"][name])
    for key, entry in plain["optimizer_states"][0]["state"].items():
        assert torch.equal(entry["exp_avg"], refreshed["optimizer_states"][0]["state"][key]["exp_avg"])


def test_a_resumed_run_keeps_the_refreshed_reference(tmp_path):
    REFRESHED.check_resume_is_bitwise(tmp_path, at=4)


def test_accumulation_agrees(tmp_path):
    """A refresh counts optimiser steps, not micro-batches."""
    REFRESHED.check_accumulation_agrees(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
def test_two_processes_agree_with_one(tmp_path, hardware):
    REFRESHED.check_processes_agree(tmp_path, hardware, ())


def test_fresh_samples_do_not_take_it_for_the_start(tmp_path):
    cfg = job(
        tmp_path,
        *REFRESHED.overrides,
        "callbacks={fresh_samples: {_target_: alignment.diagnostics.fresh_samples.FreshSamples, _partial_: true, "
        "num_prompts: 2, every_n_steps: null, start_model: reference, engine: ${rollout.engine}, "
        "sampling: ${rollout.sampling}, reward: null}}",
        "rollout.sampling.max_new_tokens=4",
    )
    run_dir = train(cfg, tmp_path / "run")
    last = json.loads((run_dir / "evaluations.jsonl").read_text().splitlines()[-1])
    assert "kl/policy_start_nats" not in last["metrics"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("reference.refresh_every_n_steps=0", "refresh_every_n_steps: got 0, expected at least 1"),
        ("reference.refresh_mix=1.5", r"refresh_mix: got 1.5, expected a share in \(0, 1\]"),
        ("adapter=lora", "expected null with an adapter"),
    ],
)
def test_what_cannot_be_refreshed_is_refused(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        train(job(tmp_path, "method=dpo", "reference.refresh_every_n_steps=3", override), tmp_path / "run")


def test_cached_log_probs_cannot_be_refreshed(tmp_path):
    with pytest.raises(UserError, match="refresh_every_n_steps"):
        job(tmp_path, "method=dpo", "reference=precomputed", "reference.refresh_every_n_steps=3")
