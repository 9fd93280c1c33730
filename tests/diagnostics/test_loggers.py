"""What the loggers wrote is read back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
