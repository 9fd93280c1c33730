"""Checkpoints that survive: written whole or not at all, after a step, on a signal, at the end."""

from __future__ import annotations

import logging
import random
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import distributed as dist

from alignment.utils.errors import UserError
from alignment.utils.files import fsync_folder, fsync_tree, hash_file, write_json_atomic

log = logging.getLogger(__name__)

#: The trainer's state inside a checkpoint's folder: a file, or a folder where every rank wrote its shard.
STATE = "state.ckpt"
MANIFEST = "manifest.json"


class RunCheckpoint(Checkpoint):
    """Saves the whole state of a run every so many optimiser steps, and before it ends for any reason it can see.

    A checkpoint is a folder ``checkpoints/step-000100`` with the trainer's state and a manifest of hashes. It is
    written under another name, made durable, and renamed: what has the name is complete. A crash or a full disk at
    any instant leaves the checkpoint before it usable.

    SIGTERM (a preempted job) and Ctrl-C end the run after the step in flight, with a checkpoint and exit code 143
    or 130. Ranks agree on the step.

    Args:
        every_n_steps: Optimiser steps between two checkpoints.
        keep_last: How many of the newest stay.
        monitor: A metric's name, whose best checkpoint stays too; ``None`` keeps by age only.
        mode: Whether the monitored metric is better when lower (``min``) or higher (``max``).
        folder: Where checkpoints go.
    """

    def __init__(
        self, *, every_n_steps: int, keep_last: int, monitor: str | None, mode: Literal["min", "max"], folder: Path
    ) -> None:
        if every_n_steps < 1 or keep_last < 1:
            raise UserError("callbacks.checkpoint: every_n_steps and keep_last must be at least 1")
        self.every_n_steps = every_n_steps
        self.keep_last = keep_last
        self.monitor = monitor
        self.mode = mode
        self.folder = folder
        self.best: tuple[float, int] | None = None
        self._saved_step = -1
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Returns which checkpoint was best so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        best = state_dict["best"]
        self.best = None if best is None else (best[0], best[1])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the signals over from Lightning, whose own handler would stop between two accumulated batches."""

        def note(number: int, frame: FrameType | None) -> None:
            self._signal = number
            launcher = trainer.strategy.launcher
            if isinstance(launcher, _SubprocessScriptLauncher):
                launcher.kill(number)  # the other ranks hear of it, and stop at the same step

        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            self._drop_later(trainer.global_step)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, note)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves at the end of an optimiser step when it is due, or when a signal came."""
        if trainer.fit_loop._should_accumulate() or trainer.global_step == self._saved_step:
            return
        if not (self.monitor or "").startswith("val/"):
            self._note_best(trainer)
        stop = self._agreed_signal(trainer)
        if stop or trainer.global_step % self.every_n_steps == 0:
            self.save(trainer)
        if stop:
            log.warning(
                "received %s: step %d is saved. To go on: the same command with resume=%s",
                signal.Signals(stop).name,
                trainer.global_step,
                self.folder.parent,
            )
            raise SystemExit(128 + stop)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the step that was just validated when it is the best so far."""
        if not trainer.sanity_checking and (self.monitor or "").startswith("val/"):
            self._note_best(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the last step."""
        if trainer.global_step != self._saved_step:
            self.save(trainer)
        self._give_signals_back()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leaves the process as it was."""
        self._give_signals_back()

    def _give_signals_back(self) -> None:
        # Not in teardown: by then Lightning has put the process's own handlers back.
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def save(self, trainer: pl.Trainer) -> Path:
        """Writes a checkpoint of the present step.

        Raises:
            UserError: If it could not be written; the one before it is untouched.
        """
        step = trainer.global_step
        target = self.folder / f"step-{step:06d}"
        temporary = self.folder / f".step-{step:06d}.tmp"
        if trainer.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        trainer.strategy.barrier()
        try:
            trainer.save_checkpoint(temporary / STATE)
            if trainer.is_global_zero:
                self._publish(temporary, target, step)
        except (OSError, RuntimeError) as error:
            if trainer.is_global_zero:
                shutil.rmtree(temporary, ignore_errors=True)
            last = latest_checkpoint(self.folder)
            kept = f"{last.name} is intact" if last else "there is none before it"
            raise UserError(f"{target}: the checkpoint could not be written ({error}); {kept}") from error
        trainer.strategy.barrier()
        self._saved_step = step
        return target

    def _publish(self, temporary: Path, target: Path, step: int) -> None:
        files = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
        hashes = {str(path.relative_to(temporary)): hash_file(path) for path in files}
        write_json_atomic(temporary / MANIFEST, {"step": step, "files": hashes})
        fsync_tree(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        fsync_folder(self.folder)
        self._prune()

    def _drop_later(self, step: int) -> None:
        """Removes half-written folders, and what an abandoned course of this run saved after this step."""
        later = [path for path in checkpoints(self.folder) if _step(path) > step]
        for path in [*later, *self.folder.glob(".step-*.tmp")]:
            log.info("removing %s: the run goes on from step %d", path, step)
            shutil.rmtree(path)

    def _prune(self) -> None:
        best = None if self.best is None else self.best[1]
        for path in checkpoints(self.folder)[: -self.keep_last]:
            if _step(path) != best:
                shutil.rmtree(path)

    def _note_best(self, trainer: pl.Trainer) -> None:
        """Compares a metric that was measured at this step, and keeps the step's checkpoint if it is the best."""
        if self.monitor is None or self.monitor not in trainer.callback_metrics:
            return
        value, step = float(trainer.callback_metrics[self.monitor]), trainer.global_step
        if self.best is None or (value < self.best[0] if self.mode == "min" else value > self.best[0]):
            self.best = (value, step)
            if self._saved_step != step:
                self.save(trainer)

    def _agreed_signal(self, trainer: pl.Trainer) -> int:
        number = self._signal or 0
        if trainer.world_size > 1:
            flag = torch.tensor([number], device=trainer.strategy.root_device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            number = int(flag.item())
        return number


def checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of a run, oldest step first."""
    return sorted(folder.glob("step-*"), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def latest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest checkpoint whose files all have the hashes of its manifest, or ``None``.

    A damaged one is passed over with a warning.
    """
    for path in reversed(checkpoints(folder)):
        problem = damage(path)
        if problem is None:
            return path
        log.warning("%s is damaged (%s): passing over it", path, problem)
    return None


def damage(checkpoint: Path) -> str | None:
    """Says what is wrong with a checkpoint, or returns ``None`` when nothing is."""
    import json

    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return f"no {MANIFEST}"
    for name, expected in json.loads(manifest.read_text(encoding="utf-8"))["files"].items():
        file = checkpoint / name
        if not file.is_file():
            return f"{name} is missing"
        if hash_file(file) != expected:
            return f"{name} has changed since it was written"
    return None


class RandomState(Callback):
    """Saves every rank's random state with a checkpoint; Lightning saves none, and a resumed run would draw anew."""

    def __init__(self) -> None:
        self._loaded: list[dict[str, Any]] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the random states of all ranks, in plain values that load without unpickling code."""
        states = [_random_state()]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, states[0])
            states = gathered
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps them until training starts: loading itself must not use them up."""
        self._loaded = state_dict["ranks"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restores this rank's state. With another number of ranks there is none to restore, and it says so."""
        if self._loaded is None:
            return
        if len(self._loaded) != trainer.world_size:
            log.warning("the checkpoint was saved by %d ranks, this run has %d", len(self._loaded), trainer.world_size)
            return
        _set_random_state(self._loaded[trainer.global_rank])


def _random_state() -> dict[str, Any]:
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "python": [version, list(numbers), gauss],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
