"""Monitors speak when they should, once, in words, and are silent otherwise."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
import torch

from alignment.diagnostics.health import NonFiniteLossError, StopOnNonFinite
from alignment.diagnostics.monitors import LengthBias, LikelihoodDisplacement, Monitor, Overfitting
from alignment.methods import terms
from alignment.pipeline import train as train_module

from runs import job, train, train_forked


def look(monitor, step: int, **values: float) -> None:
    metrics = {name.replace("__", "/"): torch.tensor(value) for name, value in values.items()}
    trainer = SimpleNamespace(callback_metrics=metrics, global_step=step, is_global_zero=True, sanity_checking=False)
    monitor.on_validation_end(trainer, None)


def warnings(folder) -> list[dict]:
    path = folder / "warnings.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def fell(shift: float, share: float, mass: float, split: str = "val") -> dict[str, float]:
    return {
        f"{split}__logps__chosen_shift_nats": shift,
        f"{split}__logps__chosen_fell_share": share,
        f"{split}__logps__chosen_mass_ratio": mass,
    }


def test_a_fall_that_leaves_the_mass_among_the_chosen_is_no_displacement(tmp_path):
    """What the quickstart's DPO measures on held-out pairs, where the reward of fresh samples rises, and what it
    measures on pairs that differ in one word."""
    monitor = LikelihoodDisplacement(max_drop_nats=0.5, min_share=0.6, min_mass_ratio=0.5, folder=tmp_path)
    for step, distinct in enumerate([(-1.14, 0.72, 2.61), (-3.07, 0.81, 2.11), (-3.90, 0.85, 2.10)]):
        look(monitor, step, **fell(*distinct))
    assert warnings(tmp_path) == []
    look(monitor, 9, **fell(-4.24, 0.91, 0.38))
    assert "all together they have 0.38 times the mass that they had" in warnings(tmp_path)[0]["message"]


def test_a_few_training_pairs_alone_decide_nothing(tmp_path):
    monitor = LikelihoodDisplacement(max_drop_nats=0.5, min_share=0.6, min_mass_ratio=0.5, folder=tmp_path)
    for step, mass in enumerate([1.8, 0.3, 0.25, 0.2, 0.15]):
        for repeated in range(10):  # every step looks, every tenth is logged
            look(monitor, 10 * step + repeated, **fell(-4.0, 0.9, mass, "train"))
    assert [w["step"] for w in warnings(tmp_path)] == [40], "when the mean of the last four logged steps is low"


def test_displacement_needs_both_depth_and_breadth(tmp_path):
    monitor = LikelihoodDisplacement(max_drop_nats=0.5, min_share=0.6, min_mass_ratio=0.5, folder=tmp_path)
    look(monitor, 1, **fell(-0.4, 0.9, 0.4))
    look(monitor, 2, **fell(-3.0, 0.3, 0.4))
    assert warnings(tmp_path) == []
    look(monitor, 3, **fell(-3.0, 0.8, 0.4))
    look(monitor, 4, **fell(-4.0, 0.8, 0.4))
    assert [(w["step"], w["monitor"]) for w in warnings(tmp_path)] == [(3, "likelihood_displacement")]
    assert "-3.00 nats on average against the reference, on 80% of val pairs" in warnings(tmp_path)[0]["message"]


def test_displacement_warns_again_after_it_had_gone(tmp_path):
    monitor = LikelihoodDisplacement(max_drop_nats=0.5, min_share=0.6, min_mass_ratio=0.5, folder=tmp_path)
    for step, shift in enumerate([-1.0, -0.1, -1.0]):
        look(monitor, step, **fell(shift, 1.0, 0.1, "train"))
    assert [w["step"] for w in warnings(tmp_path)] == [0, 2]


def test_a_monitor_sees_the_metrics_of_the_step_that_it_names(tmp_path):
    """The method logs before any other callback looks."""
    seen = {}

    class Spy(Monitor):
        name = "spy"

        def problem(self, metrics):
            seen.setdefault(len(seen) + 1, metrics.get("train/budget/prompts"))

    cfg = job(tmp_path, "method=dpo", "trainer.max_steps=3", "export=null", "trainer.limit_val_batches=0")
    original = train_module.build

    def build(cfg, run_dir, data, **options):
        trainer = original(cfg, run_dir, data, **options)
        trainer.callbacks.insert(1, Spy(folder=run_dir))
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "build", build)
        train(cfg, tmp_path / "run")
    # Two micro-batches a step of eight, and the end.
    assert [seen[call] for call in sorted(seen)] == [None, 8.0, 8.0, 16.0, 16.0, 24.0, 24.0]


def test_a_monitor_without_a_question_cannot_be_made(tmp_path):
    with pytest.raises(TypeError, match="abstract"):
        Monitor(folder=tmp_path)


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
        LikelihoodDisplacement: {"max_drop_nats": 0.5, "min_share": 0.6, "min_mass_ratio": 0.5},
        LengthBias: {"max_ratio": 1.5},
        Overfitting: {"tolerance": 0.05, "patience": 1},
    }[kind]
    values = {
        "fresh__length__completion_tokens": (10.0, 40.0),
        "train__logps__chosen_shift_nats": (0.0, -2.0),
        "train__logps__chosen_fell_share": (0.0, 1.0),
        "train__logps__chosen_mass_ratio": (0.4, 0.1),
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
    calls = []
    real = terms.global_mean

    def poisoned(values, **arguments):
        calls.append(1)
        # The first micro-batch of the third step.
        return real(values, **arguments) * (float("nan") if len(calls) == 5 else 1)

    monkeypatch.setattr(terms, "global_mean", poisoned)
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


@pytest.mark.parametrize("hardware", ["cpu_ddp2", "cpu_fsdp2"])
def test_all_processes_stop_at_the_loss_of_one(tmp_path, monkeypatch, hardware):
    """The others would wait for its gradients until a timeout."""
    calls = []
    real = terms.global_mean

    def poisoned(values, **arguments):
        calls.append(1)
        return real(values, **arguments) * (float("nan") if os.environ["RANK"] == "1" and len(calls) == 3 else 1)

    check = StopOnNonFinite.on_before_optimizer_step

    def noting(self, trainer, module, optimizer):
        try:
            check(self, trainer, module, optimizer)
        except NonFiniteLossError as error:
            (tmp_path / f"rank{trainer.global_rank}").write_text(str(error))
            raise

    monkeypatch.setattr(terms, "global_mean", poisoned)
    monkeypatch.setattr(StopOnNonFinite, "on_before_optimizer_step", noting)
    cfg = job(tmp_path, "method=dpo", "trainer.limit_val_batches=0", f"hardware={hardware}")
    with pytest.raises(AssertionError, match="NonFiniteLossError"):
        train_forked(cfg, tmp_path / "run")
    dumps = [path.name for path in (tmp_path / "run").glob("non_finite*")]
    assert dumps == ["non_finite_step=000002_rank=1.json"]
    assert (tmp_path / "rank1").read_text().startswith("the loss is nan after 2 steps, on the records reviews/")
    assert (tmp_path / "rank0").read_text().startswith("the loss of another process is not finite after 2 steps")
