"""RLOO: the proofs that every online method gives."""

from __future__ import annotations

import pytest
from online_tester import OnlineTester
from pyarrow import parquet

from alignment.utils.errors import ConfigError

from method_tester import TWO_PROCESSES
from runs import job, train

TESTER = OnlineTester(("method=rloo",))
TESTER_ALONE = OnlineTester((*TESTER.overrides, "method.baseline=none", "method.rollouts.group_size=1"))


def test_step_from_yaml(tmp_path):
    rows = TESTER.check_step_from_yaml(tmp_path)
    assert rows[1]["train/policy/ratio_mean"] == 1.0


def test_without_a_baseline_it_is_reinforce(tmp_path):
    """Of groups of one: a completion's advantage is its reward, at the first step without a penalty."""
    TESTER_ALONE.check_step_from_yaml(tmp_path)
    first = parquet.read_table(sorted((tmp_path / "run" / "rollouts").glob("*.parquet"))[0]).to_pylist()
    assert {row["shaped_reward"] for row in first} == {0.0, 1.0}
    for row in first:
        assert row["advantages"] == pytest.approx([row["shaped_reward"]] * len(row["advantages"]), abs=1e-4)
    with pytest.raises(ConfigError, match=r"method\.rollouts\.group_size: got 1, expected at least 2"):
        train(job(tmp_path, *TESTER.all, "method.rollouts.group_size=1"), tmp_path / "refused")


def test_learns(tmp_path):
    TESTER.check_learns(tmp_path)


def test_resume_is_bitwise(tmp_path):
    TESTER.check_resume_is_bitwise(tmp_path, at=3)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
def test_two_processes_agree_with_one(tmp_path, hardware):
    TESTER.check_processes_agree(tmp_path, hardware)


def test_accumulation_agrees(tmp_path):
    TESTER.check_accumulation_agrees(tmp_path)
