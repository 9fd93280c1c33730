"""Online DPO: the proofs that every online method gives."""

from __future__ import annotations

import math

import pytest
from online_tester import OnlineTester

from method_tester import TWO_PROCESSES

TESTER = OnlineTester(("method=online_dpo",))


def test_step_from_yaml(tmp_path):
    rows = TESTER.check_step_from_yaml(tmp_path)
    assert rows[1]["train/loss/dpo"] == pytest.approx(math.log(2), abs=1e-5)


def test_learns(tmp_path):
    TESTER.check_learns(tmp_path)


def test_resume_is_bitwise(tmp_path):
    TESTER.check_resume_is_bitwise(tmp_path, at=3)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
def test_two_processes_agree_with_one(tmp_path, hardware):
    TESTER.check_processes_agree(tmp_path, hardware)


def test_accumulation_agrees(tmp_path):
    TESTER.check_accumulation_agrees(tmp_path)
