"""What Hydra offers, through the command; and exit codes of the real process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig

Align = Callable[..., int]


def test_cfg_job_prints_and_runs_nothing(
    align: Align, trained: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert align("train", "--cfg", "job", "method.beta=0.7") == 0
    assert yaml.safe_load(capsys.readouterr().out)["method"]["beta"] == 0.7
    assert not trained


def test_cfg_resolved_and_in_part(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("train", "--cfg", "job", "--resolve", "-p", "paths", "paths.runs=here") == 0
    assert "run_dir: here/dpo/" in capsys.readouterr().out


def test_cfg_of_something_wrong(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("train", "--cfg", "job", "method.bta=0.7") == 2
    assert "did you mean 'method.beta'?" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["defaults", "searchpath"])
def test_info(align: Align, capsys: pytest.CaptureFixture[str], what: str) -> None:
    assert align("train", "--info", what) == 0
    assert ("sweeps" if what == "searchpath" else "method/dpo") in capsys.readouterr().out


def test_flags_that_exclude_one_another(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("train", "-m", "--cfg", "job") == 2
    assert capsys.readouterr().err == "error: only one of --multirun and --cfg at a time\n"


def test_unknown_flag(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        align("train", "--typo")
    assert stop.value.code == 2
    assert "unrecognized arguments: --typo" in capsys.readouterr().err


def test_config_dir(align: Align, trained: list[DictConfig], tmp_path: Path) -> None:
    (tmp_path / "mine" / "method").mkdir(parents=True)
    text = "defaults:\n  - dpo\n  - _self_\nbeta: 0.9\n"
    (tmp_path / "mine" / "method" / "mine.yaml").write_text(text)
    assert align("train", "--config-dir", "mine", "method=mine") == 0
    assert (trained[0].method.beta, trained[0].name) == (0.9, "mine")


def test_callbacks_of_hydra_are_held_to_the_same_list(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("train", "+hydra.callbacks.evil={_target_: evil_module.Callback}") == 2
    assert "hydra.callbacks.evil._target_: got 'evil_module.Callback'" in capsys.readouterr().err


def test_pipeline_by_name(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("pipeline", "quickstart", "--cfg", "job") == 0
    assert "experiment=world_sft" in capsys.readouterr().out
    assert align("pipeline", "quickstrt") == 2
    assert "did you mean 'quickstart'?" in capsys.readouterr().err


def test_report_of_nothing(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("report", "nowhere") == 2
    assert capsys.readouterr().err == "error: align report: no folder 'nowhere'\n"


def _align(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alignment.cli.main", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_process_ends_with_code_2_and_one_line(tmp_path: Path) -> None:
    done = _align("train", "method=dpoo", cwd=tmp_path)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_process_ends_with_code_143_after_sigterm(tmp_path: Path) -> None:
    """Before the training takes signals over, too."""
    code = """
import sys, time
import alignment.pipeline.train as training
def run(cfg, run_dir, overrides):
    print("here", flush=True)
    time.sleep(60)
training.run = run
from alignment.cli.main import main
sys.exit(main(["train"]))
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=60) == 143
