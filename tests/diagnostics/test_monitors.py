"""Monitors speak when they should, once, in words, and are silent otherwise."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from alignment.diagnostics.health import NonFiniteLossError
from alignment.diagnostics.monitors import LengthBias, LikelihoodDisplacement, Overfitting

from runs import job, train


def look(monitor, step: int, **values: float) -> None:
    metrics = {name.replace("__", "/"): torch.tensor(value) for name, value in values.items()}
    trainer = SimpleNamespace(callback_metrics=metrics, global_step=step, is_global_zero=True, sanity_checking=False)
    monitor.on_validation_end(trainer, None)


def warnings(folder) -> list[dict]:
    path = folder / "warnings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_displacement_needs_both_depth_and_breadth(tmp_path):
    monitor = LikelihoodDisplacement(max_drop_nats=0.5, min_share=0.6, folder=tmp_path)
    look(monitor, 1, val__logps__chosen_shift_nats=-0.4, val__logps__chosen_fell_share=0.9)
    look(monitor, 2, val__logps__chosen_shift_nats=-3.0, val__logps__chosen_fell_share=0.3)
    assert warnings(tmp_path) == []
    look(monitor, 3, val__logps__chosen_shift_nats=-3.0, val__logps__chosen_fell_share=0.8)
    look(monitor, 4, val__logps__chosen_shift_nats=-4.0, val__logps__chosen_fell_share=0.8)
    assert [(w["step"], w["monitor"]) for w in warnings(tmp_path)] == [(3, "likelihood_displacement")]
    assert "-3.00 nats on average against the reference, on 80% of val pairs" in warnings(tmp_path)[0]["message"]


def test_displacement_warns_again_after_it_had_gone(tmp_path):
    monitor = LikelihoodDisplacement(max_drop_nats=0.5, min_share=0.6, folder=tmp_path)
    for step, shift in enumerate([-1.0, -0.1, -1.0]):
        look(monitor, step, train__logps__chosen_shift_nats=shift, train__logps__chosen_fell_share=1.0)
    assert [w["step"] for w in warnings(tmp_path)] == [0, 2]


def test_length_is_compared_with_the_first_samples(tmp_path):
    monitor = LengthBias(max_ratio=1.5, folder=tmp_path)
    look(monitor, 0, fresh__length__completion_tokens=20.0)
    look(monitor, 5, fresh__length__completion_tokens=29.0)
    assert warnings(tmp_path) == []
    look(monitor, 9, fresh__length__completion_tokens=50.0)
    assert "samples have grown from 20 to 50 tokens (2.5 times)" in warnings(tmp_path)[0]["message"]


def test_overfitting_needs_patience_and_a_falling_training_loss(tmp_path):
    monitor = Overfitting(tolerance=0.05, patience=2, folder=tmp_path)
    for step, (val, train_loss) in enumerate([(0.60, 0.6), (0.50, 0.5), (0.56, 0.4), (0.50, 0.3), (0.54, 0.2)]):
        look(monitor, step, val__loss__total=val, train__loss__total=train_loss)
    assert warnings(tmp_path) == [], "one bad validation is noise"
    look(monitor, 5, val__loss__total=0.60, train__loss__total=0.9)
    assert warnings(tmp_path) == [], "the training loss rises too: that is not overfitting"
    look(monitor, 6, val__loss__total=0.61, train__loss__total=0.1)
    assert "above its best (0.5)" in warnings(tmp_path)[0]["message"]


@pytest.mark.parametrize("kind", [LikelihoodDisplacement, LengthBias, Overfitting])
def test_a_resumed_monitor_remembers(tmp_path, kind):
    options = {
        LikelihoodDisplacement: {"max_drop_nats": 0.5, "min_share": 0.6},
        LengthBias: {"max_ratio": 1.5},
        Overfitting: {"tolerance": 0.05, "patience": 1},
    }[kind]
    values = {
        "fresh__length__completion_tokens": (10.0, 40.0),
        "train__logps__chosen_shift_nats": (0.0, -2.0),
        "train__logps__chosen_fell_share": (0.0, 1.0),
        "val__loss__total": (0.5, 0.9),
        "train__loss__total": (0.5, 0.1),
    }
    first = kind(**options, folder=tmp_path)
    look(first, 1, **{name: value[0] for name, value in values.items()})
    look(first, 2, **{name: value[1] for name, value in values.items()})
    second = kind(**options, folder=tmp_path)
    second.load_state_dict(first.state_dict())
    look(second, 3, **{name: value[1] for name, value in values.items()})
    assert [w["step"] for w in warnings(tmp_path)] == [2]


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_records(tmp_path, monkeypatch):
    from alignment.methods import dpo

    calls = []
    real = dpo.dpo_loss

    def poisoned(**arguments):
        calls.append(1)
        losses = real(**arguments)
        return losses * float("nan") if len(calls) == 5 else losses  # first micro-batch of the third step

    monkeypatch.setattr(dpo, "dpo_loss", poisoned)
    run_dir = tmp_path / "run"
    with pytest.raises(NonFiniteLossError, match=r"the loss is nan after 2 steps, on the records reviews/"):
        train(job(tmp_path, "method=dpo", "trainer.limit_val_batches=0"), run_dir)
    dump = json.loads((run_dir / "non_finite_step=000002_rank=0.json").read_text())
    assert dump["step"] == 2
    assert len(dump["record_ids"]) == 4
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["status"] == "failed"
    assert "NonFiniteLossError" in manifest["error"]
    assert (run_dir / "checkpoints" / "step-000002").is_dir(), "the weights of the step before are there"
