"""A graph of stages: order, hand-over by name, skipping, stopping, going on."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from alignment.config.compose import compose, task_config
from alignment.config.validate import validate
from alignment.pipeline import graph
from alignment.pipeline.graph import StageFailed, resolve_artifact, resolve_artifacts, run
from alignment.pipeline.stages import Stage, read_stages, select
from alignment.utils.errors import ConfigError, UserError

STAGES = {
    "sft": {"verb": "train", "overrides": ["method=sft", "model=world_init", "data=world_demonstrations"]},
    "dpo": {"verb": "train", "overrides": ["model.path=stage://sft/model", "method.beta=0.2"]},
    "report": {"verb": "report", "overrides": ["stage://sft", "stage://dpo"]},
}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, logger="alignment")


class Children:
    """Stands in for the stages' processes; remembers what ran with which arguments."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.arguments: dict[str, list[str]] = {}
        self.codes: dict[str, int] = {}
        self.content = "weights"

    def __call__(self, stage: Stage, arguments: list[str], name: str) -> int:
        self.ran.append(stage.name)
        self.arguments[stage.name] = arguments
        if code := self.codes.get(stage.name, 0):
            (stage.run_dir / "checkpoints" / "step-000001").mkdir(parents=True, exist_ok=True)
            return code
        if stage.verb == "report":
            (stage.run_dir / "report.html").write_text("<html>")
            return 0
        (stage.run_dir / "model").mkdir(exist_ok=True)
        (stage.run_dir / "model" / "w.bin").write_text(self.content)
        (stage.run_dir / "manifest.json").write_text(json.dumps({"artefacts": {"model": "model"}}))
        return 0


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    found = Children()
    monkeypatch.setattr(graph, "_run_child", found)
    return found


def config(stages: dict[str, Any] | None = None, **root: Any) -> DictConfig:
    cfg = task_config(compose("pipeline", ["pipeline=quickstart"]))
    cfg.pipeline = {"stages": STAGES if stages is None else stages}
    return OmegaConf.merge(cfg, root)  # type: ignore[return-value]


def go(cfg: DictConfig) -> None:
    run(cfg, Path(cfg.paths.run_dir))


def changed(stage: str, override: str) -> dict[str, Any]:
    return STAGES | {stage: STAGES[stage] | {"overrides": [*STAGES[stage]["overrides"], override]}}


