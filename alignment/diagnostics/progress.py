"""What a person sees while a run goes on."""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, RichProgressBar
from rich.console import RenderableType
from rich.text import Text

log = logging.getLogger(__name__)

#: Metric, label and format of the numbers that matter; those that a method does not log are left out.
_SHOWN = (
    ("train/loss/total", "loss", "{:.4f}"),
    ("train/reward/accuracy", "accuracy", "{:.3f}"),
    ("train/reward/margin", "margin", "{:.3f}"),
    ("train/reward/total", "train reward", "{:.3f}"),
    ("train/kl/policy_reference_nats", "train KL", "{:.2f}"),
    ("fresh/kl/policy_start_nats", "KL", "{:.2f}"),
    ("fresh/reward/total", "reward", "{:.3f}"),
    ("train/speed/tokens_per_second", "tok/s", "{:,.0f}"),
)
#: What a policy writes, and how it learns from that; of online methods.
_WRITTEN = (
    ("train/policy/entropy_nats", "entropy", "{:.2f}"),
    ("train/policy/clip_fraction", "clipped", "{:.1%}"),
    ("train/length/completion_tokens", "length", "{:.0f}"),
    ("train/length/truncated_share", "cut off", "{:.0%}"),
    ("train/advantage/zero_std_groups", "dead groups", "{:.0%}"),
)
#: What the time of an online method goes into, with the tokens a second that belong to it.
_PHASES = {
    "generate": "train/speed/generated_tokens_per_second",
    "score": None,
    "measure": None,
    "update": "train/speed/trained_tokens_per_second",
}
_NO_BREAK = "\u00a0"


def shown_metrics(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns the numbers that matter, ready to print.

    >>> shown_metrics({"train/loss/total": 0.69314, "train/optim/learning_rate": 1e-5})
    {'loss': '0.6931'}
    """
    return _printed(_SHOWN, metrics)


class Phases:
    """The time of each phase since an online policy last began to write, and how fast it went.

    An experience may serve many steps, each with a line in the log of its own: their times are added up.
    """

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(_PHASES, 0.0)
        self._seen = 0.0

    def see(self, metrics: Mapping[str, Any]) -> None:
        """Adds up the log's last line, once; one with fresh completions begins anew."""
        now = float(metrics.get("train/budget/seconds", 0.0))
        if not _is_online(metrics) or now == self._seen:
            return
        self._seen = now
        spent = {name: float(metrics.get(f"train/time/{name}_seconds", 0.0)) for name in _PHASES}
        started = dict.fromkeys(_PHASES, 0.0) if spent["generate"] else self._seconds
        self._seconds = {name: started[name] + spent[name] for name in _PHASES}

    def texts(self, metrics: Mapping[str, Any]) -> list[str]:
        """Returns them in words; none for a method that does not write."""
        if not self._seen:
            return []
        texts = []
        for name, rate in _PHASES.items():
            speed = f" ({float(metrics[rate]):,.0f} tok/s)" if rate in metrics else ""
            texts.append(f"{name} {self._seconds[name]:.2f} s{speed}")
        return texts


class ProgressBar(RichProgressBar):
    """Lightning's rich bar with the numbers of this project below it."""

    def __init__(self) -> None:
        super().__init__(leave=True)
        self._phases = Phases()
        self._lines: list[list[str]] = []

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Notes what stands below the bar; nothing stands beside it, where it would have to wrap."""
        metrics = trainer.callback_metrics
        self._phases.see(metrics)
        self._lines = _lines(metrics, self._phases)
        return {}

    def _init_progress(self, trainer: pl.Trainer) -> None:
        super()._init_progress(trainer)
        if self.progress is not None:
            self.progress.get_renderables = self._renderables

    def _get_train_description(self, current_epoch: int) -> str:
        # A run that is told its steps alone has no last epoch.
        last = "" if (self.trainer.max_epochs or 0) < 1 else f"/{self.trainer.max_epochs}"
        return f"Epoch {current_epoch + 1}{last}"

    def _renderables(self) -> list[RenderableType]:
        assert self.progress is not None
        width = self.progress.console.width
        wrapped = [Text(line) for texts in self._lines for line in _wrapped(texts, width=width)]
        return [self.progress.make_tasks_table(self.progress.tasks), *wrapped]


class ProgressLines(Callback):
    """A line every so often, for logs that are files: a bar there is noise.

    Args:
        every_seconds: At the least between two lines.
    """

    def __init__(self, *, every_seconds: float) -> None:
        self.every_seconds = every_seconds
        self._next = 0.0
        self._phases = Phases()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the line when it is time."""
        import time

        metrics = trainer.callback_metrics
        self._phases.see(metrics)
        numbers = "  ".join(text for texts in _lines(metrics, self._phases) for text in texts)
        if not trainer.is_global_zero or not numbers or time.monotonic() < self._next:
            return
        log.info("step %d of %s  %s", trainer.global_step, trainer.estimated_stepping_batches, numbers)
        self._next = time.monotonic() + self.every_seconds


def progress(*, every_seconds: float) -> Callback:
    """Returns a bar for a terminal and lines for anything else.

    Args:
        every_seconds: Time between two lines where there is no terminal.
    """
    return ProgressBar() if sys.stderr.isatty() else ProgressLines(every_seconds=every_seconds)


def _is_online(metrics: Mapping[str, Any]) -> bool:
    return "train/time/generate_seconds" in metrics


def _lines(metrics: Mapping[str, Any], phases: Phases) -> list[list[str]]:
    """Returns results, what was written, and where the time went: a line each, of texts that belong together."""
    written = _printed(_WRITTEN, metrics) if _is_online(metrics) else {}
    tables = (shown_metrics(metrics), written)
    return [*([f"{label} {value}" for label, value in table.items()] for table in tables), phases.texts(metrics)]


def _wrapped(texts: list[str], *, width: int) -> list[str]:
    """Returns texts side by side, on further lines where they do not fit; a number stays with its label."""
    line = "  ".join(text.replace(" ", _NO_BREAK) for text in texts)
    return [part.replace(_NO_BREAK, " ") for part in textwrap.wrap(line, width, break_on_hyphens=False)]


def _printed(shown: tuple[tuple[str, str, str], ...], metrics: Mapping[str, Any]) -> dict[str, str]:
    return {label: form.format(float(metrics[name])) for name, label, form in shown if name in metrics}
