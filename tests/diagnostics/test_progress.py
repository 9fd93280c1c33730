"""What a person sees while a run goes on: numbers of the right phase, a line or a bar that stays in its terminal."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from alignment.diagnostics.progress import Phases, ProgressBar, ProgressLines, shown_metrics

STEP = {
    "train/loss/total": 0.0123,
    "train/reward/total": 0.75,
    "train/kl/policy_reference_nats": 3.456,
    "train/policy/entropy_nats": 6.25,
    "train/policy/clip_fraction": 0.0125,
    "train/length/completion_tokens": 14.6,
    "train/length/truncated_share": 0.5,
    "train/advantage/zero_std_groups": 0.125,
    "train/time/generate_seconds": 2.0,
    "train/time/score_seconds": 0.25,
    "train/time/measure_seconds": 0.5,
    "train/time/update_seconds": 1.0,
    "train/speed/tokens_per_second": 1234.0,
    "train/speed/generated_tokens_per_second": 2000.4,
    "train/speed/trained_tokens_per_second": 9000.0,
    "train/budget/seconds": 3.75,
}
#: A later step on the same completions: nothing was written.
LATER = STEP | {
    "train/time/generate_seconds": 0.0,
    "train/time/score_seconds": 0.0,
    "train/time/measure_seconds": 0.0,
    "train/time/update_seconds": 1.5,
    "train/budget/seconds": 5.25,
}


def trainer(metrics: dict[str, float], **more) -> SimpleNamespace:
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}
    return SimpleNamespace(
        callback_metrics=values, is_global_zero=True, global_step=3, estimated_stepping_batches=10, **more
    )


def line_of(caplog, metrics: dict[str, float]) -> str:
    lines = ProgressLines(every_seconds=0.0)
    with caplog.at_level(logging.INFO):
        lines.on_train_batch_end(trainer(metrics), None, None, None, 0)
    return caplog.messages[-1]


def test_an_online_line_has_results_what_was_written_and_where_time_went(caplog):
    assert line_of(caplog, STEP) == (
        "step 3 of 10  loss 0.0123  train reward 0.750  train KL 3.46  tok/s 1,234  entropy 6.25  clipped 1.2%  "
        "length 15  cut off 50%  dead groups 12%  "
        "generate 2.00 s (2,000 tok/s)  score 0.25 s  measure 0.50 s  update 1.00 s (9,000 tok/s)"
    )


def test_an_offline_line_is_short(caplog):
    metrics = {"train/loss/total": 0.5, "train/policy/entropy_nats": 2.0, "fresh/reward/total": 0.25}
    assert line_of(caplog, metrics) == "step 3 of 10  loss 0.5000  reward 0.250"


def test_steps_on_the_same_completions_add_up_and_fresh_ones_begin_anew():
    phases = Phases()
    phases.see(STEP)
    phases.see(STEP)  # the same line of the log, seen again
    assert "  ".join(phases.texts({})) == "generate 2.00 s  score 0.25 s  measure 0.50 s  update 1.00 s"
    phases.see(LATER)
    assert "  ".join(phases.texts({})) == "generate 2.00 s  score 0.25 s  measure 0.50 s  update 2.50 s"
    phases.see(STEP | {"train/budget/seconds": 9.0})
    assert "  ".join(phases.texts({})) == "generate 2.00 s  score 0.25 s  measure 0.50 s  update 1.00 s"


def test_nothing_is_said_of_phases_that_there_are_none_of():
    phases = Phases()
    phases.see({"train/loss/total": 1.0, "train/budget/seconds": 2.0})
    assert phases.texts({}) == []


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_keeps_its_numbers_below_it_and_words_whole(width):
    bar = ProgressBar()
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    bar.get_metrics(trainer(STEP | {"fresh/kl/policy_start_nats": 9.0, "fresh/reward/total": 0.5}), None)
    bar.progress = SimpleNamespace(make_tasks_table=lambda tasks: "Epoch 1 ---- 5/8", tasks=[], console=console)
    for part in bar._renderables():
        console.print(part)
    phases = ["generate 2.00 s (2,000 tok/s)  score 0.25 s  measure 0.50 s", "update 1.00 s (9,000 tok/s)"]
    results = ["loss 0.0123  train reward 0.750  train KL 3.46  KL 9.00  reward 0.500", "tok/s 1,234"]
    assert console.file.getvalue().splitlines() == [
        "Epoch 1 ---- 5/8",
        *(results if width == 80 else ["  ".join(results)]),
        "entropy 6.25  clipped 1.2%  length 15  cut off 50%  dead groups 12%",
        *(phases if width == 80 else ["  ".join(phases)]),
    ]


@pytest.mark.parametrize(("max_epochs", "said"), [(-1, "Epoch 2"), (None, "Epoch 2"), (3, "Epoch 2/3")])
def test_an_epoch_is_counted_from_one_and_of_as_many_as_there_are(max_epochs, said):
    bar = ProgressBar()
    bar._trainer = SimpleNamespace(max_epochs=max_epochs)
    assert bar._get_train_description(1) == said


def test_the_headline_of_a_run_has_its_results_only():
    assert list(shown_metrics(STEP)) == ["loss", "train reward", "train KL", "tok/s"]
