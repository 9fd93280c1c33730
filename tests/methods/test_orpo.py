import pytest

from method_tester import TWO_PROCESSES, MethodTester
from runs import job, metrics, train

#: AdamW divides by a gradient's own size: an epsilon above fp32's rounding keeps it from making steps of rounding.
ORPO = ("method=orpo", "optim.eps=1e-6")
#: TRL's normalisation, and the authors'.
TRL = ("method.nll_over=prompt_and_completion", "method.nll_normaliser=token")
TESTERS = {
    "paper": MethodTester(overrides=ORPO, uses_reference=False),
    "sequence": MethodTester(overrides=(*ORPO, "method.nll_normaliser=sequence"), uses_reference=False),
    "trl": MethodTester(overrides=(*ORPO, *TRL), uses_reference=False),
}


@pytest.mark.parametrize("name", TESTERS)
def test_step_from_yaml(tmp_path, name):
    TESTERS[name].check_step_from_yaml(tmp_path)


def test_overfits_eight_pairs(tmp_path):
    TESTERS["paper"].check_overfits(tmp_path)


def test_resume_is_bitwise(tmp_path):
    TESTERS["paper"].check_resume_is_bitwise(tmp_path, at=4)


@pytest.mark.parametrize("name", TESTERS)
def test_accumulation_agrees(tmp_path, name):
    TESTERS[name].check_accumulation_agrees(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("variant", [(), ("adapter=lora",)], ids=["full", "lora"])
def test_two_processes_agree_with_one(tmp_path, hardware, variant):
    TESTERS["trl"].check_processes_agree(tmp_path, hardware, variant)


@pytest.mark.parametrize("name", TESTERS)
def test_golden_curve(tmp_path, name):
    TESTERS[name].check_golden(tmp_path, f"orpo_{name}")


def test_the_likelihood_is_over_what_is_asked_for(tmp_path):
    short = (*ORPO, "trainer.max_steps=1", "trainer.limit_val_batches=0", "export=null")
    variants = {"paper": (), "trl": TRL, "lambda": ("method.odds_ratio_coefficient=0.5",)}
    rows = {name: metrics(train(job(tmp_path, *short, *v), tmp_path / name))[1] for name, v in variants.items()}
    # Neither the likelihood's tokens nor lambda touch the odds, which are of completions.
    for name in ("train/loss/odds_ratio", "train/odds/log_ratio_nats", "train/length/chosen_tokens"):
        assert rows["paper"][name] == rows["trl"][name] == rows["lambda"][name], name
    for coefficient, row in ((0.1, rows["paper"]), (0.1, rows["trl"]), (0.5, rows["lambda"])):
        total = row["train/loss/nll"] + coefficient * row["train/loss/odds_ratio"]
        assert row["train/loss/total"] == pytest.approx(total)
    assert rows["paper"]["train/loss/nll"] == rows["lambda"]["train/loss/nll"] != rows["trl"]["train/loss/nll"]
