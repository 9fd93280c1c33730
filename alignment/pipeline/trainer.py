"""The Lightning trainer of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.strategies import Strategy

from alignment.utils.errors import ConfigError


def build_trainer(
    *,
    max_epochs: int | None,
    max_steps: int,
    gradient_clip_val: float | None,
    val_every_n_steps: int | None,
    limit_val_batches: int | float,
    log_every_n_steps: int,
    deterministic: bool,
    detect_anomaly: bool,
    profiler: Literal["simple", "advanced", "pytorch"] | None,
    hardware: dict[str, Any],
    accumulate: int,
    run_dir: Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger],
) -> pl.Trainer:
    """Builds the trainer; everything is counted in optimiser steps, whatever the hardware.

    Args:
        max_epochs: Passes over the data; ``None`` leaves ``max_steps`` alone to end the run.
        max_steps: Optimiser steps at the most; -1 for no bound.
        gradient_clip_val: Largest norm of the gradient; ``None`` does not clip.
        val_every_n_steps: Optimiser steps between validations; ``None`` validates after each epoch.
        limit_val_batches: Validation batches, or a share of them; 0 does not validate.
        log_every_n_steps: Optimiser steps between two lines of metrics.
        deterministic: Ask torch for deterministic algorithms.
        detect_anomaly: Find the operation that made a NaN; slow.
        profiler: Lightning's profilers.
        hardware: The hardware group: accelerator, devices, num_nodes, precision, strategy.
        accumulate: Micro-batches an optimiser step on each rank.
        run_dir: The run's folder.
        callbacks: In the order in which they are called.
        loggers: Where metrics go.

    Raises:
        ConfigError: If nothing bounds the run.
    """
    if max_epochs is None and max_steps < 0:
        raise ConfigError(
            "trainer.max_steps",
            got=max_steps,
            expected="a number of steps",
            hint="or set trainer.max_epochs: a run must end",
        )
    strategy: Strategy | str = hardware["strategy"]
    trainer = pl.Trainer(
        accelerator=hardware["accelerator"],
        devices=hardware["devices"],
        num_nodes=hardware["num_nodes"],
        precision=hardware["precision"],
        strategy=strategy,
        max_epochs=-1 if max_epochs is None else max_epochs,
        max_steps=max_steps,
        gradient_clip_val=gradient_clip_val,
        accumulate_grad_batches=accumulate,
        val_check_interval=None if val_every_n_steps is None else val_every_n_steps * accumulate,
        check_val_every_n_epoch=1 if val_every_n_steps is None else None,
        limit_val_batches=limit_val_batches,
        num_sanity_val_steps=0,
        log_every_n_steps=log_every_n_steps,
        deterministic=deterministic,
        detect_anomaly=detect_anomaly,
        profiler=profiler,
        callbacks=list(callbacks),
        logger=list(loggers),
        default_root_dir=run_dir,
        use_distributed_sampler=False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_model_summary=False,
        enable_progress_bar=any(hasattr(callback, "refresh_rate") for callback in callbacks),
    )
    trainer.fit_loop = _FitLoopWithAnEnd(trainer.fit_loop)
    return trainer


class _FitLoopWithAnEnd(_FitLoop):
    """Ends a run also when no step is left.

    A run that was killed after its last checkpoint and before its last measurement is resumed at its last step.
    Lightning would return at once; here it is validated and its callbacks hear of the end, as if it had just got there.

    Args:
        made: The loop that Lightning has made, not begun yet.
    """

    def __init__(self, made: _FitLoop) -> None:
        super().__init__(made.trainer, min_epochs=made.min_epochs, max_epochs=made.max_epochs)
        self.epoch_loop = made.epoch_loop
        self._advanced = False

    @property
    def skip(self) -> bool:
        return False

    def advance(self) -> None:
        self._advanced = True
        super().advance()

    def on_run_end(self) -> None:
        if not self._advanced and self.trainer.enable_validation:
            self.trainer.validating = True
            self.epoch_loop.val_loop.restarting = False
            self.epoch_loop.val_loop.run()
            self.trainer.training = True
        super().on_run_end()
