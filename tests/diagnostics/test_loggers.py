"""What the loggers wrote is read back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from alignment.diagnostics.rollouts import TABLE

from runs import job, metrics, train

SHORT = ("method=dpo", "trainer.max_steps=2", "export=null")


def test_wandb_offline(tmp_path):
    """The offline run holds the metrics of the CSV file at the same steps."""
    run_dir = train(
        job(tmp_path, *SHORT, "trainer.max_steps=6", "logger=wandb", "logger.wandb.offline=true"), tmp_path / "run"
    )
    (log,) = run_dir.glob("**/run-*.wandb")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(log)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    logged = result.stdout
    rows = metrics(run_dir)
    assert "train/loss/total" in logged
    assert f"{rows[1]['train/loss/total']:.6f}"[:8] in logged
    assert "val/reward/accuracy" in logged


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = train(job(tmp_path, *SHORT, "logger=tensorboard"), tmp_path / "run")
    (events,) = run_dir.glob("**/events.out.tfevents.*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    scalars = {event.step: event.value for event in accumulator.Scalars("train/loss/total")}
    rows = metrics(run_dir)
    assert {step: round(value, 5) for step, value in scalars.items()} == {
        step: round(row["train/loss/total"], 5) for step, row in rows.items() if "train/loss/total" in row
    }


def test_csv_is_always_there_and_the_manifest_holds_the_last_values(tmp_path):
    run_dir = train(job(tmp_path, *SHORT), tmp_path / "run")
    manifest = json.loads((run_dir / "manifest.json").read_text())
    last = metrics(run_dir)[2]
    assert manifest["status"] == "finished"
    assert manifest["metrics"]["train/loss/total"] == last["train/loss/total"]
    assert manifest["budget"]["updates"] == 2
    assert manifest["budget"]["prompts"] == 16
    assert manifest["model"]["loaded_models"] == 2
    assert set(manifest["versions"]) >= {"torch", "lightning", "transformers", "alignment"}


def test_wandb_is_shown_completions_that_were_trained_on(tmp_path):
    """The best and the worst of some prompts, of the first, the middle and the last experience."""
    online = ("method=grpo", "method.rollouts.group_size=4", "reward=regex", "reward.pattern='w|k'", "export=null")
    drawn = ("reward.match=search", "rollout.sampling.max_new_tokens=8", "callbacks.checkpoint.every_n_steps=100")
    wandb = ("logger=wandb", "logger.wandb.offline=true")
    run_dir = train(job(tmp_path, *online, *drawn, *wandb), tmp_path / "run")
    tables = [json.loads(path.read_text()) for path in run_dir.glob("wandb/*/files/media/table/rollouts_*.table.json")]
    assert tables[0]["columns"] == list(TABLE)
    lines = {table["data"][0][0]: [dict(zip(TABLE, line, strict=True)) for line in table["data"]] for table in tables}
    assert sorted(lines) == [0, 3, 5]
    for number, shown in lines.items():
        kept = parquet.read_table(run_dir / "rollouts" / f"{number:06d}.parquet").to_pylist()
        by_text = {(row["prompt"], row["completion"]): row for row in kept}
        assert [line["pick"] for line in shown[:2]] == ["widest spread, best", "widest spread, worst"]
        assert shown[0]["reward"] - shown[1]["reward"] == 1.0
        assert shown[0]["advantage"] > 0 > shown[1]["advantage"]
        for line in shown:
            row = by_text[line["prompt"], line["completion"]]
            assert (line["reward"], line["finish_reason"]) == (row["reward"], row["finish_reason"])
            assert line["advantage"] == pytest.approx(row["advantages"][0])
