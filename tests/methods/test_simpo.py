import pytest

from alignment.config.validate import validate
from alignment.utils.errors import ConfigError

from method_tester import TWO_PROCESSES, MethodTester
from runs import SMALL, job, metrics, train

#: AdamW divides by a gradient's own size: an epsilon above fp32's rounding keeps it from making steps of rounding.
SIMPO = ("method=simpo", "optim.eps=1e-6")
TESTERS = {
    "mean": MethodTester(overrides=SIMPO, uses_reference=False),
    "sum_nll": MethodTester(
        overrides=(*SIMPO, "method.beta=0.1", "method.length_normalised=false", "method.nll_coefficient=0.5"),
        uses_reference=False,
    ),
}


@pytest.mark.parametrize("name", TESTERS)
def test_step_from_yaml(tmp_path, name):
    TESTERS[name].check_step_from_yaml(tmp_path)


def test_overfits_eight_pairs(tmp_path):
    TESTERS["mean"].check_overfits(tmp_path)


def test_resume_is_bitwise(tmp_path):
    TESTERS["mean"].check_resume_is_bitwise(tmp_path, at=4)


@pytest.mark.parametrize("name", TESTERS)
def test_accumulation_agrees(tmp_path, name):
    TESTERS[name].check_accumulation_agrees(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("variant", [(), ("adapter=lora",)], ids=["full", "lora"])
def test_two_processes_agree_with_one(tmp_path, hardware, variant):
    TESTERS["sum_nll"].check_processes_agree(tmp_path, hardware, variant)


@pytest.mark.parametrize("name", TESTERS)
def test_golden_curve(tmp_path, name):
    TESTERS[name].check_golden(tmp_path, f"simpo_{name}")


def test_gamma_and_its_ratio_are_one_number(tmp_path):
    """gamma 1.0 is 0.5 of beta 2.0; another margin is another loss."""
    short = ("method=simpo", "method.beta=2.0", "trainer.max_steps=2", "trainer.limit_val_batches=0", "export=null")
    losses = {}
    for gamma in ("1.0", "0.0", None):
        fields = () if gamma is None else (f"method.gamma={gamma}", "method.gamma_beta_ratio=null")
        rows = metrics(train(job(tmp_path, *short, *fields), tmp_path / str(gamma)))
        losses[gamma] = rows[2]["train/loss/total"]
    assert losses["1.0"] == losses[None] != losses["0.0"]


def test_a_reference_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="reference: got 'FrozenCopy', expected none, because SimPO takes no"):
        validate(job(tmp_path, "method=simpo", "reference=frozen_copy"), "train")


def test_the_kl_to_the_start_is_logged_without_a_reference(tmp_path):
    fresh = ("callbacks.fresh_samples.num_prompts=4", "rollout.sampling.max_new_tokens=4", "trainer.max_steps=2")
    cfg = job(tmp_path, *(override for override in SMALL if "fresh" not in override), *SIMPO, *fresh, small=False)
    rows = metrics(train(cfg, tmp_path / "run"))
    assert rows[0]["fresh/kl/policy_start_nats"] == pytest.approx(0, abs=1e-5)
    assert rows[2]["fresh/kl/policy_start_nats"] != 0
