import math

import pytest

from method_tester import ADAPTED, FULL, TWO_PROCESSES, MethodTester

TESTER = MethodTester(overrides=("method=dpo", "method.beta=0.5"), uses_reference=True, start_loss=math.log(2))


def test_step_from_yaml(tmp_path):
    TESTER.check_step_from_yaml(tmp_path)


def test_overfits_eight_pairs(tmp_path):
    TESTER.check_overfits(tmp_path)


@pytest.mark.parametrize("at", [2, 4])
def test_resume_is_bitwise(tmp_path, at):
    TESTER.check_resume_is_bitwise(tmp_path, at=at)


def test_accumulation_agrees(tmp_path):
    TESTER.check_accumulation_agrees(tmp_path)


def test_reference_strategies_agree(tmp_path):
    TESTER.check_references_agree(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("variant", [*FULL, *ADAPTED], ids="-".join)
def test_two_processes_agree_with_one(tmp_path, hardware, variant):
    TESTER.check_processes_agree(tmp_path, hardware, variant)


def test_golden_curve(tmp_path):
    TESTER.check_golden(tmp_path, "dpo")
