"""Checkpoints survive signals, crashes, damage and a full disk."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from alignment.diagnostics import checkpoint as checkpoint_module
from alignment.diagnostics.checkpoint import MANIFEST, STATE, damage, latest_checkpoint
from alignment.pipeline.train import run
from alignment.utils.errors import ConfigError, UserError

from runs import exported, job, metrics, train


def interrupted(tmp_path: Path, stop, *overrides: str) -> tuple[subprocess.Popen, Path]:
    """Starts a run in another process, lets ``stop`` end it, and waits."""
    run_dir = tmp_path / "run"
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from runs import job, train\n"
        "train(job(Path(sys.argv[2]), *sys.argv[4:]), Path(sys.argv[3]))\n"
    )
    helpers = str(Path(__file__).parents[1] / "helpers")
    command = [sys.executable, "-c", script, helpers, str(tmp_path), str(run_dir), *LONG, *overrides]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any((run_dir / "checkpoints").glob("step-*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    stop(process)
    process.communicate(timeout=60)
    return process, run_dir


LONG = ("method=dpo", "trainer.max_epochs=null", "trainer.max_steps=5000", "trainer.limit_val_batches=0")


def test_sigterm_saves_and_leaves_with_143(tmp_path):
    process, run_dir = interrupted(tmp_path, lambda p: p.send_signal(signal.SIGTERM))
    assert process.returncode == 143
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    last = latest_checkpoint(run_dir / "checkpoints")
    assert last is not None
    step = int(last.name.split("-")[1])
    assert step >= max(metrics(run_dir)), "the step in flight was finished and saved"
    resumed = train(job(tmp_path, *LONG, f"resume={run_dir}", f"trainer.max_steps={step + 3}"), tmp_path / "unused")
    assert not resumed.exists()
    assert max(metrics(run_dir)) == step + 3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_kill_9_at_a_random_instant_leaves_a_usable_checkpoint(tmp_path, seed):
    def stop(process):
        time.sleep(random.Random(seed).uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)

    _, run_dir = interrupted(tmp_path, stop, "callbacks.checkpoint.every_n_steps=1", "callbacks.checkpoint.keep_last=2")
    last = latest_checkpoint(run_dir / "checkpoints")
    assert last is not None
    assert damage(last) is None
    step = int(last.name.split("-")[1])
    train(job(tmp_path, *LONG, f"resume={run_dir}", f"trainer.max_steps={step + 2}"), tmp_path / "unused")
    assert max(metrics(run_dir)) == step + 2
    assert not list((run_dir / "checkpoints").glob(f".step-{step + 2:06d}*")), "no half-written folder of a later step"


def test_resume_auto_goes_on_with_the_run_of_the_same_configuration(tmp_path):
    first = train(job(tmp_path, "trainer.max_steps=4"), tmp_path / "runs" / "dpo" / "first")
    manifest = json.loads((first / "manifest.json").read_text())
    (first / "manifest.json").write_text(json.dumps(manifest | {"status": "interrupted"}))
    (first / "checkpoints" / "step-000004").rename(tmp_path / "gone")
    new = tmp_path / "runs" / "dpo" / "second"
    new.mkdir()
    train(job(tmp_path, "trainer.max_steps=4", "resume=auto"), new)
    assert not new.exists(), "the empty folder of the new run is gone"
    assert sorted(path.name for path in (first / "metrics").iterdir()) == ["version_0", "version_1"]
    assert json.loads((first / "manifest.json").read_text())["status"] == "finished"
    # A finished run is left alone, and another configuration is another run.
    before = (first / "manifest.json").read_text()
    train(job(tmp_path, "trainer.max_steps=4", "resume=auto"), new)
    assert (first / "manifest.json").read_text() == before
    other = train(job(tmp_path, "trainer.max_steps=2", "resume=auto"), tmp_path / "runs" / "dpo" / "third")
    assert (other / "model" / "model.safetensors").exists()


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    run_dir = train(job(tmp_path, "export=null"), tmp_path / "run")
    newest = latest_checkpoint(run_dir / "checkpoints")
    assert newest is not None
    assert newest.name == "step-000006"
    content = bytearray((newest / STATE).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / STATE).write_bytes(content)
    assert damage(newest) == f"{STATE} has changed since it was written"
    assert latest_checkpoint(run_dir / "checkpoints").name == "step-000004"
    assert "passing over it" in caplog.text
    with pytest.raises(ConfigError, match=r"resume: .* expected an undamaged checkpoint. state.ckpt has changed"):
        train(job(tmp_path, f"resume={newest}"), tmp_path / "unused")


def test_a_full_disk_while_saving_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    """The disk is full at the third save: the run fails with words, and the second checkpoint is intact."""
    saves = []

    def fail_on_third(folder):
        saves.append(folder)
        if len(saves) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "fsync_tree", fail_on_third)
    with pytest.raises(UserError, match=r"could not be written .*No space left on device.*; step-000004 is intact"):
        train(job(tmp_path, "export=null"), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    assert latest_checkpoint(folder).name == "step-000004"
    assert not list(folder.glob(".*tmp")), "nothing half-written stays"
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


def test_resume_from_nowhere_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"resume: got '.*nothing', expected auto, a run's folder .* no such folder"):
        train(job(tmp_path, f"resume={tmp_path / 'nothing'}"), tmp_path / "unused")


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    cfg = job(
        tmp_path,
        "export=null",
        "callbacks.checkpoint.every_n_steps=1",
        "callbacks.checkpoint.keep_last=2",
        "callbacks.checkpoint.monitor=train/reward/accuracy",
        "callbacks.checkpoint.mode=max",
    )
    run_dir = train(cfg, tmp_path / "run")
    rows = metrics(run_dir)
    best = max(rows, key=lambda step: (rows[step]["train/reward/accuracy"], -step))
    kept = {path.name for path in (run_dir / "checkpoints").glob("step-*")}
    assert {"step-000005", "step-000006"} <= kept
    # Metrics of a step are logged before it is saved, so the best one's own checkpoint stays.
    assert f"step-{best:06d}" in kept
    assert len(kept) <= 3


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_a_checkpoint_holds_exactly_what_trains(tmp_path, adapter):
    run_dir = train(job(tmp_path, f"adapter={adapter}", "trainer.max_steps=2"), tmp_path / "run")
    state = torch.load(run_dir / "checkpoints" / "step-000002" / STATE, weights_only=True)
    names = set(state["state_dict"])
    manifest = json.loads((run_dir / "manifest.json").read_text())
    unique = {value.data_ptr(): value.numel() for value in state["state_dict"].values()}
    assert sum(unique.values()) == manifest["model"]["trainable_parameters"]
    assert all(("lora_" in name) == (adapter == "lora") for name in names)
    moments = state["optimizer_states"][0]["state"]
    assert sum(entry["exp_avg"].numel() for entry in moments.values()) == manifest["model"]["trainable_parameters"]
    assert set(json.loads((run_dir / "checkpoints" / "step-000002" / MANIFEST).read_text())["files"]) == {STATE}
    assert exported(run_dir)


def test_the_process_ends_up_with_the_handlers_it_had(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(job(tmp_path, "trainer.max_steps=1", "export=null"), tmp_path / "run")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_validated_metric_is_credited_to_the_step_that_it_was_measured_at(tmp_path):
    cfg = job(
        tmp_path,
        "export=null",
        "trainer.val_every_n_steps=2",
        "callbacks.checkpoint.every_n_steps=2",
        "callbacks.checkpoint.monitor=val/loss/total",
    )
    run_dir = train(cfg, tmp_path / "run")
    rows = metrics(run_dir)
    losses = {step: row["val/loss/total"] for step, row in rows.items() if "val/loss/total" in row}
    assert set(losses) == {2, 4, 6}
    state = torch.load(run_dir / "checkpoints" / "step-000006" / STATE, weights_only=True)
    saved = next(value for key, value in state["callbacks"].items() if "RunCheckpoint" in key)["best"]
    before = {step: loss for step, loss in losses.items() if step < 6}
    assert saved[1] == min(before, key=before.__getitem__)
    assert saved[0] == pytest.approx(losses[saved[1]])


def test_going_on_from_an_earlier_checkpoint_leaves_the_abandoned_course(tmp_path):
    run_dir = train(job(tmp_path, "export=null"), tmp_path / "run")
    first = run_dir / "checkpoints" / "step-000002"
    train(job(tmp_path, "export=null", f"resume={first}", "trainer.max_steps=3"), tmp_path / "unused")
    assert latest_checkpoint(run_dir / "checkpoints").name == "step-000003"


def test_resuming_a_finished_run_keeps_its_results(tmp_path):
    run_dir = train(job(tmp_path), tmp_path / "run")
    before = (run_dir / "manifest.json").read_text()
    train(job(tmp_path, f"resume={run_dir}"), tmp_path / "unused")
    assert (run_dir / "manifest.json").read_text() == before


def test_a_resumed_run_remembers_how_it_began(tmp_path):
    run_dir = tmp_path / "run"
    run(job(tmp_path, "export=null", "trainer.max_steps=2"), run_dir, ["trainer.max_steps=2"])
    first = json.loads((run_dir / "manifest.json").read_text())
    for steps in (4, 6):
        cfg = job(tmp_path, "export=null", f"trainer.max_steps={steps}", f"resume={run_dir}")
        run(cfg, tmp_path / "unused", [f"trainer.max_steps={steps}"])
    last = json.loads((run_dir / "manifest.json").read_text())
    assert (first["overrides"], first["resumes"]) == (["trainer.max_steps=2"], [])
    for key in ("started", "command", "overrides"):
        assert last[key] == first[key]
    assert [resume["overrides"] for resume in last["resumes"]] == [["trainer.max_steps=4"], ["trainer.max_steps=6"]]
    assert last["config_hash"] != first["config_hash"], "what is known of the last process is the last process's"
    kept = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert kept == {"step-000002", "step-000004", "step-000006"}, "and nothing that is never read"


def test_going_on_with_another_configuration_is_said(tmp_path, caplog):
    run_dir = train(job(tmp_path, "export=null", "trainer.max_steps=2"), tmp_path / "run")
    train(job(tmp_path, "export=null", "trainer.max_steps=4", f"resume={run_dir}"), tmp_path / "unused")
    assert "goes on with another configuration than it began with: trainer.max_steps: 2 -> 4" in caplog.text
