import pytest

from method_tester import ADAPTED, FULL, TWO_PROCESSES, MethodTester

#: The world's pairs, each seen as a thumbs up and a thumbs down; all weights are 1 and beta is .1.
TESTER = MethodTester(overrides=("method=kto",), uses_reference=True, start_loss=0.5)


def test_step_from_yaml(tmp_path):
    """At step 0 every log-ratio and z0 are 0: the loss is lambda (1 - sigma(0))."""
    TESTER.check_step_from_yaml(tmp_path)


def test_overfits_eight_pairs(tmp_path):
    TESTER.check_overfits(tmp_path)


@pytest.mark.parametrize("at", [2, 4])
def test_resume_is_bitwise(tmp_path, at):
    """In the middle of an epoch of 12 steps, each accumulated over two micro-batches."""
    TESTER.check_resume_is_bitwise(tmp_path, at=at)


def test_accumulation_agrees(tmp_path):
    TESTER.check_accumulation_agrees(tmp_path)


def test_reference_strategies_agree(tmp_path):
    TESTER.check_references_agree(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("variant", [*FULL, ADAPTED[1]], ids="-".join)
def test_two_processes_agree_with_one(tmp_path, hardware, variant):
    TESTER.check_processes_agree(tmp_path, hardware, variant)


def test_golden_curve(tmp_path):
    TESTER.check_golden(tmp_path, "kto")
