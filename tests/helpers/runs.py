"""Runs through the public configuration: in this process, or forked into two that train together."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from pathlib import Path

import torch
from omegaconf import DictConfig

from alignment.config.compose import compose, task_config
from alignment.pipeline.train import run

#: Small enough that a run takes a second or two, on any data.
SMALL_RUN = (
    "model=world_init",
    "model.config.hidden_size=32",
    "model.config.intermediate_size=64",
    "model.config.num_hidden_layers=2",
    "data.batch_size=8",
    "data.micro_batch_size=4",
    "optim.lr=1e-3",
    "trainer.max_steps=6",
    "trainer.log_every_n_steps=1",
    "callbacks.checkpoint.every_n_steps=2",
    "callbacks.checkpoint.keep_last=100",
    "callbacks.fresh_samples=null",
    "hardware.threads=1",
)
#: The same on few records of the embedded world.
SMALL = (*SMALL_RUN, "data.train.num_records=48", "data.validation.num_records=16")


def job(tmp_path: Path, *overrides: str, small: bool = True) -> DictConfig:
    """Composes a run as ``align train`` does."""
    paths = [f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}"]
    return task_config(compose("train", [*(SMALL if small else ()), *paths, *overrides]))


def train(cfg: DictConfig, run_dir: Path) -> Path:
    """Runs a job here."""
    run(cfg, run_dir, [])
    return run_dir


def train_forked(cfg: DictConfig, run_dir: Path, *, processes: int = 2) -> Path:
    """Runs a job in forked workers that see torchrun's environment; raises when one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    workers = [
        context.Process(target=_worker, args=(rank, processes, port, cfg, run_dir, failures))
        for rank in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    hung = [worker for worker in workers if worker.is_alive()]
    for worker in hung:
        worker.kill()
    assert not hung, "a worker hangs"
    assert all(worker.exitcode == 0 for worker in workers), failures.get(timeout=5) if not failures.empty() else "died"
    return run_dir


def _worker(rank: int, processes: int, port: int, cfg: DictConfig, run_dir: Path, failures) -> None:
    torch.set_num_threads(1)  # first of all: a parent that used OpenMP would deadlock its child
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        GROUP_RANK="0",
        TORCHELASTIC_RUN_ID="test",
    )
    try:
        run(cfg, run_dir, [])
    except BaseException:
        failures.put(f"rank {rank}: {traceback.format_exc()}")
        raise


def metrics(run_dir: Path) -> dict[int, dict[str, float]]:
    """Reads a run's metrics by step; a resumed run's later file wins."""
    import csv

    rows: dict[int, dict[str, float]] = {}
    for version in sorted((run_dir / "metrics").glob("version_*"), key=lambda path: int(path.name.split("_")[1])):
        with (version / "metrics.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                values = {name: float(value) for name, value in row.items() if value and name not in ("step", "epoch")}
                rows.setdefault(int(row["step"]), {}).update(values)
    return rows


def exported(run_dir: Path) -> dict[str, torch.Tensor]:
    """Reads the weights that a run exported."""
    from safetensors.torch import load_file

    return load_file(run_dir / "model" / "model.safetensors")
