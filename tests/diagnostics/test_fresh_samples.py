"""Measuring while training leaves training as it was (T38), and measures the same on every hardware."""

from __future__ import annotations

import json

import pytest
import torch

from runs import SMALL, exported, job, metrics, train, train_forked

MEASURED = (
    *(override for override in SMALL if "fresh_samples" not in override),
    "method=dpo",
    "callbacks.fresh_samples.num_prompts=6",
    "rollout.sampling.max_new_tokens=8",
)


def run(tmp_path, name: str, *overrides: str):
    return train(job(tmp_path, *MEASURED, *overrides, small=False), tmp_path / name)


def evaluations(run_dir) -> dict[int, dict]:
    lines = (run_dir / "evaluations.jsonl").read_text().splitlines()
    return {row["step"]: row["metrics"] for row in map(json.loads, lines)}


def test_measuring_every_step_leaves_the_trajectory_unchanged(tmp_path):
    often = run(tmp_path, "often", "callbacks.fresh_samples.every_n_steps=1", "trainer.val_every_n_steps=1")
    never = run(tmp_path, "never", "callbacks.fresh_samples=null", "trainer.limit_val_batches=0")
    assert all(torch.equal(value, exported(never)[name]) for name, value in exported(often).items())
    for step, row in metrics(never).items():
        for name in ("train/loss/total", "train/reward/margin", "train/logps/chosen_sum_nats"):
            assert metrics(often)[step][name] == row[name]
    assert sorted(evaluations(often)) == list(range(7))


@pytest.mark.parametrize("at", [4, 6])
def test_a_resumed_run_is_measured_like_one_that_was_never_stopped(tmp_path, at):
    """Against the start's rewards too; and at its last step, where there is nothing left to train."""
    whole = run(tmp_path, "whole")
    checkpoint = whole / "checkpoints" / f"step-{at:06d}"
    broken = tmp_path / "broken"
    (broken / "checkpoints").mkdir(parents=True)
    checkpoint.rename(broken / "checkpoints" / checkpoint.name)
    cfg = job(tmp_path, *MEASURED, f"resume={broken}", small=False)
    train(cfg, tmp_path / "unused")
    assert evaluations(broken)[6] == evaluations(whole)[6]
    assert "win_rate/against_start" in evaluations(broken)[6]
    expected, got = (json.loads((folder / "manifest.json").read_text())["metrics"] for folder in (whole, broken))
    assert {"train/loss/total", "val/loss/total", "fresh/reward/gain_against_start"} < set(expected)
    assert {name: value for name, value in got.items() if "second" not in name} == {
        name: value for name, value in expected.items() if "second" not in name
    }
    assert cfg.paths.run_dir == str(broken), "whoever reports a failure looks for the folder there"


def test_a_run_that_goes_on_with_other_prompts_is_not_compared_with_its_start(tmp_path, caplog):
    run_dir = run(tmp_path, "run", "trainer.max_steps=2")
    run(tmp_path, "unused", f"resume={run_dir}", "trainer.max_steps=3", "callbacks.fresh_samples.num_prompts=4")
    assert "win_rate/against_start" in evaluations(run_dir)[2]
    assert "win_rate/against_start" not in evaluations(run_dir)[3]
    assert "the start was measured on other prompts" in caplog.text


def test_kl_is_zero_at_the_start_and_positive_after_large_steps(tmp_path):
    run_dir = run(tmp_path, "run", "optim.lr=3e-2", "callbacks.fresh_samples.num_prompts=16")
    rows = evaluations(run_dir)
    assert abs(rows[0]["kl/policy_start_nats"]["mean"]) < 1e-5
    assert rows[6]["kl/policy_start_nats"]["mean"] > 0.1
    assert rows[6]["win_rate/against_start"]["num"] == rows[6]["reward/total"]["num"]


def test_without_a_model_to_compare_with_the_kl_is_left_out_and_load_brings_it_back(tmp_path, caplog):
    without = run(tmp_path, "without", "reference=precomputed")
    assert "kl/policy_start_nats" not in evaluations(without)[6]
    assert "KL to the start is left out" in caplog.text
    loaded = run(tmp_path, "loaded", "reference=precomputed", "callbacks.fresh_samples.start_model=load")
    frozen = run(tmp_path, "frozen", "reference=frozen_copy")
    expected = evaluations(frozen)[6]["kl/policy_start_nats"]["mean"]
    assert evaluations(loaded)[6]["kl/policy_start_nats"]["mean"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("hardware", ["cpu_ddp2", "cpu_fsdp2"])
def test_two_processes_measure_what_one_does(tmp_path, hardware):
    overrides = (*MEASURED, "callbacks.fresh_samples.num_prompts=5", "callbacks.fresh_samples.every_n_steps=2")
    one = train(job(tmp_path, *overrides, small=False), tmp_path / "one")
    two = train_forked(job(tmp_path, *overrides, f"hardware={hardware}", small=False), tmp_path / "two")
    assert sorted(evaluations(one)) == sorted(evaluations(two)) == [0, 2, 4, 6]
    for step, row in evaluations(one).items():
        for name, estimate in row.items():
            assert evaluations(two)[step][name]["mean"] == pytest.approx(estimate["mean"], abs=2e-3), (step, name)
    first = [json.loads(line) for line in (one / "samples" / "step=000000.jsonl").read_text().splitlines()]
    other = [json.loads(line) for line in (two / "samples" / "step=000000.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in first] == [row["completion"] for row in other]
