"""Finds the run folders that a path stands for: a run, a multirun, a pipeline."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from alignment.utils.errors import UserError

# What only a run has, and what a pipeline's own folder may have too.
SURE_MARKS = ("metrics", "evaluations.jsonl", "train.log")
MARKS = (*SURE_MARKS, "manifest.json", "config.yaml", "error.log")
NEVER_ENTERED = ("checkpoints", "model", "samples", "metrics", "wandb")  # W&B's folders hold a config.yaml
MAX_DEPTH = 3


@dataclass(frozen=True)
class Found:
    """The run folders below ``root``, and the job folders in which no run ever began.

    Attributes:
        root: What the runs' names are relative to, and where the report goes by default.
        runs: Run folders in the order in which the page shows them.
        empty: Numbered job folders without any file of a run.
    """

    root: Path
    runs: list[Path]
    empty: list[Path]


def find_runs(paths: list[Path]) -> Found:
    """Returns the run folders that the paths stand for.

    Raises:
        UserError: A path does not exist, is a file, or has no run in it or below it.
    """
    if not paths:
        raise UserError("report: got no path, expected one or more run folders, or a multirun folder")
    runs: list[Path] = []
    for path in paths:
        found = _runs_in(_existing_folder(path), MAX_DEPTH)
        if not found:
            raise UserError(_nothing_found(path))
        runs.extend(_in_order(found))
    runs = list(dict.fromkeys(runs))
    root = _existing_folder(paths[0]) if len(paths) == 1 else _common_parent(runs)
    return Found(root, runs, _empty_jobs(runs))


def run_name(run: Path, root: Path) -> str:
    """Returns the run's path below the root, or the folder's own name when it is the root."""
    return run.name if run == root else run.relative_to(root).as_posix()


def _existing_folder(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{path}: no such folder; give a run folder, a multirun folder or a pipeline's folder")
    if not path.is_dir():
        raise UserError(f"{path}: is a file; give the run folder that it lies in ({path.parent})")
    return path.resolve()


def _runs_in(folder: Path, depth: int) -> list[Path]:
    """Returns the folder if it is a run, else the runs below it, else the folder if it may have been a run.

    A pipeline's folder has a manifest like a run's, but runs in it; links are not followed, so that a
    ``latest`` beside a run does not show it twice.
    """
    if _has(folder, SURE_MARKS):
        return [folder]
    found: list[Path] = []
    for child in sorted(folder.iterdir()) if depth else ():
        is_hidden = child.name.startswith(".") or child.name in NEVER_ENTERED
        if child.is_dir() and not child.is_symlink() and not is_hidden:
            found.extend(_runs_in(child, depth - 1))
    return found or ([folder] if _has(folder, MARKS) else [])


def _has(folder: Path, marks: tuple[str, ...]) -> bool:
    return any((folder / mark).exists() for mark in marks)


def _empty_jobs(runs: list[Path]) -> list[Path]:
    """Returns numbered folders beside numbered runs that hold no file of a run."""
    parents = dict.fromkeys(run.parent for run in runs if run.name.isdigit())
    return [
        child
        for parent in parents
        for child in sorted(parent.iterdir(), key=lambda child: natural_key(child.name))
        if child.is_dir() and child.name.isdigit() and child not in runs and not _has(child, MARKS)
    ]


def _in_order(runs: list[Path]) -> list[Path]:
    """Sorts a multirun's jobs by number, anything else by when it started."""
    if all(run.name.isdigit() for run in runs):
        return sorted(runs, key=lambda run: natural_key(run.as_posix()))
    return sorted(runs, key=lambda run: (_started(run), natural_key(run.as_posix())))


def natural_key(text: str) -> list[tuple[int, str]]:
    """Sorts ``run10`` behind ``run9``.

    >>> sorted(["b10", "b9", "a"], key=natural_key)
    ['a', 'b9', 'b10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text) if part]


def _started(run: Path) -> str:
    try:
        manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "~"  # behind every date: the page shows a run that says nothing last
    return str(manifest.get("started") or "~") if isinstance(manifest, dict) else "~"


def _common_parent(runs: list[Path]) -> Path:
    if len(runs) == 1:
        return runs[0]
    parents = [set(run.parents) for run in runs]
    return max(set.intersection(*parents), key=lambda parent: len(parent.parts))


def _nothing_found(path: Path) -> str:
    there = sorted(child.name + ("/" if child.is_dir() else "") for child in path.iterdir())
    shown = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    return (
        f"{path}: no run here. Looked for {', '.join(MARKS)} in it and in its sub-folders, {MAX_DEPTH} levels deep; "
        f"found {shown or 'an empty folder'}. Give the folder that `align train` printed, or a multirun folder"
    )
