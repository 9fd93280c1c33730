"""The benchmark against TRL still runs, and refuses to compare unequal work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import dpo_step
import pytest

SCRIPT = Path(dpo_step.__file__)


def a_run(row: str, **changes) -> dict:
    return {"row": row, "digest": "same", "losses": [0.693, 0.65]} | changes


def test_equal_work_passes():
    dpo_step.check_equal_work([a_run("TRL"), a_run("ours", losses=[0.693, 0.6501])])


@pytest.mark.parametrize(
    ("changes", "message"), [({"digest": "other"}, "other tokens"), ({"losses": [0.693, 0.66]}, "reached losses")]
)
def test_unequal_work_is_refused(changes, message):
    with pytest.raises(RuntimeError, match=message):
        dpo_step.check_equal_work([a_run("TRL"), a_run("ours", **changes)])


def test_the_parent_imports_nothing_heavy():
    """A child's peak memory begins with its parent's."""
    check = "import sys, dpo_step; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=SCRIPT.parent, check=True)


@pytest.mark.slow
def test_runs(tmp_path):
    pytest.importorskip("trl", reason="the benchmark needs the extra `peers`: pip install -e '.[peers]'")
    options = ["--shape", "tiny", "--steps", "2", "--repetitions", "1", "--out"]
    subprocess.run([sys.executable, str(SCRIPT), *options, str(tmp_path)], check=True, capture_output=True, timeout=600)
    runs = json.loads((tmp_path / "dpo_step.json").read_text(encoding="utf-8"))["shapes"]["tiny"]["runs"]
    assert [run["row"] for run in runs] == [row.name for row in dpo_step.ROWS]
    assert all(len(run["step_seconds"]) == 2 and run["peak_bytes"] > run["state_bytes"] for run in runs)
    table = (tmp_path / "dpo_step.md").read_text(encoding="utf-8")
    assert all(f"| {row.name} |" in table for row in dpo_step.ROWS)
    assert str(Path.home()) not in table
