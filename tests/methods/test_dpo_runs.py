"""What holds for a run of any method, seen on DPO."""

import json
import math

import pytest
import torch

from alignment.utils.errors import ConfigError

from method_tester import TWO_PROCESSES, MethodTester
from runs import job, metrics, train, train_forked

TESTER = MethodTester(overrides=("method=dpo", "method.beta=0.5"), uses_reference=True, start_loss=math.log(2))


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (("model.gradient_checkpointing=true",), 1e-5),
        (("model.chunk_tokens=7",), 1e-5),
        (("data.num_workers=1",), 0.0),
        (("hardware.precision=bf16-mixed",), 2e-2),
        pytest.param(("model.compile=true",), 1e-5, marks=pytest.mark.slow),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_options_change_no_more_than_rounding(tmp_path, options, tolerance):
    TESTER.check_hardware_options(tmp_path, *options, tolerance=tolerance)


def test_the_manifest_says_which_layout_and_why(tmp_path):
    run = train(job(tmp_path, "method=dpo", "trainer.max_steps=1", "export=null"), tmp_path / "run")
    layout = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["model"]["layout"]
    assert layout == {"name": "prefix_shared", "why": "no padding, and a shared prompt is computed once"}


def test_weights_in_bf16_give_the_first_step_within_their_rounding(tmp_path):
    """The first step only: what is added to a weight is rounded too, by each version of torch in its own way."""
    short = ("method=dpo", "trainer.max_steps=1", "trainer.limit_val_batches=0", "export=null")
    plain = metrics(train(job(tmp_path, *short), tmp_path / "plain"))[1]
    rounded = metrics(train(job(tmp_path, *short, "model.dtype=bfloat16"), tmp_path / "rounded"))[1]
    for name in ("train/optim/grad_norm", "train/logps/chosen_sum_nats"):
        assert rounded[name] == pytest.approx(plain[name], rel=5e-2)
        assert rounded[name] != plain[name]


@pytest.mark.parametrize(
    "override", ["method.beta=0.05", "method.loss.label_smoothing=0.2", "optim.lr=1e-2", "seed=2", "data.shuffle=false"]
)
def test_every_option_changes_something(tmp_path, override):
    """T13."""
    short = ("method=dpo", "method.beta=0.5", "trainer.max_steps=3", "trainer.limit_val_batches=0", "export=null")
    base = metrics(train(job(tmp_path, *short), tmp_path / "base"))
    other = metrics(train(job(tmp_path, *short, override), tmp_path / "other"))
    assert base[3]["train/loss/total"] != other[3]["train/loss/total"]


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
def test_the_budget_counts_every_process_once(tmp_path, hardware):
    short = ("method=dpo", "trainer.max_steps=3", "export=null", "trainer.limit_val_batches=0")
    one = metrics(train(job(tmp_path, *short), tmp_path / "one"))[3]
    two = metrics(train_forked(job(tmp_path, *short, f"hardware={hardware}"), tmp_path / "two"))[3]
    assert one["train/budget/prompts"] == 24
    for name in ("train/budget/prompts", "train/budget/tokens_trained"):
        assert two[name] == one[name]
    assert two["train/optim/grad_norm"] == pytest.approx(one["train/optim/grad_norm"], rel=1e-4)
    assert one["train/optim/learning_rate"] > 0


def test_cached_log_probs_have_the_precision_of_training(tmp_path):
    """T14 under bf16-mixed: at step 0 the loss is ln 2 whatever the reference costs."""
    for reference in ("frozen_copy", "precomputed"):
        cfg = job(
            tmp_path, "method=dpo", f"reference={reference}", "hardware.precision=bf16-mixed", "trainer.max_steps=1"
        )
        rows = metrics(train(cfg, tmp_path / reference))
        assert abs(rows[1]["train/loss/total"] - math.log(2)) < 1e-5, reference


def test_a_short_run_logs_its_last_step(tmp_path):
    run_dir = train(
        job(tmp_path, "method=dpo", "trainer.max_steps=3", "trainer.log_every_n_steps=10"), tmp_path / "run"
    )
    assert set(metrics(run_dir)) == {3}


def test_a_last_step_between_two_logged_ones_has_facts_of_its_own(tmp_path):
    steps = ("method=dpo", "trainer.max_steps=3", "trainer.log_every_n_steps=2", "trainer.limit_val_batches=0")
    rows = metrics(train(job(tmp_path, *steps, "schedule.warmup=0", "export=null"), tmp_path / "run"))
    assert set(rows) == {2, 3}
    assert rows[3]["train/optim/learning_rate"] < rows[2]["train/optim/learning_rate"]
    assert "train/optim/grad_norm" in rows[2]
    assert "train/optim/grad_norm" not in rows[3]


def test_records_longer_than_the_context_are_refused_before_any_weight_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"data.max_length: got 128, expected at most 16, the model's context"):
        train(job(tmp_path, "method=dpo", "model.config.max_position_embeddings=16"), tmp_path / "run")


def test_a_machine_without_a_gpu_is_told_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"hardware.accelerator: got 'cuda', expected cpu"):
        train(job(tmp_path, "method=dpo", "hardware=single_gpu"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
