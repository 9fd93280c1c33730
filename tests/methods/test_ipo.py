import pytest

from alignment.config.validate import validate
from alignment.utils.errors import ConfigError

from method_tester import ADAPTED, FULL, TWO_PROCESSES, MethodTester
from runs import job, metrics, train

TESTERS = {
    name: MethodTester(
        overrides=("method=ipo", "method.tau=0.5", f"method.reduction={name}"), uses_reference=True, start_loss=1.0
    )
    for name in ("mean", "sum")
}


@pytest.mark.parametrize("reduction", TESTERS)
def test_step_from_yaml(tmp_path, reduction):
    """At step 0 the margin is 0 and the loss 1 / (4 tau^2)."""
    TESTERS[reduction].check_step_from_yaml(tmp_path)


def test_the_reduction_is_what_it_says(tmp_path):
    """T29: mean and sum are two algorithms, and the one that was asked for runs."""
    runs = {name: metrics(train(job(tmp_path, *TESTERS[name].overrides), tmp_path / name)) for name in TESTERS}
    assert runs["mean"][3]["train/loss/total"] != runs["sum"][3]["train/loss/total"]
    for name, rows in runs.items():
        margin = rows[1]["train/reward/margin"]
        assert margin == 0.0, name
    assert runs["sum"][6]["train/reward/margin"] > runs["mean"][6]["train/reward/margin"]


def test_overfits_eight_pairs(tmp_path):
    TESTERS["mean"].check_overfits(tmp_path)


def test_resume_is_bitwise(tmp_path):
    TESTERS["mean"].check_resume_is_bitwise(tmp_path, at=4)


def test_accumulation_agrees(tmp_path):
    TESTERS["mean"].check_accumulation_agrees(tmp_path)


def test_reference_strategies_agree(tmp_path):
    TESTERS["sum"].check_references_agree(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("variant", [*FULL, ADAPTED[1]], ids="-".join)
def test_two_processes_agree_with_one(tmp_path, hardware, variant):
    TESTERS["mean"].check_processes_agree(tmp_path, hardware, variant)


@pytest.mark.parametrize(("reduction", "name"), [("mean", "ipo"), ("sum", "ipo_sum")])
def test_golden_curve(tmp_path, reduction, name):
    TESTERS[reduction].check_golden(tmp_path, name)


@pytest.mark.parametrize("tau", ["0", "-1", "inf", "nan"])
def test_a_tau_without_a_target_is_refused(tmp_path, tau):
    """Before anything is loaded: 1 / (2 tau) must be a margin, and above 0."""
    with pytest.raises(ConfigError, match=rf"method.tau: got {tau}, expected a number in \(0, inf\)"):
        validate(job(tmp_path, "method=ipo", f"method.tau={tau}"), "train")
