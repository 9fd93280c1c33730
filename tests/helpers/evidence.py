"""What the experiments of tests/evidence share: arms, tables and the gate.

An arm is a run of the public configuration. The repetitions of an experiment differ in the seed alone, which draws the
training data too.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEEDS = (1, 2, 3, 4, 5)
#: A seventh of the embedded world's model, and as good at it.
SMALL = ("model.config.hidden_size=64", "model.config.intermediate_size=256", "model.config.num_hidden_layers=2")


@dataclass(frozen=True)
class Arm:
    """A run, by its folder."""

    folder: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """What is known of it; empty before it began."""
        path = self.folder / "manifest.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end."""
        return self.manifest.get("status") == "finished"

    @property
    def metrics(self) -> dict[str, float]:
        """Returns the last value of each metric."""
        return self.manifest["metrics"]

    @property
    def as_model(self) -> tuple[str, str]:
        """Returns overrides that begin with its exported model."""
        return "model=world", f"model.path={self.folder / 'model'}"

    @property
    def warnings(self) -> set[str]:
        """Names the monitors that warned."""
        path = self.folder / "warnings.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return {json.loads(line)["monitor"] for line in lines}

    def rewards(self) -> dict[str, float]:
        """Returns the gold reward of the last fresh sample of each prompt."""
        last = sorted((self.folder / "samples").glob("step=*.jsonl"))[-1]
        rows = map(json.loads, last.read_text(encoding="utf-8").splitlines())
        return {row["prompt_id"]: row["reward"]["total"] for row in rows}


def schedule(lr: str) -> tuple[str, ...]:
    """Returns overrides: the embedded world's optimiser at a learning rate."""
    return "schedule=cosine", "optim.betas=[0.9,0.95]", f"optim.lr={lr}", "callbacks.overfitting=null"


def table(title: str, rows: dict[str, Sequence[float]]) -> None:
    """Prints a line for each quantity: its values over the seeds, mean and standard error."""
    print(f"\n{title}")
    for name, values in rows.items():
        cells = " | ".join(f"{value:.4f}" for value in values)
        print(f"| {name} | {cells} | {statistics.mean(values):.4f} | {standard_error(values):.4f} |", flush=True)


def standard_error(values: Sequence[float]) -> float:
    """Returns that of the mean over the seeds."""
    return statistics.stdev(values) / math.sqrt(len(values))


def at_least(values: Sequence[float]) -> float:
    """Returns the mean minus two standard errors over the seeds: what the values may be gated on."""
    return statistics.mean(values) - 2 * standard_error(values)


def at_most(values: Sequence[float]) -> float:
    """Returns the mean plus two standard errors."""
    return statistics.mean(values) + 2 * standard_error(values)
