import math

import pytest

from alignment.data.worlds.tokenizer import world_tokenizer
from alignment.models.logprob_model import LogprobModel

from method_tester import TWO_PROCESSES, MethodTester
from runs import job, metrics, train

TESTERS = {
    name: MethodTester(overrides=("method=sft", f"method.normaliser={name}"), uses_reference=False)
    for name in ("token", "sequence")
}
#: AdamW divides by a gradient's own size: an epsilon above fp32's rounding keeps it from making steps of rounding.
PROMPT = ("method.train_on_prompt=true", "optim.eps=1e-6")
TESTERS |= {
    f"{name}_prompt": MethodTester(overrides=(*TESTERS[name].overrides, *PROMPT), uses_reference=False)
    for name in ("token", "sequence")
}


@pytest.mark.parametrize("name", TESTERS)
def test_step_from_yaml(tmp_path, name):
    TESTERS[name].check_step_from_yaml(tmp_path)


@pytest.mark.parametrize("name", ["token", "token_prompt"])
def test_overfits_eight_demonstrations(tmp_path, name):
    TESTERS[name].check_overfits(tmp_path)


@pytest.mark.parametrize("name", ["token", "sequence_prompt"])
def test_resume_is_bitwise(tmp_path, name):
    TESTERS[name].check_resume_is_bitwise(tmp_path, at=4)


@pytest.mark.parametrize("name", TESTERS)
def test_accumulation_agrees(tmp_path, name):
    TESTERS[name].check_accumulation_agrees(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("variant", [(), ("adapter=lora",)], ids=["full", "lora"])
@pytest.mark.parametrize("name", ["token", "token_prompt"])
def test_two_processes_agree_with_one(tmp_path, hardware, variant, name):
    TESTERS[name].check_processes_agree(tmp_path, hardware, variant)


@pytest.mark.parametrize("name", TESTERS)
def test_golden_curve(tmp_path, name):
    TESTERS[name].check_golden(tmp_path, f"sft_{name}")


def test_entropy_is_that_of_the_distribution_and_is_computed_when_it_is_logged(tmp_path, monkeypatch):
    asked: list[bool] = []
    forward = LogprobModel.forward
    monkeypatch.setattr(
        LogprobModel,
        "forward",
        lambda self, batch, **on: asked.append(on.get("entropy", False)) or forward(self, batch, **on),
    )
    steps = ("method=sft", "trainer.max_steps=4", "trainer.log_every_n_steps=2", "trainer.limit_val_batches=0")
    rows = metrics(train(job(tmp_path, *steps, "export=null", "callbacks.fresh_samples=null"), tmp_path / "run"))
    # Two micro-batches a step; before them the check of the head.
    assert asked == [False, False, False, True, True, False, False, True, True]
    vocabulary = len(world_tokenizer())
    for step in (2, 4):
        assert 0.1 < rows[step]["train/policy/entropy_nats"] < math.log(vocabulary)
        assert 0 <= rows[step]["train/policy/token_accuracy"] <= 1


def test_prompts_are_in_the_loss_and_in_nothing_that_is_logged_of_completions(tmp_path):
    one_step = ("method=sft", "trainer.max_steps=1", "trainer.limit_val_batches=0", "export=null")
    without = metrics(train(job(tmp_path, *one_step), tmp_path / "without"))[1]
    with_prompt = metrics(train(job(tmp_path, *one_step, PROMPT[0]), tmp_path / "with"))[1]
    for group in (
        "logps/completion_mean_nats",
        "policy/token_accuracy",
        "length/completion_tokens",
        "budget/tokens_trained",
    ):
        name = f"train/{group}"
        assert with_prompt[name] == pytest.approx(without[name]), name
    assert without["train/loss/nll"] == pytest.approx(-without["train/logps/completion_mean_nats"])
    assert with_prompt["train/loss/nll"] != pytest.approx(without["train/loss/nll"], rel=1e-6)
