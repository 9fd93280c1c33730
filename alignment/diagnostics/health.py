"""Stops a run whose numbers have gone wrong before they reach the weights."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer

from alignment.types import Batch
from alignment.utils.files import write_json_atomic


class NonFiniteLossError(ArithmeticError):
    """A loss was NaN or infinite; the weights are those of the step before."""


class StopOnNonFinite(Callback):
    """Raises before a step whose loss is NaN or infinite, and writes down whose batch it was.

    Losses are looked at once an optimiser step, when the gradients of all its micro-batches are there: a device that
    is asked after each would wait each time. All ranks stop together: one that went on would wait for the others'
    gradients until its timeout.

    Args:
        folder: Where ``non_finite_step=N_rank=R.json`` goes, with the records' ids.
    """

    def __init__(self, *, folder: Path) -> None:
        self.folder = folder
        self._ids: tuple[str, ...] = ()
        self._losses: list[tuple[Tensor, tuple[str, ...]]] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Remembers the batch's records."""
        self._ids = tuple(batch.ids)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remembers the loss."""
        self._losses.append((loss.detach(), self._ids))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Checks the losses of the step.

        Raises:
            NonFiniteLossError: Naming the step, the records and the dump; on the other ranks, the step.
        """
        losses, self._losses = self._losses, []
        is_bad = ~torch.isfinite(torch.stack([loss for loss, _ in losses]))
        is_any_bad = is_bad.any().int()
        if trainer.world_size > 1:
            dist.all_reduce(is_any_bad, op=dist.ReduceOp.MAX)
        if not is_any_bad:
            return
        step = trainer.global_step
        bad = [
            (loss.item(), ids) for (loss, ids), one_is_bad in zip(losses, is_bad.tolist(), strict=True) if one_is_bad
        ]
        if not bad:
            raise NonFiniteLossError(f"the loss of another process is not finite after {step} steps. No step was taken")
        value, ids = bad[0]
        dump = self.folder / f"non_finite_step={step:06d}_rank={trainer.global_rank}.json"
        write_json_atomic(
            dump, {"step": step, "rank": trainer.global_rank, "loss": str(value), "record_ids": list(ids)}
        )
        raise NonFiniteLossError(
            f"the loss is {value} after {step} steps, on the records {', '.join(ids[:8])}"
            f"{' ...' if len(ids) > 8 else ''} (all of them in {dump}). No step was taken. "
            "Lower optim.lr, set trainer.gradient_clip_val, or look at these records"
        )
