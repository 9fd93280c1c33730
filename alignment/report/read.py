"""Reads a run folder into plain values. What cannot be read is named in ``problems``, never raised.

A report has to show the runs that are there even when one of them was killed half way through a
line, so every reader here returns what it could read and says what it could not.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from alignment.report.rollouts import Stage, read_stages
from alignment.report.values import numbers, real, shorten, whole

VERSION = re.compile(r"version_(\d+)")
SAMPLES = re.compile(r"step=(\d+)\.jsonl")
NOT_METRICS = ("step", "epoch")
LOG_TAIL_LINES = 30
LOG_TAIL_BYTES = 32_768


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval (``None`` where the run gave none) over ``num`` values."""

    mean: float
    low: float | None = None
    high: float | None = None
    num: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on fresh samples, after ``step`` optimiser updates."""

    step: int
    policy: str
    num_prompts: int | None
    num_samples: int | None
    metrics: dict[str, Interval]


@dataclass(frozen=True)
class Sample:
    """One sampled completion and what it scored. ``prompt`` is text or a list of chat messages."""

    prompt_id: str
    sample: int
    prompt: Any
    completion: str
    finish_reason: str
    num_tokens: int | None
    kl_nats: float | None
    reward: float | None
    components: dict[str, float]


@dataclass(frozen=True)
class MonitorWarning:
    """What a monitor said in words while the run went on."""

    step: int | None
    monitor: str
    message: str


@dataclass(frozen=True)
class Run:
    """Everything that a run folder holds, as far as it could be read.

    Attributes:
        path: The run folder.
        name: How the page calls it: its path below the folder that was asked for.
        manifest: manifest.json, empty when it is missing or corrupt.
        config: config.yaml, empty when it is missing or corrupt.
        curves: Metric name to (steps, values), steps ascending; a value may be NaN.
        num_versions: How many times the run was started (metrics/version_0, version_1, ...).
        evaluations: In the order of their steps.
        samples: Step to samples, for the first and the last step that have any.
        stages: What an online method learnt from, at the beginning, in the middle and at the end.
        warnings: In the order in which they were written.
        log_tail: The last lines of train.log.
        error_tail: The last lines of error.log, the traceback of a failed run.
        last_written: The latest change of a file that grows during a run, seconds since the epoch.
        problems: What could not be read: file, line, reason.
    """

    path: Path
    name: str
    manifest: dict[str, Any]
    config: dict[str, Any]
    curves: dict[str, tuple[list[int], list[float]]]
    num_versions: int
    evaluations: list[Evaluation]
    samples: dict[int, list[Sample]]
    stages: list[Stage]
    warnings: list[MonitorWarning]
    log_tail: str
    error_tail: str
    last_written: float
    problems: list[str] = field(default_factory=list)


def read_run(path: Path, *, name: str) -> Run:
    """Reads one run folder."""
    problems: list[str] = []
    manifest = read_manifest(path / "manifest.json", problems)
    # A job that failed before it had a configuration is no damaged run: its error says what happened.
    is_expected = (path / "config.yaml").is_file() or manifest.get("status") != "failed"
    curves, num_versions = read_metrics(path / "metrics", problems)
    return Run(
        path=path,
        name=name,
        manifest=manifest,
        config=read_config(path / "config.yaml", problems) if is_expected else {},
        curves=curves,
        num_versions=num_versions,
        evaluations=read_evaluations(path / "evaluations.jsonl", problems),
        samples=read_samples(path / "samples", problems),
        stages=read_stages(path / "rollouts", problems),
        warnings=read_warnings(path / "warnings.jsonl", problems),
        log_tail=read_log_tail(path / "train.log"),
        error_tail=read_log_tail(path / "error.log"),
        last_written=last_written(path),
        problems=problems,
    )


def read_manifest(path: Path, problems: list[str]) -> dict[str, Any]:
    """Returns the manifest, or an empty dict and a problem."""
    if not path.is_file():
        problems.append(f"{path.name} is missing: status, budget, versions and data fingerprint are unknown")
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        problems.append(f"{path.name} cannot be read ({error}): status, budget and versions are unknown")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds {type(value).__name__}, expected an object")
        return {}
    return value


def read_config(path: Path, problems: list[str]) -> dict[str, Any]:
    """Returns the resolved configuration, or an empty dict and a problem."""
    if not path.is_file():
        problems.append(f"{path.name} is missing: the configuration is unknown")
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError) as error:
        problems.append(f"{path.name} cannot be read ({' '.join(str(error).split())})")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds {type(value).__name__}, expected keys")
        return {}
    return value


def read_metrics(folder: Path, problems: list[str]) -> tuple[dict[str, tuple[list[int], list[float]]], int]:
    """Returns the curves of all versions joined, and the number of versions.

    A resumed run continues from a checkpoint that may lie before the last logged step. What an
    earlier version logged from a later version's first step on belongs to a branch that was given
    up, so it is left out.
    """
    found = sorted(
        (int(match[1]), child)
        for child in (folder.iterdir() if folder.is_dir() else ())
        if (match := VERSION.fullmatch(child.name)) and (child / "metrics.csv").is_file()
    )
    merged: dict[str, dict[int, float]] = {}
    for number, child in found:
        version = _read_metrics_csv(child / "metrics.csv", f"metrics/version_{number}/metrics.csv", problems)
        first = min((min(points) for points in version.values()), default=None)
        if first is not None:
            for points in merged.values():
                for step in [step for step in points if step >= first]:
                    del points[step]
        for metric, points in version.items():
            merged.setdefault(metric, {}).update(points)
    curves = {
        metric: (sorted(points), [points[step] for step in sorted(points)])
        for metric, points in merged.items()
        if points
    }
    return curves, len(found)


def _read_metrics_csv(path: Path, shown: str, problems: list[str]) -> dict[str, dict[int, float]]:
    metrics: dict[str, dict[int, float]] = {}
    bad: list[str] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(line.replace("\0", "") for line in file)
        header = next(rows, [])
        if header and "step" not in header:
            problems.append(f"{shown} has no column 'step'")
            return {}
        step_column = header.index("step") if header else 0
        columns = [(i, name) for i, name in enumerate(header) if name not in NOT_METRICS]
        for row in rows:
            if not row:
                continue
            try:
                if len(row) != len(header):
                    raise ValueError(f"{len(row)} cells, expected {len(header)}")
                step = int(float(row[step_column]))
                values = [(name, float(row[i])) for i, name in columns if row[i]]
            except (ValueError, OverflowError) as error:
                bad.append(f"{shown}:{rows.line_num}: {error}; the line is left out")
                continue
            for name, value in values:
                metrics.setdefault(name, {})[step] = value
    problems.extend(shorten(bad))
    return metrics


def read_jsonl(path: Path, shown: str, problems: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """Returns (line number, object) for every good line; a bad one is a problem with its number."""
    if not path.is_file():
        return []
    good: list[tuple[int, dict[str, Any]]] = []
    bad: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                bad.append(f"{shown}:{number}: {error}; the line is left out")
                continue
            if isinstance(value, dict):
                good.append((number, value))
            else:
                bad.append(f"{shown}:{number}: {type(value).__name__}, expected an object; the line is left out")
    problems.extend(shorten(bad))
    return good


def read_evaluations(path: Path, problems: list[str]) -> list[Evaluation]:
    """Returns the evaluations by step; of two with the same step and policy the later line wins."""
    found: dict[tuple[int, str], Evaluation] = {}
    for number, line in read_jsonl(path, path.name, problems):
        step, metrics = whole(line.get("step")), line.get("metrics")
        if step is None or not isinstance(metrics, dict):
            problems.append(f"{path.name}:{number}: no step or no metrics; the line is left out")
            continue
        intervals = {str(name): interval for name, value in metrics.items() if (interval := _interval(value))}
        policy = str(line.get("policy") or "policy")
        found[step, policy] = Evaluation(
            step, policy, whole(line.get("num_prompts")), whole(line.get("num_samples")), intervals
        )
    return sorted(found.values(), key=lambda evaluation: evaluation.step)


def _interval(value: object) -> Interval | None:
    if not isinstance(value, dict):
        mean = real(value)
        return None if mean is None else Interval(mean)
    mean = real(value.get("mean"))
    if mean is None:
        return None
    return Interval(mean, real(value.get("ci_low")), real(value.get("ci_high")), whole(value.get("num")))


def read_samples(folder: Path, problems: list[str]) -> dict[int, list[Sample]]:
    """Returns the samples of the first and of the last step that have any."""
    files = sorted(
        (int(match[1]), child)
        for child in (folder.iterdir() if folder.is_dir() else ())
        if (match := SAMPLES.fullmatch(child.name))
    )
    samples = {}
    for step, path in dict((files[0], files[-1]) if files else ()).items():
        shown = f"samples/{path.name}"
        samples[step] = [_sample(line) for _, line in read_jsonl(path, shown, problems)]
    return {step: values for step, values in samples.items() if values}


def _sample(line: dict[str, Any]) -> Sample:
    reward = line.get("reward")
    total = reward.get("total") if isinstance(reward, dict) else reward
    components = reward.get("components") if isinstance(reward, dict) else None
    return Sample(
        prompt_id=str(line.get("prompt_id", "")),
        sample=whole(line.get("sample")) or 0,
        prompt=line.get("prompt", ""),
        completion=str(line.get("completion", "")),
        finish_reason=str(line.get("finish_reason") or ""),
        num_tokens=whole(line.get("num_tokens")),
        kl_nats=real(line.get("kl_nats")),
        reward=real(total),
        components=numbers(components),
    )


def read_warnings(path: Path, problems: list[str]) -> list[MonitorWarning]:
    """Returns what the monitors said."""
    return [
        MonitorWarning(whole(line.get("step")), str(line.get("monitor", "")), str(line.get("message", "")))
        for _, line in read_jsonl(path, path.name, problems)
    ]


def read_log_tail(path: Path) -> str:
    """Returns the last lines of a log, whatever its size; an empty text where there is none."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


def last_written(path: Path) -> float:
    """Returns when the run last wrote to a file that grows, in seconds since the epoch."""
    growing = ("manifest.json", "train.log", "evaluations.jsonl", "warnings.jsonl")
    files = [path / name for name in growing] + list(path.glob("metrics/version_*/*.csv"))
    return max((file.stat().st_mtime for file in files if file.is_file()), default=0.0)
