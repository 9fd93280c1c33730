"""What a person sees while a run goes on."""

from __future__ import annotations

import logging
import sys
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar

log = logging.getLogger(__name__)

#: Metric, label and format of the numbers beside the bar; those that a method does not log are left out.
_SHOWN = (
    ("train/loss/total", "loss", "{:.4f}"),
    ("train/reward/accuracy", "accuracy", "{:.3f}"),
    ("train/reward/margin", "margin", "{:.3f}"),
    ("fresh/kl/policy_start_nats", "KL", "{:.2f}"),
    ("fresh/reward/total", "reward", "{:.3f}"),
    ("train/speed/tokens_per_second", "tok/s", "{:,.0f}"),
)


def shown_metrics(metrics: dict[str, Any]) -> dict[str, str]:
    """Returns the numbers that matter, ready to print.

    >>> shown_metrics({"train/loss/total": 0.69314, "train/optim/learning_rate": 1e-5})
    {'loss': '0.6931'}
    """
    return {label: form.format(float(metrics[name])) for name, label, form in _SHOWN if name in metrics}


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with the numbers of this project beside it."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Returns what stands beside the bar."""
        return dict(shown_metrics(trainer.callback_metrics))


class ProgressLines(Callback):
    """A line every so often, for logs that are files: a bar there is noise.

    Args:
        every_seconds: At the least between two lines.
    """

    def __init__(self, *, every_seconds: float) -> None:
        self.every_seconds = every_seconds
        self._next = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the line when it is time."""
        import time

        if not trainer.is_global_zero or time.monotonic() < self._next:
            return
        numbers = "  ".join(f"{label} {value}" for label, value in shown_metrics(trainer.callback_metrics).items())
        log.info("step %d of %s  %s", trainer.global_step, trainer.estimated_stepping_batches, numbers)
        self._next = time.monotonic() + self.every_seconds


def progress(*, every_seconds: float) -> Callback:
    """Returns a bar for a terminal and lines for anything else.

    Args:
        every_seconds: Time between two lines where there is no terminal.
    """
    return ProgressBar(leave=True) if sys.stderr.isatty() else ProgressLines(every_seconds=every_seconds)
