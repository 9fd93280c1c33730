"""When each optimiser step ends, by the same clock in Lightning and in TRL.

The time between two ends covers everything that a step costs: making its batch, the forward and backward passes of
policy and reference, clipping, the optimiser, the schedule, and logging. Beside the wall clock runs one of the
processor time of all threads, which a busy machine disturbs less.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from transformers import TrainerCallback

from alignment.types import PreferenceBatch

PAD_ID = 0


def tokens_digest(steps: Iterable[Iterable[Sequence[int]]]) -> str:
    """Names what was trained on: the sequences of each step, in whatever order they stand within it."""
    content = [sorted([int(token) for token in ids] for ids in step) for step in steps]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def now() -> tuple[float, float]:
    """Returns wall and processor time in seconds."""
    return time.perf_counter(), time.process_time()


class LightningClock(pl.Callback):
    """Notes the ends of steps and what was in them, and writes both to a file when training ends.

    Args:
        path: A ``.json`` file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.ends: list[tuple[float, float]] = []
        self.steps: list[list[list[int]]] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: PreferenceBatch,
        batch_idx: int,
    ) -> None:
        """Notes a step (one micro-batch is one step here)."""
        self.ends.append(now())
        rows = batch.tokens.input_ids.tolist()
        self.steps.append([[token for token in row if token != PAD_ID] for row in rows])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file."""
        self.path.write_text(json.dumps({"ends": self.ends, "digest": tokens_digest(self.steps)}), encoding="utf-8")


class TRLClock(TrainerCallback):
    """Notes the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *_args: Any, **_state: Any) -> None:
        """Notes a step."""
        self.ends.append(now())
