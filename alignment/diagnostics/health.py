"""Stops a run whose numbers have gone wrong before they reach the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch import distributed as dist

from alignment.types import Batch
from alignment.utils.files import write_json_atomic


class NonFiniteLossError(ArithmeticError):
    """A loss was NaN or infinite; the weights are those of the step before."""


class StopOnNonFinite(Callback):
    """Raises before the backward pass of a loss that is NaN or infinite, and writes down whose batch it was.

    All ranks stop together: one that went on would wait for the others' gradients until its timeout.

    Args:
        folder: Where ``non_finite_step=N_rank=R.json`` goes, with the records' ids.
    """

    def __init__(self, *, folder: Path) -> None:
        self.folder = folder
        self._batch: Batch | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remembers the batch."""
        self._batch = batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Checks the loss.

        Raises:
            NonFiniteLossError: Naming the step, the records and the dump; on the other ranks, the step.
        """
        is_bad = ~torch.isfinite(loss.detach())
        is_any_bad = is_bad.int()
        if trainer.world_size > 1:
            dist.all_reduce(is_any_bad, op=dist.ReduceOp.MAX)
        if not is_any_bad:
            return
        step = trainer.global_step
        if not is_bad:
            raise NonFiniteLossError(f"the loss of another process is not finite after {step} steps. No step was taken")
        assert self._batch is not None
        ids = list(self._batch.ids)
        dump = self.folder / f"non_finite_step={step:06d}_rank={trainer.global_rank}.json"
        write_json_atomic(
            dump, {"step": step, "rank": trainer.global_rank, "loss": str(loss.item()), "record_ids": ids}
        )
        raise NonFiniteLossError(
            f"the loss is {loss.item()} after {step} steps, on the records {', '.join(ids[:8])}"
            f"{' ...' if len(ids) > 8 else ''} (all of them in {dump}). No step was taken. "
            "Lower optim.lr, set trainer.gradient_clip_val, or look at these records"
        )