class TestGraph:
    def test_order_follows_references_and_needs(self) -> None:
        shuffled = {name: STAGES[name] for name in ("report", "dpo", "sft")} | {
            "x": {"verb": "train", "needs": ["dpo"]}
        }
        order = list(read_stages(config(shuffled), Path("p")))
        assert order.index("sft") < order.index("dpo") < min(order.index("report"), order.index("x"))

    def test_unknown_stage_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"pipeline\.stages\.dpo: got 'stf', .* did you mean 'sft'\?"):
            read_stages(config(changed("dpo", "objective=stage://stf/model")), Path("p"))

    def test_circle(self) -> None:
        with pytest.raises(ConfigError, match="expected stages that do not need one another"):
            read_stages(config(changed("sft", "objective=stage://dpo/model")), Path("p"))

    def test_selection(self) -> None:
        stages = read_stages(config(), Path("p"))
        assert [stage.name for stage in select(stages, only=None, until="dpo")] == ["sft", "dpo"]
        assert [stage.name for stage in select(stages, only=None, until=None)] == ["sft", "dpo", "report"]
        assert [stage.name for stage in select(stages, only="sft", until=None)] == ["sft"]
        with pytest.raises(ConfigError, match=r"only: got 'dpo', expected stage 'sft', .* Use until=dpo"):
            select(stages, only="dpo", until=None)
        with pytest.raises(ConfigError, match=r"until: got 'dop', .* did you mean 'dpo'\?"):
            select(stages, only=None, until="dop")
        with pytest.raises(ConfigError, match="Give one of the two"):
            select(stages, only="sft", until="dpo")

    @pytest.mark.parametrize(
        ("stage", "message"),
        [
            ({"verb": "trian"}, r"pipeline\.stages\.a\.verb: got 'trian', expected 'train', 'evaluate', "),
            ({"verb": "train", "override": []}, r"stages\.a\.override: got \[\], .* did you mean .*\.overrides'\?"),
            ({"overrides": []}, r"pipeline\.stages\.a\.verb: got 'nothing', expected a value"),
            ({"verb": "train", "overrides": [1]}, r"stages\.a\.overrides: got \[1\], expected a list \(each a text\)"),
            ("train", r"pipeline\.stages\.a: got 'train', expected a mapping"),
        ],
    )
    def test_file_is_checked(self, stage: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            validate(config({"a": stage}), "pipeline")


class TestRun:
    def test_artefacts_are_handed_over_by_path(self, children: Children, capsys: pytest.CaptureFixture[str]) -> None:
        go(config())
        assert children.ran == ["sft", "dpo", "report"]
        root = Path("runs/pipeline/quickstart")
        assert f"model.path='{root}/sft/model'" in children.arguments["dpo"]
        assert f"paths.run_dir='{root}/dpo'" in children.arguments["dpo"]
        assert children.arguments["report"] == [
            str(root / "sft"),
            str(root / "dpo"),
            "--output",
            str(root / "report" / "report.html"),
        ]
        assert capsys.readouterr().out == f"{root / 'report' / 'report.html'}\n"

    def test_finished_stages_are_skipped_and_said_to_be(
        self, children: Children, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        go(config())
        children.ran.clear()
        caplog.clear()
        capsys.readouterr()
        go(config())
        assert children.ran == []
        assert [record.message.split(" (")[0] for record in caplog.records] == [
            f"stage {name}: finished before, nothing to do" for name in STAGES
        ]
        assert capsys.readouterr().out.endswith("report.html\n")

    def test_changed_stage_and_what_hangs_on_it_run_again(self, children: Children) -> None:
        go(config())
        children.ran.clear()
        children.content = "other weights"
        go(config(changed("dpo", "optim.lr=1e-4")))
        assert children.ran == ["dpo", "report"]
        previous = Path("runs/pipeline/quickstart/dpo.previous/model/w.bin")
        assert previous.read_text() == "weights"

    def test_equal_artefact_changes_nothing_behind_it(self, children: Children) -> None:
        go(config())
        children.ran.clear()
        go(config(changed("sft", "optim.lr=1e-4")))
        # The report looks at the whole run, dpo at the weights alone.
        assert children.ran == ["sft", "report"]

    def test_other_artefact_runs_what_is_behind_it(self, children: Children) -> None:
        go(config())
        children.ran.clear()
        children.content = "other weights"
        go(config(changed("sft", "optim.lr=1e-4")))
        assert children.ran == ["sft", "dpo", "report"]

    @pytest.mark.parametrize("override", ["logger=tensorboard", "paths.cache=elsewhere"])
    def test_how_a_run_is_watched_is_not_what_it_is(self, children: Children, override: str) -> None:
        go(config())
        children.ran.clear()
        go(config(changed("dpo", override)))
        assert children.ran == []

    def test_edited_yaml_is_a_change(self, children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
        go(config())
        children.ran.clear()
        original = graph.compose

        def edited(verb: str, overrides: list[str]) -> DictConfig:
            return original(verb, [*overrides, "optim.eps=1e-6"])

        monkeypatch.setattr(graph, "compose", edited)
        go(config())
        assert children.ran[:2] == ["sft", "dpo"]

    def test_lost_artefact_is_made_again(self, children: Children) -> None:
        go(config())
        children.ran.clear()
        (Path("runs/pipeline/quickstart/sft/model/w.bin")).unlink()
        (Path("runs/pipeline/quickstart/sft/model")).rmdir()
        go(config())
        assert children.ran == ["sft"]

    def test_first_failure_stops_and_is_named(self, children: Children) -> None:
        children.codes["sft"] = 1
        with pytest.raises(StageFailed, match=r"stage 'sft' \(align train\) failed with exit code 1"):
            go(config())
        assert children.ran == ["sft"]

    def test_failure_names_the_log(self, children: Children) -> None:
        children.codes["sft"] = 1
        Path("runs/pipeline/quickstart/sft").mkdir(parents=True)
        Path("runs/pipeline/quickstart/sft/error.log").write_text("Traceback")
        with pytest.raises(StageFailed, match=r"its log: runs/pipeline/quickstart/sft/error\.log"):
            go(config())

    def test_users_fault_stays_one(self, children: Children) -> None:
        children.codes["sft"] = 2
        with pytest.raises(UserError, match="stage 'sft'"):
            go(config())

    @pytest.mark.parametrize("code", [143, -signal.SIGTERM])
    def test_terminated_stage_ends_the_pipeline_alike(self, children: Children, code: int) -> None:
        children.codes["sft"] = code
        with pytest.raises(SystemExit) as stop:
            go(config())
        assert stop.value.code == 143

    def test_goes_on_where_it_stopped(self, children: Children) -> None:
        children.codes["dpo"] = 1
        with pytest.raises(StageFailed):
            go(config())
        del children.codes["dpo"]
        children.ran.clear()
        go(config())
        assert children.ran == ["dpo", "report"]
        assert "resume='runs/pipeline/quickstart/dpo'" in children.arguments["dpo"]

    def test_never_goes_on_from_another_configuration(self, children: Children) -> None:
        children.codes["dpo"] = 1
        with pytest.raises(StageFailed):
            go(config())
        del children.codes["dpo"]
        go(config(changed("dpo", "optim.lr=1e-4")))
        assert not any(argument.startswith("resume=") for argument in children.arguments["dpo"])

    def test_only_and_until(self, children: Children) -> None:
        go(config(until="dpo"))
        assert children.ran == ["sft", "dpo"]
        go(config(only="report"))
        assert children.ran == ["sft", "dpo", "report"]

    def test_common_overrides_reach_every_stage_but_the_report(self, children: Children) -> None:
        go(config(common=["seed=9"]))
        assert ["seed=9" in children.arguments[name] for name in STAGES] == [True, True, False]

    def test_wrong_last_stage_starts_none(self, children: Children) -> None:
        with pytest.raises(UserError, match=r"pipeline\.stages\.dpo: method\.beta: got -1"):
            go(config(changed("dpo", "method.beta=-1")))
        with pytest.raises(UserError, match=r"pipeline\.stages\.dpo: method\.bta: got '1'.* did you mean"):
            go(config(changed("dpo", "method.bta=1")))
        assert children.ran == []

    def test_folder_with_signs_of_hydras_grammar(self, children: Children) -> None:
        runs = "runs, 'quoted' a=b"
        cfg = task_config(compose("pipeline", ["pipeline=quickstart", f"paths.runs={graph.quote(runs)}"]))
        cfg.pipeline = {"stages": STAGES}
        go(cfg)
        (override,) = [text for text in children.arguments["dpo"] if text.startswith("model.path=")]
        assert task_config(compose("train", [override])).model.path == f"{runs}/pipeline/quickstart/sft/model"


class TestArtifact:
    def test_is_made_once(self, children: Children) -> None:
        first = resolve_artifact("pipeline:quickstart/sft", runs="runs", cache="cache")
        assert (first, children.ran) == (Path("runs/pipeline/quickstart/sft/model"), ["sft"])
        assert resolve_artifact("pipeline:quickstart/sft/model", runs="runs", cache="cache") == first
        assert children.ran == ["sft"]

    def test_every_value_of_a_configuration(self, children: Children) -> None:
        cfg = OmegaConf.create(
            {
                "paths": {"runs": "runs", "cache": "cache"},
                "model": {"path": "pipeline:quickstart/sft"},
                "l": ["pipeline"],
            }
        )
        resolved = resolve_artifacts(cfg)
        assert resolved.model.path == "runs/pipeline/quickstart/sft/model"
        assert resolved.l == ["pipeline"]
        assert cfg.model.path == "pipeline:quickstart/sft"

    @pytest.mark.parametrize(
        ("reference", "message"),
        [
            ("pipeline:quickstrt/sft", r"pipeline: got 'quickstrt', expected one of .*quickstart"),
            ("pipeline:quickstart/stf", r"until: got 'stf', .* did you mean 'sft'"),
            ("pipeline:quickstart/sft/modle", r"expected an artefact of this stage: model"),
            ("pipeline:quickstart", r"write pipeline:NAME/STAGE"),
        ],
    )
    def test_wrong_name(self, children: Children, reference: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            resolve_artifact(reference, runs="runs", cache="cache")

    def test_stage_cannot_wait_for_its_own_pipeline(self, children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALIGNMENT_PIPELINE", "quickstart")
        with pytest.raises(UserError, match="stage://sft/model"):
            resolve_artifact("pipeline:quickstart/sft", runs="runs", cache="cache")

    def test_of_two_processes_one_makes_it(self, tmp_path: Path) -> None:
        context = multiprocessing.get_context("fork")
        workers = [context.Process(target=_resolve_slowly, args=(tmp_path,)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert [worker.exitcode for worker in workers] == [0, 0]
        assert (tmp_path / "made").read_text() == "x"


def _resolve_slowly(folder: Path) -> None:
    child = Children()

    def slow(stage: Stage, arguments: list[str], name: str) -> int:
        time.sleep(0.5)
        with (folder / "made").open("a") as file:
            file.write("x")
        return child(stage, arguments, name)

    graph._run_child = slow
    resolve_artifact("pipeline:quickstart/sft", runs=str(folder / "runs"), cache="cache")


@pytest.fixture
def fake_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a small program in the place of ``align`` in real child processes."""

    def put(body: str) -> None:
        (tmp_path / "fake_align.py").write_text(body)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(graph, "CLI_MODULE", "fake_align")

    return put


def stage(tmp_path: Path, verb: str = "train") -> Stage:
    return Stage("a", verb, (), (), tmp_path / "a")


def test_child_writes_to_this_terminal(
    fake_program: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake_program("import sys, os; print(*sys.argv[1:], os.environ['ALIGNMENT_PIPELINE']); sys.exit(7)")
    assert graph._run_child(stage(tmp_path), ["x=1"], "p") == 7
    assert capfd.readouterr().out == "train x=1 p\n"


def test_sigterm_is_passed_on(tmp_path: Path) -> None:
    """The pipeline's process gets the signal; the stage has the time to save."""
    (tmp_path / "fake_align.py").write_text("""
import signal, sys, time, pathlib
def stop(*_):
    time.sleep(0.3); pathlib.Path("saved").touch(); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("here", flush=True)
time.sleep(60)
""")
    code = """
import signal, sys
from pathlib import Path
from alignment.cli.main import _on_sigterm
from alignment.pipeline import graph
from alignment.pipeline.stages import Stage
graph.CLI_MODULE = "fake_align"
signal.signal(signal.SIGTERM, _on_sigterm)
graph._run_child(Stage("a", "train", (), (), Path("a")), [], "p")
"""
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", code]
    parent = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "here\n"
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(timeout=60) == 143
    assert (tmp_path / "saved").exists()
