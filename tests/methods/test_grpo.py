"""GRPO: its presets, and the proofs that every online method gives."""

from __future__ import annotations

import pytest
from online_tester import SEVERAL, OnlineTester

from method_tester import TWO_PROCESSES
from runs import job, metrics, train

TESTER = OnlineTester(("method=grpo", "method.rollouts.group_size=4"))


def test_step_from_yaml(tmp_path):
    rows = TESTER.check_step_from_yaml(tmp_path)
    # Advantages of a group add up to 0, ratios are 1, and there is no KL yet (T14).
    assert rows[1]["train/loss/policy"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["train/loss/kl"] == pytest.approx(0.0, abs=1e-6)
    assert rows[1]["train/policy/ratio_mean"] == 1.0
    assert rows[1]["train/policy/sampler_mismatch"] == pytest.approx(1.0, abs=1e-4)


def test_learns(tmp_path):
    TESTER.check_learns(tmp_path)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6])
def test_resume_is_bitwise(tmp_path, at):
    """Also in the middle of the minibatches of one experience, and at its end."""
    TESTER.check_resume_is_bitwise(tmp_path, *SEVERAL, at=at)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("steps", [(), SEVERAL], ids=["on_policy", "several_steps"])
def test_two_processes_agree_with_one(tmp_path, hardware, steps):
    TESTER.check_processes_agree(tmp_path, hardware, *steps)


def test_accumulation_agrees(tmp_path):
    TESTER.check_accumulation_agrees(tmp_path)


@pytest.mark.parametrize("preset", ["dr_grpo", "dapo", "gspo", "cispo"])
def test_presets_run_and_differ(tmp_path, preset):
    short = (*TESTER.all, *SEVERAL, "export=null", "callbacks.checkpoint.every_n_steps=100")
    rows = metrics(train(job(tmp_path, *short, f"method/preset={preset}"), tmp_path / "preset"))
    plain = metrics(train(job(tmp_path, *short), tmp_path / "plain"))
    assert rows[6]["train/loss/policy"] != plain[6]["train/loss/policy"]
    assert "train/kl/policy_reference_nats" not in rows[1]
