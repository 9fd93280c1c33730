"""``align report``: runs in, one HTML page out."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from alignment.report.discover import find_runs, run_name
from alignment.report.page import Page, render
from alignment.report.read import read_run
from alignment.utils.errors import UserError
from alignment.utils.files import write_text_atomic

FILE_NAME = "report.html"


def run(paths: list[Path], output: Path | None) -> Path:
    """Writes one self-contained page about runs.

    What cannot be read of a run is said on the page and on standard error; the rest is shown.

    Args:
        paths: Run folders, multirun folders or pipeline folders.
        output: Where to write it; a folder gets a ``report.html``. ``None`` writes ``report.html`` into the
            one folder that was given, or into the nearest folder that holds all of the runs.

    Returns:
        The page.

    Raises:
        UserError: A path is no run and holds none, or the page cannot be written.
    """
    found = find_runs(paths)
    runs = [read_run(path, name=run_name(path, found.root)) for path in found.runs]
    empty = [run_name(path, found.root) for path in found.empty]
    for read in runs:
        for problem in read.problems:
            print(f"{read.path}: {problem}", file=sys.stderr)
    for path in found.empty:
        print(f"{path}: holds no file of a run", file=sys.stderr)
    page = render(Page(runs, found.root, empty, time.time()))
    target = found.root / FILE_NAME if output is None else output
    return _write(target / FILE_NAME if target.is_dir() else target, page)


def _write(target: Path, page: str) -> Path:
    """Writes the page whole or not at all: an earlier one stays until the new one is complete."""
    # A folder's name may hold bytes that are no text; they must not cost the page.
    text = page.encode("utf-8", errors="backslashreplace").decode("utf-8")
    try:
        write_text_atomic(target, text)
    except OSError as error:
        raise UserError(f"cannot write the report to {target}: {error.strerror}; give another --output") from error
    return target
