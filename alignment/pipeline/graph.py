"""Runs a graph of stages: each one process, one verb, one run folder, skipped when it is finished already.

A stage's arguments name another stage's artefact as ``stage://STAGE/ARTEFACT`` and its run folder as
``stage://STAGE``; any configuration names the model that a pipeline's stage made as ``pipeline:NAME/STAGE``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

import alignment
from alignment.config.compose import compose, quote, task_config
from alignment.config.validate import validate
from alignment.utils.errors import ConfigError, UserError, nearest
from alignment.utils.files import hash_file, write_json_atomic
from alignment.utils.launch import CLI_MODULE

log = logging.getLogger(__name__)

STATE = "stage.json"
_REFERENCE = re.compile(r"stage://(?P<stage>[\w-]+)(?:/(?P<artefact>[\w-]+))?")
_ARTIFACT = re.compile(r"pipeline:(?P<pipeline>[\w-]+)/(?P<stage>[\w-]+)(?:/(?P<artefact>[\w-]+))?")
#: Tells a stage which pipeline it belongs to, so that it cannot wait for itself.
_ENVIRONMENT = "ALIGNMENT_PIPELINE"
#: Keys that change where results go and how a run is watched, and nothing about its results.
_NOT_IDENTITY = ("paths", "resume", "logger")


class StageFailed(RuntimeError):  # noqa: N818 - says what happened, as SystemExit and KeyboardInterrupt do
    """A stage ended with an error, which it has printed and written to its own log."""


@dataclass(frozen=True)
class Stage:
    """One node of the graph.

    Attributes:
        name: Its name.
        verb: The verb that it runs.
        arguments: Overrides, or the run folders of ``report``, with references to other stages.
        needs: Stages that must have finished.
        run_dir: Its run folder.
    """

    name: str
    verb: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    run_dir: Path

    @property
    def references(self) -> list[tuple[str, str | None]]:
        """The stages and artefacts that the arguments name."""
        return [(found["stage"], found["artefact"]) for text in self.arguments for found in _REFERENCE.finditer(text)]

    def state(self) -> dict[str, Any]:
        """Returns what is known of its last run; empty before the first."""
        path = self.run_dir / STATE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def artefact(self, name: str) -> Path:
        """Returns the path of something that it made.

        Raises:
            ConfigError: It made nothing of this name.
        """
        made: dict[str, Any] = self.state().get("artefacts", {})
        if name not in made:
            known = ", ".join(made) or "nothing"
            raise ConfigError(f"stage://{self.name}/{name}", got=name, expected=f"an artefact of this stage: {known}")
        return self.run_dir / made[name]["path"]


def run(cfg: DictConfig, run_dir: Path) -> None:
    """Runs a pipeline: every stage that is not finished, in order, until the first failure.

    Prints the path of each report at the end.

    Args:
        cfg: A composed configuration of the verb ``pipeline``.
        run_dir: Each stage has a folder of its own below.

    Raises:
        UserError: The graph, or a stage's configuration, cannot run.
        StageFailed: A stage failed.
    """
    stages = read_stages(cfg, run_dir)
    selected = select(stages, only=cfg.only, until=cfg.until)
    with _locked(run_dir):
        run_stages(stages, selected, settings=_settings(cfg), name=cfg.name)
    for stage in selected:
        if stage.verb == "report":
            print(stage.artefact("report"))


def resolve_artifact(reference: str, *, runs: str, cache: str) -> Path:
    """Returns the folder of a pipeline's artefact, and makes it first when it is not there.

    Of several processes that ask at once one runs the pipeline, and the others wait for it.

    Args:
        reference: ``pipeline:NAME/STAGE``, or ``pipeline:NAME/STAGE/ARTEFACT`` for another one than ``model``.
        runs: The folder of all runs (``paths.runs``).
        cache: The folder of all caches (``paths.cache``).

    Raises:
        UserError: There is no such pipeline, stage or artefact.
        StageFailed: The stage could not be made.
    """
    found = _ARTIFACT.fullmatch(reference)
    if found is None:
        raise UserError(f"'{reference}' names no artefact: write pipeline:NAME/STAGE")
    if os.environ.get(_ENVIRONMENT) == found["pipeline"]:
        raise UserError(
            f"'{reference}' is asked for by a stage of the pipeline '{found['pipeline']}' itself: "
            f"write stage://{found['stage']}/{found['artefact'] or 'model'} in its overrides"
        )
    overrides = [f"pipeline={found['pipeline']}", f"until={found['stage']}"]
    overrides += [f"paths.runs={quote(runs)}", f"paths.cache={quote(cache)}"]
    cfg = task_config(compose("pipeline", overrides))
    validate(cfg, "pipeline")
    run_dir = Path(cfg.paths.run_dir)
    stages = read_stages(cfg, run_dir)
    selected = select(stages, only=None, until=cfg.until)
    with _locked(run_dir):
        run_stages(stages, selected, settings=_settings(cfg), name=cfg.name)
    return selected[-1].artefact(found["artefact"] or "model")


def resolve_artifacts(cfg: DictConfig) -> DictConfig:
    """Returns a configuration in which every ``pipeline:NAME/STAGE`` has become a path."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    return OmegaConf.create(_with_paths(plain, runs=str(cfg.paths.runs), cache=str(cfg.paths.cache)))


