import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from alignment.config.validate import validate
from alignment.utils.errors import ConfigError

from method_tester import TWO_PROCESSES, MethodTester
from runs import SMALL_RUN, job, metrics, train

TESTER = MethodTester(overrides=("method=reward_model",), uses_reference=False)


def test_step_from_yaml(tmp_path):
    TESTER.check_step_from_yaml(tmp_path)


def test_overfits_eight_pairs(tmp_path):
    TESTER.check_overfits(tmp_path)


def test_resume_is_bitwise(tmp_path):
    TESTER.check_resume_is_bitwise(tmp_path, at=4)


def test_accumulation_agrees(tmp_path):
    TESTER.check_accumulation_agrees(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("variant", [("adapter=none",), ("adapter=lora",)], ids="-".join)
def test_two_processes_agree_with_one(tmp_path, hardware, variant):
    TESTER.check_processes_agree(tmp_path, hardware, variant)


@pytest.mark.parametrize("option", ["model.gradient_checkpointing=true", "model.compile=true"])
def test_hardware_options_change_no_number(tmp_path, option):
    TESTER.check_hardware_options(tmp_path, option, tolerance=1e-4)


def test_golden_curve(tmp_path):
    TESTER.check_golden(tmp_path, "reward_model")


def test_centering_pulls_the_level_to_zero(tmp_path):
    levels = {}
    for coefficient in (0.0, 10.0):
        run = train(job(tmp_path, *TESTER.overrides, f"method.centering_coefficient={coefficient}"), tmp_path / "run")
        row = metrics(run)[6]
        levels[coefficient] = abs(row["train/reward/chosen"] + row["train/reward/rejected"])
        assert ("train/loss/centering" in row) == (coefficient > 0)
        if coefficient:
            total = row["train/loss/reward_model"] + coefficient * row["train/loss/centering"]
            assert row["train/loss/total"] == pytest.approx(total)
        run.rename(tmp_path / f"run_{coefficient}")
    assert levels[10.0] < 0.5 * levels[0.0]


def test_validation_has_a_calibration_error(tmp_path):
    rows = metrics(train(job(tmp_path, *TESTER.overrides), tmp_path / "run"))
    errors = [row["val/calibration/expected_error"] for row in rows.values() if "val/loss/total" in row]
    assert errors
    assert all(0 <= error <= 1 for error in errors)
    assert not any("calibration" in name for row in rows.values() for name in row if name.startswith("train/"))


def test_the_export_loads_in_transformers(tmp_path):
    run = train(job(tmp_path, *TESTER.overrides, "trainer.max_steps=2"), tmp_path / "run")
    model = AutoModelForSequenceClassification.from_pretrained(run / "model")
    assert model.config.num_labels == 1
    assert model.config.pad_token_id != model.config.eos_token_id
    assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()


def test_ties_are_learnt_as_ties(tmp_path):
    """With every label soft at one half, nothing beats a difference of zero: the loss goes to log 2."""
    rows = "".join(
        f'{{"prompt": "p{i}", "chosen": "good {i}", "rejected": "bad {i}", "probability": 0.5}}\n' for i in range(8)
    )
    (tmp_path / "ties.jsonl").write_text(rows, encoding="utf-8")
    cfg = job(
        tmp_path,
        *SMALL_RUN,
        *TESTER.overrides,
        *("data=jsonl", f"data.train.path={tmp_path / 'ties.jsonl'}", "data.validation_size=0", "reward=none"),
        *("data.max_length=64", "data.max_prompt_length=32", "trainer.max_steps=40", "trainer.max_epochs=null"),
        *("optim.lr=1e-2", "export=null", "callbacks.checkpoint.every_n_steps=100"),
        small=False,
    )
    rows_by_step = metrics(train(cfg, tmp_path / "run"))
    assert rows_by_step[1]["train/loss/total"] > rows_by_step[40]["train/loss/total"] > math.log(2) - 1e-6
    assert rows_by_step[40]["train/loss/total"] < math.log(2) + 0.02
    assert math.isnan(rows_by_step[40].get("train/reward/accuracy", math.nan))


def test_a_reference_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="reference: got 'FrozenCopy', expected none, because RewardModel takes no"):
        validate(job(tmp_path, *TESTER.overrides, "reference=frozen_copy"), "train")
