import pytest

from method_tester import TWO_PROCESSES, MethodTester

TESTERS = {
    name: MethodTester(overrides=("method=sft", f"method.normaliser={name}"), uses_reference=False)
    for name in ("token", "sequence")
}


@pytest.mark.parametrize("normaliser", TESTERS)
def test_step_from_yaml(tmp_path, normaliser):
    TESTERS[normaliser].check_step_from_yaml(tmp_path)


def test_overfits_eight_demonstrations(tmp_path):
    TESTERS["token"].check_overfits(tmp_path)


def test_resume_is_bitwise(tmp_path):
    TESTERS["token"].check_resume_is_bitwise(tmp_path, at=4)


@pytest.mark.parametrize("normaliser", TESTERS)
def test_accumulation_agrees(tmp_path, normaliser):
    TESTERS[normaliser].check_accumulation_agrees(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("variant", [(), ("adapter=lora",)], ids=["full", "lora"])
def test_two_processes_agree_with_one(tmp_path, hardware, variant):
    TESTERS["token"].check_processes_agree(tmp_path, hardware, variant)


@pytest.mark.parametrize("normaliser", TESTERS)
def test_golden_curve(tmp_path, normaliser):
    TESTERS[normaliser].check_golden(tmp_path, f"sft_{normaliser}")