def read_stages(cfg: DictConfig, run_dir: Path) -> dict[str, Stage]:
    """Reads the stages of a pipeline, in an order in which they can run.

    Raises:
        ConfigError: A stage needs one that is not there, or itself.
    """
    nodes: dict[str, Any] = OmegaConf.to_container(cfg.pipeline.stages, resolve=True)  # type: ignore[assignment]
    stages: dict[str, Stage] = {}
    for name, node in nodes.items():
        arguments = [*node.get("overrides", []), *(cfg.common if node["verb"] != "report" else [])]
        referred = [found["stage"] for text in arguments for found in _REFERENCE.finditer(text)]
        needs = tuple(dict.fromkeys([*node.get("needs", []), *referred]))
        for other in needs:
            if other not in nodes:
                key = f"pipeline.stages.{name}"
                raise ConfigError(key, got=other, expected=f"one of {', '.join(nodes)}", hint=nearest(other, nodes))
        stages[name] = Stage(name, node["verb"], tuple(arguments), needs, run_dir / name)
    try:
        order = list(TopologicalSorter({name: stage.needs for name, stage in stages.items()}).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise ConfigError("pipeline.stages", got=circle, expected="stages that do not need one another") from error
    return {name: stages[name] for name in order}


def select(stages: Mapping[str, Stage], *, only: str | None, until: str | None) -> list[Stage]:
    """Chooses what to run, in order.

    Args:
        stages: All stages, in order.
        only: A single stage; what it needs must be finished.
        until: A stage, and all that it needs; it comes last.

    Raises:
        ConfigError: There is no such stage, or what it needs is missing.
    """
    for key, name in (("only", only), ("until", until)):
        if name is not None and name not in stages:
            raise ConfigError(key, got=name, expected=f"one of {', '.join(stages)}", hint=nearest(name, stages))
    if only is not None and until is not None:
        raise ConfigError("only", got=only, expected=f"null with until={until}", hint="Give one of the two")
    if only is not None:
        for name in stages[only].needs:
            if stages[name].state().get("status") != "finished":
                hint = f"Use until={only}"
                raise ConfigError("only", got=only, expected=f"stage '{name}', which it needs, finished", hint=hint)
        return [stages[only]]
    if until is None:
        return list(stages.values())
    wanted: set[str] = set()
    queue = [until]
    while queue:
        name = queue.pop()
        queue += stages[name].needs if name not in wanted else ()
        wanted.add(name)
    return [stage for name, stage in stages.items() if name in wanted and name != until] + [stages[until]]


def run_stages(stages: Mapping[str, Stage], selected: Sequence[Stage], *, settings: list[str], name: str) -> None:
    """Runs what is not finished; see :func:`run`.

    Args:
        stages: All stages, by name.
        selected: The ones to run, in order.
        settings: Overrides that every stage but ``report`` receives: the folders.
        name: The pipeline's name.
    """
    configs = {stage.name: _stage_config(stage, settings) for stage in selected}
    waiting = [stage for stage in selected if not _is_finished(stage, stages, configs[stage.name])]
    if len(waiting) > 1:
        # A single one checks itself, at once.
        for stage in waiting:
            _validate_stage(stage, configs[stage.name])
    for stage in selected:
        if _is_finished(stage, stages, configs[stage.name]):
            log.info("stage %s: finished before, nothing to do (%s)", stage.name, stage.run_dir)
        else:
            _run_stage(stage, stages, settings, configs[stage.name], name)


def stage_hash(stage: Stage, stages: Mapping[str, Stage], config: DictConfig | None) -> str:
    """Names what a stage would do: its configuration, its inputs by content, and the version of this package.

    Args:
        stage: The stage.
        stages: All stages, by name.
        config: What its overrides compose to; ``None`` for ``report``.
    """
    inputs: dict[str, Any] = {name: stages[name].state().get("hash") for name in stage.needs}
    for other, artefact in stage.references:
        if artefact is not None:
            # By content: a stage that ran again and made the same thing changes nothing behind it.
            inputs.pop(other, None)
            made = stages[other].state().get("artefacts", {})
            inputs[f"{other}/{artefact}"] = made.get(artefact, {}).get("sha256")
    plain = {} if config is None else OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    identity = {
        "verb": stage.verb,
        "config": {key: value for key, value in plain.items() if key not in _NOT_IDENTITY},
        "arguments": stage.arguments if config is None else [],
        "inputs": inputs,
        "version": alignment.__version__,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _settings(cfg: DictConfig) -> list[str]:
    return [f"paths.runs={quote(cfg.paths.runs)}", f"paths.cache={quote(cfg.paths.cache)}"]


def _with_paths(value: Any, *, runs: str, cache: str) -> Any:
    if isinstance(value, dict):
        return {key: _with_paths(entry, runs=runs, cache=cache) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_paths(entry, runs=runs, cache=cache) for entry in value]
    if isinstance(value, str) and _ARTIFACT.fullmatch(value):
        return str(resolve_artifact(value, runs=runs, cache=cache))
    return value


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Holds a pipeline's lock, and says so when another process has it."""
    lock = FileLock(run_dir.with_name(f".{run_dir.name}.lock"))
    lock_path = Path(lock.lock_file)
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process runs the pipeline in %s: waiting for it", run_dir)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _stage_config(stage: Stage, settings: list[str]) -> DictConfig | None:
    """Composes a stage, with the references to other stages left as they are."""
    if stage.verb == "report":
        return None
    try:
        return task_config(compose(stage.verb, _hydra_arguments(stage, settings, {})))
    except UserError as error:
        raise UserError(f"pipeline.stages.{stage.name}: {error}") from error


def _validate_stage(stage: Stage, config: DictConfig | None) -> None:
    if config is None:
        return
    try:
        validate(config, stage.verb)
    except UserError as error:
        raise UserError(f"pipeline.stages.{stage.name}: {error}") from error


def _hydra_arguments(stage: Stage, settings: list[str], paths: Mapping[str, Path]) -> list[str]:
    """Returns the overrides of a stage, each reference replaced by a quoted path as far as ``paths`` has it."""
    replaced = [
        _REFERENCE.sub(lambda found: quote(str(paths.get(found[0], found[0]))), text) for text in stage.arguments
    ]
    return [*replaced, *settings, f"paths.run_dir={quote(str(stage.run_dir))}"]


def _is_finished(stage: Stage, stages: Mapping[str, Stage], config: DictConfig | None) -> bool:
    state = stage.state()
    if state.get("status") != "finished" or state.get("hash") != stage_hash(stage, stages, config):
        return False
    return all((stage.run_dir / made["path"]).exists() for made in state["artefacts"].values())


def _run_stage(
    stage: Stage, stages: Mapping[str, Stage], settings: list[str], config: DictConfig | None, name: str
) -> None:
    key = stage_hash(stage, stages, config)
    state = stage.state()
    if state and state.get("hash") != key:
        _set_aside(stage)
        state = {}
    paths = {_reference(*reference): _resolve(stages, *reference) for reference in stage.references}
    if stage.verb == "report":
        replaced = [_REFERENCE.sub(lambda found: str(paths[found[0]]), text) for text in stage.arguments]
        arguments = [*replaced, "--output", str(stage.run_dir / "report.html")]
    else:
        arguments = _hydra_arguments(stage, settings, paths)
        if stage.verb == "train" and (stage.run_dir / "checkpoints" / "latest").exists():
            arguments.append(f"resume={quote(str(stage.run_dir))}")
    began = time.monotonic()
    write_json_atomic(stage.run_dir / STATE, {"hash": key, "status": "running", "artefacts": {}})
    log.info("stage %s: align %s %s", stage.name, stage.verb, " ".join(stage.arguments))
    code = _run_child(stage, arguments, name)
    if code != 0:
        _fail(stage, key, code)
    artefacts = {entry: _describe(stage.run_dir, path) for entry, path in _made(stage).items()}
    write_json_atomic(stage.run_dir / STATE, {"hash": key, "status": "finished", "artefacts": artefacts})
    log.info("stage %s: done in %.0f s", stage.name, time.monotonic() - began)


def _run_child(stage: Stage, arguments: list[str], name: str) -> int:
    """Runs a stage as a process that writes to this one's terminal, and passes a SIGTERM on to it."""
    command = [sys.executable, "-m", CLI_MODULE, stage.verb, *arguments]
    # The pipeline prints a report's path itself, at the end.
    stdout = subprocess.DEVNULL if stage.verb == "report" else None
    environment = os.environ | {_ENVIRONMENT: name}
    child = subprocess.Popen(command, stdout=stdout, env=environment)  # noqa: S603 - our own program
    try:
        return child.wait()
    except KeyboardInterrupt:
        # Ctrl-C reached the child as well: it saves its checkpoint.
        child.wait()
        raise
    except BaseException:
        child.terminate()
        child.wait()
        raise


def _fail(stage: Stage, key: str, code: int) -> None:
    write_json_atomic(stage.run_dir / STATE, {"hash": key, "status": "failed", "artefacts": {}})
    logs = [path for path in (stage.run_dir / "error.log", stage.run_dir / "train.log") if path.exists()]
    where = f"; its log: {logs[0]}" if logs else ""
    if code in (143, -15, 130, -2):
        raise SystemExit(143 if code in (143, -15) else 130)
    message = f"stage '{stage.name}' (align {stage.verb}) failed with exit code {code}{where}"
    raise UserError(message) if code == 2 else StageFailed(message)


def _set_aside(stage: Stage) -> None:
    """Moves a folder that was made from another configuration out of the way; the one before it goes."""
    previous = stage.run_dir.with_name(f"{stage.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    stage.run_dir.rename(previous)
    log.info("stage %s: its configuration or its inputs have changed; what it made before is in %s", stage.name, previous)


def _reference(stage: str, artefact: str | None) -> str:
    return f"stage://{stage}" if artefact is None else f"stage://{stage}/{artefact}"


def _resolve(stages: Mapping[str, Stage], stage: str, artefact: str | None) -> Path:
    return stages[stage].run_dir if artefact is None else stages[stage].artefact(artefact)


def _made(stage: Stage) -> dict[str, str]:
    if stage.verb == "report":
        return {"report": "report.html"}
    manifest = json.loads((stage.run_dir / "manifest.json").read_text(encoding="utf-8"))
    return manifest.get("artefacts") or {}


def _describe(run_dir: Path, relative: str) -> dict[str, str]:
    path = run_dir / relative
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for item in files:
        digest.update(f"{item.relative_to(run_dir)} {hash_file(item)}\n".encode())
    return {"path": relative, "sha256": digest.hexdigest()}
