import pytest

from method_tester import TWO_PROCESSES, MethodTester
from runs import job, metrics, train

#: AdamW divides by a gradient's own size: an epsilon above fp32's rounding keeps it from making steps of rounding.
CPO = ("method=cpo", "optim.eps=1e-6")
TESTERS = {
    "token": MethodTester(overrides=CPO, uses_reference=False),
    "sequence": MethodTester(overrides=(*CPO, "method.nll_normaliser=sequence"), uses_reference=False),
}


@pytest.mark.parametrize("name", TESTERS)
def test_step_from_yaml(tmp_path, name):
    TESTERS[name].check_step_from_yaml(tmp_path)


def test_overfits_eight_pairs(tmp_path):
    TESTERS["token"].check_overfits(tmp_path)


def test_resume_is_bitwise(tmp_path):
    TESTERS["token"].check_resume_is_bitwise(tmp_path, at=4)


@pytest.mark.parametrize("name", TESTERS)
def test_accumulation_agrees(tmp_path, name):
    TESTERS[name].check_accumulation_agrees(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("variant", [(), ("adapter=lora",)], ids=["full", "lora"])
def test_two_processes_agree_with_one(tmp_path, hardware, variant):
    TESTERS["token"].check_processes_agree(tmp_path, hardware, variant)


@pytest.mark.parametrize("name", TESTERS)
def test_golden_curve(tmp_path, name):
    TESTERS[name].check_golden(tmp_path, f"cpo_{name}")


@pytest.mark.parametrize(
    "override",
    [
        "method.beta=0.2",
        "method.nll_coefficient=0",
        "method.nll_coefficient=0.5",
        "method.nll_normaliser=sequence",
        "method.label_smoothing=0.2",
    ],
)
def test_every_option_changes_something(tmp_path, override):
    """T13."""
    short = (*CPO, "trainer.max_steps=2", "trainer.limit_val_batches=0", "export=null")
    base = metrics(train(job(tmp_path, *short), tmp_path / "base"))
    other = metrics(train(job(tmp_path, *short, override), tmp_path / "other"))
    assert base[1]["train/loss/total"] != other[1]["train/loss/total"]
    assert base[1]["train/loss/total"] == pytest.approx(base[1]["train/loss/cpo"] + base[1]["train/loss/nll"])
    # What is logged is added up apart from what is learnt from: the first step's gradient and update are others too.
    for step, learnt in ((1, "train/optim/grad_norm"), (2, "train/logps/chosen_sum_nats")):
        assert base[step][learnt] != pytest.approx(other[step][learnt], rel=1e-5)
