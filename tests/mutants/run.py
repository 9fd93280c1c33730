"""Puts known bugs into a copy of the code, one at a time, and sees that a test fails for each.

    python tests/mutants/run.py                 all of them: an hour on two cores
    python tests/mutants/run.py losses/dpo      those whose file or name contains one of these texts

Exits 1 when a bug survives its tests, or these fail without any bug; 2 when the table is out of date.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from table import MUTANTS, ROOT, Mutant, stale

SURVIVED, UNUSABLE = 1, 2
#: What the tests read; nothing else is copied.
COPIED = ("alignment", "conf", "sweeps", "tests", "docs", "benchmarks", "pyproject.toml", "README.md", "CHANGELOG.md")
#: A bug may make processes wait for one another: that is found too.
TIMEOUT_SECONDS = 1200
PASSED, FAILED = 0, 1


def main(patterns: Sequence[str]) -> int:
    """Runs the mutants that match and prints a line for each.

    Args:
        patterns: Texts to look for in files and names; none for all mutants.

    Returns:
        The exit code.
    """
    problems = stale()
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return UNUSABLE
    chosen = [m for m in MUTANTS if not patterns or any(text in f"{m.file} {m.name}" for text in patterns)]
    if not chosen:
        print(f"no mutant matches {' '.join(patterns)}", file=sys.stderr)
        return UNUSABLE
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = _copy(Path(folder))
        # A test that fails anyway says nothing about a bug.
        sound = {tests: _pytest(copy, tests) == PASSED for tests in dict.fromkeys(mutant.tests for mutant in chosen)}
        for tests in (tests for tests, passes in sound.items() if not passes):
            print(f"these fail without any bug, or are none: {' '.join(tests)}", flush=True)
        survivors = [mutant for mutant in chosen if not (sound[mutant.tests] and _is_killed(copy, mutant))]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} bugs were found")
    return SURVIVED if survivors else 0


def _copy(folder: Path) -> Path:
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def _is_killed(copy: Path, mutant: Mutant) -> bool:
    began = time.monotonic()
    path = copy / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        code = _pytest(copy, mutant.tests)
    finally:
        path.write_text(text, encoding="utf-8")
    # Anything but a failed test, a syntax error for example, says nothing about the tests.
    verdict = {FAILED: "found", PASSED: "SURVIVED", None: "found (timeout)"}.get(
        code, f"UNUSABLE (pytest exits {code})"
    )
    print(f"{verdict:16} {mutant.file:36} {mutant.name}  ({time.monotonic() - began:.0f} s)", flush=True)
    return verdict.startswith("found")


def _pytest(copy: Path, tests: Sequence[str]) -> int | None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("ALIGNMENT_SHARED", str(ROOT.parent / "shared"))
    try:
        return subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, check=False, timeout=TIMEOUT_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
