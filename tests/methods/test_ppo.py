"""PPO: both critics, and the proofs that every online method gives."""

from __future__ import annotations

import pytest
from online_tester import SEVERAL, OnlineTester

from method_tester import TWO_PROCESSES

TESTER = OnlineTester(("method=ppo", *SEVERAL, "method.rollouts.group_size=2"))
CRITICS = ("separate", "value_head")


@pytest.mark.parametrize("critic", CRITICS)
def test_step_from_yaml(tmp_path, critic):
    rows = OnlineTester(("method=ppo", f"critic={critic}")).check_step_from_yaml(tmp_path)
    assert rows[1]["train/policy/ratio_mean"] == 1.0
    assert rows[1]["train/value/mean"] == 0.0  # a head of zeros


@pytest.mark.parametrize("critic", CRITICS)
def test_learns(tmp_path, critic):
    OnlineTester((*TESTER.overrides, f"critic={critic}")).check_learns(tmp_path, steps=80)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("at", [2, 4])
def test_resume_is_bitwise(tmp_path, critic, at):
    TESTER.check_resume_is_bitwise(tmp_path, f"critic={critic}", at=at)


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("hardware", TWO_PROCESSES)
def test_two_processes_agree_with_one(tmp_path, hardware, critic):
    TESTER.check_processes_agree(tmp_path, hardware, f"critic={critic}")


def test_accumulation_agrees(tmp_path):
    TESTER.check_accumulation_agrees(tmp_path)
