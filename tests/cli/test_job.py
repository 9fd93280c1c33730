"""From a command line to a job, and what is left behind when it fails."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import alignment.pipeline.graph as graph
import alignment.pipeline.train as training
from alignment.cli.app import sweep_jobs
from alignment.config.compose import compose
from alignment.config.paths import sweeps_dir
from alignment.utils.launch import job_argv

Align = Callable[..., int]
SECRET = "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"


def only_run(name: str = "dpo") -> Path:
    (folder,) = Path("runs", name).iterdir()
    return folder


def manifest(folder: Path) -> dict[str, object]:
    return json.loads((folder / "manifest.json").read_text())


def named_betas() -> list[float]:
    named = yaml.safe_load((sweeps_dir() / "sweep" / "dpo_beta.yaml").read_text(encoding="utf-8"))
    return [float(value) for value in named["hydra"]["sweeper"]["params"]["method.beta"].split(",")]


def test_job_gets_its_configuration_and_its_folder(align: Align, trained: list[DictConfig]) -> None:
    assert align("train", "method.beta=0.2", "seed=5") == 0
    (cfg,) = trained
    assert (cfg.method.beta, cfg.seed, cfg.name) == (0.2, 5, "dpo")
    assert "hydra" not in cfg
    assert Path(cfg.paths.run_dir).resolve() == only_run().resolve()
    assert manifest(only_run())["overrides"] == ["method.beta=0.2", "seed=5"]


def test_hydra_leaves_nothing_in_the_folder(align: Align, trained: list[DictConfig]) -> None:
    align("train")
    assert [path.name for path in only_run().iterdir()] == ["manifest.json"]


def test_an_error_in_a_components_own_check_is_the_users(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    """What a component refuses when it is built is worded like any other wrong key, with no traceback."""
    code = align(
        *("train", "model=world_init", "data=world", "data.train.num_records=-3"),
        *("callbacks.fresh_samples=null", "trainer.max_steps=1"),
    )
    err = capsys.readouterr().err
    assert code == 2
    assert "num_records: got -3, expected at least 1" in err
    assert "Traceback" not in err


def test_configuration_error_costs_nothing(
    align: Align, trained: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert align("train", "method.bta=1") == 2
    assert capsys.readouterr().err == (
        "error: method.bta: got '1', expected one of the keys of 'method': beta, length_normalised, nll_coefficient, "
        "nll_normaliser, weighting, loss, divergence. "
        "did you mean 'method.beta'?\n"
    )
    assert not trained
    assert not Path("runs").exists()


def test_failure_is_told_and_kept(align: Align, trained: list[DictConfig], capsys: pytest.CaptureFixture[str]) -> None:
    assert align("train", "seed=2") == 1
    error = capsys.readouterr().err
    log = only_run() / "error.log"
    assert error.endswith(
        f"align train failed: RuntimeError: the loss is not finite\nThe traceback is in {log.resolve()}\n"
    )
    assert "Traceback" not in error
    assert "in run\n" in log.read_text()
    left = manifest(only_run())
    assert (left["status"], left["error"]) == ("failed", "RuntimeError: the loss is not finite")


def test_failure_keeps_what_the_manifest_knew(align: Align, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
        (run_dir / "manifest.json").write_text('{"status": "running", "model": {"parameters": 7}}')
        raise RuntimeError("gone")

    monkeypatch.setattr(training, "run", run)
    assert align("train") == 1
    left = manifest(only_run())
    assert (left["status"], left["model"]) == ("failed", {"parameters": 7})


def test_failure_of_a_resumed_run_is_told_where_the_run_is(
    align: Align, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
        run_dir.rmdir()
        cfg.paths.run_dir = str(tmp_path / "first")
        raise RuntimeError("gone")

    monkeypatch.setattr(training, "run", run)
    assert align("train") == 1
    assert "in run\n" in (tmp_path / "first" / "error.log").read_text()
    assert manifest(tmp_path / "first")["status"] == "failed"
    assert list(Path("runs/dpo").iterdir()) == []


def test_success_takes_an_earlier_failure_back(align: Align, trained: list[DictConfig]) -> None:
    assert align("train", "seed=2", "hydra.run.dir=runs/x") == 1
    assert Path("runs/x/error.log").exists()
    assert align("train", "seed=1", "hydra.run.dir=runs/x") == 0
    assert [path.name for path in Path("runs/x").iterdir()] == ["manifest.json"]


def test_a_pipeline_that_failed_once_ends_as_finished(align: Align, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [RuntimeError("no")]

    def run(cfg: DictConfig, run_dir: Path) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(graph, "run", run)
    folder = Path("runs/pipeline/quickstart")
    assert align("pipeline", "quickstart") == 1
    assert (manifest(folder)["status"], manifest(folder)["error"]) == ("failed", "RuntimeError: no")
    assert align("pipeline", "quickstart") == 0
    assert (manifest(folder)["status"], manifest(folder)["error"]) == ("finished", None)
    assert not (folder / "error.log").exists()


def test_users_fault_inside_the_job(
    align: Align, trained: list[DictConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert align("train", "seed=3") == 2
    assert capsys.readouterr().err.endswith("error: data.jsonl:17: no field 'chosen'\n")
    assert manifest(only_run())["status"] == "failed"


def test_full_errors_on_request(
    align: Align, trained: list[DictConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert align("train", "method.bta=1") == 2
    assert "Traceback" in capsys.readouterr().err
    assert align("train", "seed=2") == 1
    assert "Traceback" in capsys.readouterr().err


def test_exit_for_a_signal_passes_through(align: Align, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(training, "run", run)
    with pytest.raises(SystemExit) as stop:
        align("train")
    assert stop.value.code == 143


def test_lightning_would_start_the_job_and_not_hydra(align: Align, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []

    def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
        seen.extend([HydraConfig.initialized(), list(sys.argv), job_argv(run_dir)])

    monkeypatch.setattr(training, "run", run)
    align("train", "seed=4")
    assert seen[0] is False
    assert seen[1] == ["align", "train", "seed=4"]
    assert seen[2] == ["align", "train", "--job", str(only_run().resolve())]


def test_further_rank_joins_the_saved_job(align: Align, trained: list[DictConfig]) -> None:
    align("train", "seed=6", "method.beta=0.4")
    OmegaConf.save(trained[0], only_run() / "config.yaml")
    assert align("train", "--job", str(only_run())) == 0
    assert trained[1] == trained[0]
    assert len(list(Path("runs/dpo").iterdir())) == 1


def test_further_rank_leaves_the_manifest_alone(
    align: Align, trained: list[DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    align("train", "seed=6")
    trained[0].seed = 2
    OmegaConf.save(trained[0], only_run() / "config.yaml")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert align("train", "--job", str(only_run())) == 1
    assert manifest(only_run())["status"] == "finished"
    assert (only_run() / "error.rank1.log").exists()


def test_rank_that_joins_nothing(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("train", "--job", "nowhere") == 2
    assert "names the folder of a run that has begun" in capsys.readouterr().err


class TestSweep:
    def test_failed_job_stops_no_other(
        self, align: Align, trained: list[DictConfig], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert align("train", "-m", "seed=1,2,3,4") == 1
        assert [cfg.seed for cfg in trained] == [1, 2, 3, 4]
        out, err = capsys.readouterr()
        rows = [line.split() for line in out.splitlines() if "seed=" in line]
        assert [row[3] for row in rows] == ["seed=1", "seed=2", "seed=3", "seed=4"]
        assert [row[5] for row in rows] == ["finished", "failed", "failed", "finished"]
        assert rows[3][7] == "0.4"
        assert "job 1 failed (seed=2): RuntimeError: the loss is not finite" in err
        assert "no field 'chosen'" in err
        assert "2 of 4 jobs failed" in err

    def test_each_job_has_its_own_folder(self, align: Align, trained: list[DictConfig]) -> None:
        assert align("train", "-m", "seed=1,4", "method.beta=0.1,0.2") == 0
        (sweep,) = Path("runs/multirun").iterdir()
        assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
        assert [Path(cfg.paths.run_dir).name for cfg in trained] == ["0", "1", "2", "3"]
        assert manifest(sweep / "3")["overrides"] == ["seed=4", "method.beta=0.2"]

    def test_wrong_job_starts_none(
        self, align: Align, trained: list[DictConfig], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert align("train", "-m", "method.beta=0.1,0.2,-1") == 2
        assert "method.beta: got -1, expected a number in (0, inf)" in capsys.readouterr().err
        assert not trained
        assert not Path("runs").exists()

    def test_wrong_choice_in_a_sweep(self, align: Align, capsys: pytest.CaptureFixture[str]) -> None:
        assert align("train", "-m", "method=dpo,dpoo") == 2
        assert "method: got 'dpoo', expected one of " in capsys.readouterr().err

    def test_named_sweep(self, align: Align, trained: list[DictConfig]) -> None:
        assert align("train", "-m", "+sweep=dpo_beta") == 0
        assert [cfg.method.beta for cfg in trained] == named_betas()
        assert {cfg.name for cfg in trained} == {"dpo_beta"}

    def test_jobs_are_known_beforehand(self) -> None:
        cfg = compose("train", ["+sweep=dpo_beta"], run_mode=RunMode.MULTIRUN)
        jobs = sweep_jobs(cfg, ["+sweep=dpo_beta", "seed=1,4"], None)
        assert len(jobs) == 2 * len(named_betas())
        assert jobs[1] == [f"method.beta={named_betas()[0]}", "+sweep=dpo_beta", "seed=4"]

    def test_jobs_of_another_sweeper_are_checked_without_what_it_sweeps(self) -> None:
        cfg = compose("train", ["method.beta=interval(0.1,1)"], run_mode=RunMode.MULTIRUN)
        cfg.hydra.sweeper = {"_target_": "hydra_plugins.another.Sweeper"}
        assert sweep_jobs(cfg, ["method.beta=interval(0.1,1)", "seed=4"], None) == [["seed=4"]]

    def test_folder_of_the_users_choice(self, align: Align, trained: list[DictConfig]) -> None:
        assert align("train", "-m", "seed=1,4", "hydra.sweep.dir='a folder, with=signs'") == 0
        assert (Path("a folder, with=signs") / "1" / "manifest.json").exists()

    def test_objective_is_not_a_number_after_a_failure(
        self, align: Align, trained: list[DictConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from alignment.cli.job import Job

        returned: list[float] = []
        call = Job.__call__

        def spy(self: Job, cfg: DictConfig) -> float:
            returned.append(call(self, cfg))
            return returned[-1]

        monkeypatch.setattr(Job, "__call__", spy)
        align("train", "-m", "seed=1,2")
        assert returned[0] == pytest.approx(0.1)
        assert math.isnan(returned[1])


class TestSecrets:
    """Trap S5: what a job leaves behind has no secrets, whoever wrote it."""

    def everything(self) -> str:
        return "\n".join(path.read_text() for path in Path("runs").rglob("*") if path.is_file())

    def test_of_a_sweep(self, align: Align, trained: list[DictConfig]) -> None:
        assert align("train", "-m", "seed=1,4", f"name={SECRET}x", "paths.runs=runs") == 0
        assert trained[0].name == f"{SECRET}x"
        assert SECRET not in self.everything()

    def test_of_a_failure(
        self, align: Align, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
            (run_dir / "argv").write_text(" ".join([*sys.argv, *overrides]))
            raise RuntimeError(f"401 for {SECRET}")

        monkeypatch.setattr(training, "run", run)
        assert align("train", f"data.train.split={SECRET}", "hydra.run.dir=runs/x") in (1, 2)
        assert align("train", f"objective={SECRET}", "hydra.run.dir=runs/y") == 1
        assert SECRET not in self.everything()
        assert SECRET not in capsys.readouterr().err
