"""When each optimiser step ends, by the same clock in Lightning and in TRL.

The time between two ends covers everything that a step costs: making its batch, the forward and backward passes of
policy and reference, clipping, the optimiser, the schedule, and logging. Beside the wall clock runs one of the
processor time of all threads, which a busy machine disturbs less. On a GPU both wait until it is done.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from operation_times import StepProfile
from transformers import TrainerCallback

from alignment.data.datamodule import DataModule
from alignment.types import BinaryBatch, Mismatched, PreferenceBatch, SFTBatch

#: Set where steps are profiled.
profiled: StepProfile | None = None

TrainBatch = PreferenceBatch | BinaryBatch | SFTBatch


def tokens_digest(steps: Iterable[Iterable[Sequence[int]]]) -> str:
    """Names what was trained on: the sequences of each step, in whatever order they stand within it."""
    content = [sorted([int(token) for token in ids] for ids in step) for step in steps]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def now() -> tuple[float, float]:
    """Returns wall and processor time in seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def prompts_of(data: DataModule) -> dict[str, list[int]]:
    """Returns the tokenised prompt of each record to train on, by the record's id."""
    table = data.prepared.tables["train"]
    rows = table.read(range(len(table)))
    return {name: ids.tolist() for name, ids in zip(rows["id"], rows["prompt_ids"], strict=True)}


def sequences_of(batch: TrainBatch, prompts: Mapping[str, list[int]]) -> list[list[int]]:
    """Returns a batch's sequences in whatever layout: each record's prompt, and the completion that was scored."""
    parts: list[TrainBatch | Mismatched] = [batch, *(batch.mismatched if isinstance(batch, BinaryBatch) else ())]
    found: list[list[int]] = []
    for part in parts:
        tokens = part.tokens
        counts = torch.ones_like(tokens.targets, dtype=torch.bool)
        counts = counts if tokens.in_completion is None else tokens.in_completion
        for sequence in range(tokens.num_sequences):
            completion = tokens.targets[counts & (tokens.sequence_index == sequence)].tolist()
            found.append([*prompts[part.ids[sequence % len(part.ids)]], *completion])
    return found


class LightningClock(pl.Callback):
    """Notes the ends of steps and what was in them, and writes both to a file when training ends.

    Args:
        path: A ``.json`` file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.ends: list[tuple[float, float]] = []
        self.batches: list[TrainBatch] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: TrainBatch, batch_idx: int
    ) -> None:
        """Notes a step (one micro-batch is one step here)."""
        self.ends.append(now())
        self.batches.append(batch)
        if profiled is not None:
            profiled.start()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file."""
        data: DataModule = trainer.datamodule  # type: ignore[attr-defined]
        prompts = prompts_of(data)
        digest = tokens_digest(sequences_of(batch, prompts) for batch in self.batches)
        self.path.write_text(json.dumps({"ends": self.ends, "digest": digest}), encoding="utf-8")


class TRLClock(TrainerCallback):
    """Notes the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, *_args: Any, **_state: Any) -> None:
        """Notes a step."""
        self.ends.append(now())
        if profiled is not None:
            profiled.start()
