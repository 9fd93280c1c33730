"""What a sweep prints at its end: a row a job, and the failed ones by name."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The metrics that a row shows, in this order, as far as any job has them.
HEADLINES = (
    "fresh/reward/total",
    "fresh/kl/policy_start_nats",
    "val/loss/total",
    "val/reward/accuracy",
    "train/loss/total",
)
_NUM_SHOWN = 4


@dataclass(frozen=True)
class JobRow:
    """One job of a sweep as its manifest tells it.

    Attributes:
        name: The folder's name, which is the job's number.
        overrides: What it was started with.
        status: ``finished``, ``failed``, ``interrupted``; ``died`` when the process is gone without a word, and
            ``not started`` without a manifest.
        metrics: The last value of each metric.
        error: One line, for a failed job.
    """

    name: str
    overrides: tuple[str, ...]
    status: str
    metrics: dict[str, float]
    error: str


def sweep_table(folder: Path, jobs: Sequence[Sequence[str]]) -> int:
    """Prints the jobs of a finished sweep.

    Args:
        folder: The sweep's folder; each job's manifest lies in a folder below it.
        jobs: The overrides of the jobs that were to run, as far as they are known.

    Returns:
        The number of jobs that did not finish.
    """
    rows = read_jobs(folder, jobs)
    _print_rows(folder, rows)
    failed = [row for row in rows if row.status != "finished"]
    for row in failed:
        error = row.error or "no word about why: look at its folder"
        print(f"job {row.name} {row.status} ({' '.join(row.overrides)}): {error}", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(rows)} jobs failed; their tracebacks: {folder}/*/error.log", file=sys.stderr)
    return len(failed)


def read_jobs(folder: Path, jobs: Sequence[Sequence[str]]) -> list[JobRow]:
    """Reads the manifests below a sweep's folder, in the order of the jobs' numbers.

    Args:
        folder: The sweep's folder.
        jobs: What was to run: job number i without a folder of its own is one that never started.
    """
    found = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*/manifest.json")}
    expected = {str(number): tuple(job) for number, job in enumerate(jobs)}
    are_numbered = all(name.isdigit() for name in found)
    names = set(found) | (set(expected) if are_numbered else set())
    ordered = sorted(names, key=lambda name: (int(name) if name.isdigit() else math.inf, name))
    return [_row(name, found.get(name), expected.get(name, ())) for name in ordered]


def _row(name: str, manifest: dict[str, Any] | None, expected: tuple[str, ...]) -> JobRow:
    if manifest is None:
        return JobRow(name, expected, "not started", {}, "")
    status = str(manifest.get("status", "running"))
    return JobRow(
        name=name,
        overrides=tuple(map(str, manifest.get("overrides") or expected)),
        status="died" if status == "running" else status,
        metrics=manifest.get("metrics") or {},
        error=(str(manifest.get("error") or "").splitlines() or [""])[-1],
    )


def _print_rows(folder: Path, rows: Sequence[JobRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = [name for name in HEADLINES if any(name in row.metrics for row in rows)][:_NUM_SHOWN]
    common = _common([row.overrides for row in rows])
    title = f"{len(rows)} jobs in {folder}" + (f"\nall with {' '.join(common)}" if common else "")
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("job", "overrides", "status"):
        table.add_column(column, overflow="fold")
    for name in shown:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        values = [f"{row.metrics[name]:.4g}" if name in row.metrics else "" for name in shown]
        own = " ".join(item for item in row.overrides if item not in common)
        table.add_row(row.name, own, row.status, *values)
    Console().print(table)


def _common(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Returns the overrides that all of several jobs have."""
    return [] if len(overrides) < 2 else [item for item in overrides[0] if all(item in job for job in overrides)]
