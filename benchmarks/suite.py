"""What every benchmark does alike: runs in processes of their own, taken in turns, and a page beside the raw numbers.

Imports nothing heavy: a child's peak memory would begin with its parent's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from machine import environment, load_average

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "lightning", "transformers", "trl", "accelerate", "tokenizers", "datasets", "numpy")
GIB = 2**30
#: Rows of the peer with one of its functions replaced; see ``trl_peer.score_completions_only``.
CHANGED = "changed TRL, head on completions only"
T = TypeVar("T")


class Result(dict[str, Any]):
    """What a benchmark has measured so far, with what its numbers hang on.

    Args:
        args: The command line; its plain values are kept.
        part: The key under which the measurements will be.
    """

    def __init__(self, args: argparse.Namespace, part: str) -> None:
        asked = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
        super().__init__({"environment": environment(PACKAGES), "arguments": asked, part: {}})
        self._start = time.time()

    def write(self, folder: Path, name: str, page: Callable[[Result], list[str]]) -> None:
        """Writes ``name.json`` and ``name.md``; called after each part, so that a run that is stopped leaves some."""
        self["minutes"] = round((time.time() - self._start) / 60, 1)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(self, indent=1) + "\n", encoding="utf-8")
        (folder / f"{name}.md").write_text("\n".join(page(self)) + "\n", encoding="utf-8")


def parser(doc: str | None, *, repetitions: int) -> argparse.ArgumentParser:
    """Returns a command line with what all benchmarks take."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    made.add_argument("--repetitions", type=int, default=repetitions, help="how often all is measured, in turns")
    made.add_argument("--threads", type=int, help="of each run; torch's own choice if not given")
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the weights")
    made.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks")
    return made


def child(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """Runs a job in a process of its own and returns what it printed last, with the machine's load before it.

    Raises:
        RuntimeError: It failed; the message ends with what it said.
    """
    load = load_average()
    command = [sys.executable, str(HERE / script), json.dumps(job)]
    # As `align train` sets it: threads that wait for one another sleep, so that a busy machine costs both the same.
    passive = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=passive)
    if done.returncode:
        raise RuntimeError(f"{script} {json.dumps(job)[:400]} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"load_before": load}


def in_turns(items: Sequence[T], repetitions: int) -> Iterator[tuple[int, T]]:
    """Yields all items again and again, forwards, then backwards: a slow drift of the machine hits all alike."""
    for repetition in range(repetitions):
        for item in items if repetition % 2 == 0 else items[::-1]:
            yield repetition, item


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the median and the quartiles around it.

    >>> spread([4.0, 1.0, 2.0])
    (2.0, 1.5, 3.0)
    """
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return middle, low, high


def between(values: Sequence[float], digits: int = 2) -> str:
    """Writes two cells of a table: the median, and the range.

    >>> between([0.5, 0.25, 1.0])
    '0.50 | 0.25 to 1.00'
    """
    return f"{median(values):.{digits}f} | {min(values):.{digits}f} to {max(values):.{digits}f}"


def heading(title: str, command: str, result: Result, about: str) -> list[str]:
    """Writes the top of a page: what made it, on what, and how to read it."""
    env = result["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items() if number)
    commit = env["commit"] or {"sha": "unknown", "dirty": False}
    dtype = "fp32" if result["arguments"]["dtype"] == "float32" else "bf16 weights"
    return [
        f"# {title}",
        "",
        f"Made by `{command}` in {result.get('minutes', 0)} minutes;",
        "benchmarks/README.md says what is measured and how.",
        about,
        "",
        f"{env['device'] or env['cpu']}, {env['cores']} cores, {env['memory_gib']} GiB, {env['system']}, {dtype}.",
        f"Python {env['python']}, {versions}.",
        f"Commit {commit['sha'][:12]}{', with changes' if commit['dirty'] else ''}.",
    ]


def table(header: str, rows: Sequence[str]) -> list[str]:
    """Writes a table; cells are parted by `` | ``."""
    return ["", f"| {header} |", "|" + "---|" * (header.count(" | ") + 1), *(f"| {row} |" for row in rows)]
