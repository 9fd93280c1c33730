"""Runs a graph of stages: each one process, one verb, one run folder, skipped when it is finished already.

Any configuration names the model that a pipeline's stage made as ``pipeline:NAME/STAGE``; see also
:mod:`alignment.pipeline.stages`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from alignment.config.compose import compose, quote, task_config
from alignment.config.validate import validate
from alignment.pipeline.stages import (
    STATE,
    Stage,
    fingerprint,
    is_finished,
    locate,
    read_stages,
    select,
    stage_hash,
    with_references,
)
from alignment.utils.errors import UserError
from alignment.utils.files import write_json_atomic
from alignment.utils.launch import CLI_MODULE

log = logging.getLogger(__name__)

_ARTIFACT = re.compile(r"pipeline:(?P<pipeline>[\w-]+)/(?P<stage>[\w-]+)(?:/(?P<artefact>[\w-]+))?")
#: Tells a stage which pipeline it belongs to, so that it cannot wait for itself.
_ENVIRONMENT = "ALIGNMENT_PIPELINE"
_OF_A_RANK = re.compile(r"(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)$|MASTER_(ADDR|PORT)$|TORCHELASTIC_|SLURM_")


class StageFailed(RuntimeError):  # noqa: N818 - says what happened, as SystemExit and KeyboardInterrupt do
    """A stage ended with an error, which it has printed and written to its own log."""


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
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    paths: dict[str, Any] = _with_paths(plain, runs=str(cfg.paths.runs), cache=str(cfg.paths.cache))
    return OmegaConf.create(paths)


def run_stages(stages: Mapping[str, Stage], selected: Sequence[Stage], *, settings: list[str], name: str) -> None:
    """Runs what is not finished; see :func:`run`.

    Args:
        stages: All stages, by name.
        selected: The ones to run, in order.
        settings: Overrides that every stage but ``report`` receives: the folders.
        name: The pipeline's name.
    """
    configs = {stage.name: _stage_config(stage, settings) for stage in selected}
    waiting = [stage for stage in selected if not is_finished(stage, stages, configs[stage.name])]
    if len(waiting) > 1:
        # A single one checks itself, at once.
        for stage in waiting:
            _validate_stage(stage, configs[stage.name])
    for stage in selected:
        if is_finished(stage, stages, configs[stage.name]):
            log.info("stage %s: finished before, nothing to do (%s)", stage.name, stage.run_dir)
        else:
            _run_stage(stage, stages, settings, configs[stage.name], name)


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
        return task_config(compose(stage.verb, _hydra_arguments(stage, settings, _as_written)))
    except UserError as error:
        raise UserError(f"pipeline.stages.{stage.name}: {error}") from error


def _validate_stage(stage: Stage, config: DictConfig | None) -> None:
    if config is None:
        return
    try:
        validate(config, stage.verb)
    except UserError as error:
        raise UserError(f"pipeline.stages.{stage.name}: {error}") from error


def _hydra_arguments(stage: Stage, settings: list[str], replace: Callable[[str, str | None], str]) -> list[str]:
    """Returns the overrides of a stage's process, each reference replaced by a quoted text."""
    replaced = [with_references(text, lambda *name: quote(replace(*name))) for text in stage.arguments]
    return [*replaced, *settings, f"paths.run_dir={quote(str(stage.run_dir))}"]


def _as_written(stage: str, artefact: str | None) -> str:
    return f"stage://{stage}" if artefact is None else f"stage://{stage}/{artefact}"


def _run_stage(
    stage: Stage, stages: Mapping[str, Stage], settings: list[str], config: DictConfig | None, name: str
) -> None:
    key = stage_hash(stage, stages, config)
    state = stage.state()
    if state and state.get("hash") != key:
        _set_aside(stage)
        state = {}
    arguments = _arguments(stage, stages, settings)
    began = time.monotonic()
    write_json_atomic(stage.run_dir / STATE, {"hash": key, "status": "running", "artefacts": {}})
    log.info("stage %s: align %s %s", stage.name, stage.verb, " ".join(stage.arguments))
    code = _run_child(stage, arguments, name)
    if code != 0:
        _fail(stage, key, code)
    artefacts = {entry: fingerprint(stage.run_dir, path) for entry, path in _made(stage).items()}
    write_json_atomic(stage.run_dir / STATE, {"hash": key, "status": "finished", "artefacts": artefacts})
    log.info("stage %s: done in %.0f s", stage.name, time.monotonic() - began)


def _arguments(stage: Stage, stages: Mapping[str, Stage], settings: list[str]) -> list[str]:
    def path(other: str, artefact: str | None) -> str:
        return str(locate(stages, other, artefact))

    if stage.verb == "report":
        return [*(with_references(text, path) for text in stage.arguments), "--output", str(_report(stage))]
    arguments = _hydra_arguments(stage, settings, path)
    if stage.verb == "train" and any((stage.run_dir / "checkpoints").glob("step-*")):
        arguments.append(f"resume={quote(str(stage.run_dir))}")
    return arguments


def _report(stage: Stage) -> Path:
    return stage.run_dir / "report.html"


def _run_child(stage: Stage, arguments: list[str], name: str) -> int:
    """Runs a stage as a process that writes to this one's terminal, and passes a SIGTERM on to it."""
    command = [sys.executable, "-m", CLI_MODULE, stage.verb, *arguments]
    # The pipeline prints a report's path itself, at the end.
    stdout = subprocess.DEVNULL if stage.verb == "report" else None
    # A stage is a run of its own: it does not belong to the ranks of the run that asked for it.
    environment = {key: value for key, value in os.environ.items() if not _OF_A_RANK.match(key)}
    environment[_ENVIRONMENT] = name
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
    log.info(
        "stage %s: its configuration or its inputs have changed; what it made before is in %s", stage.name, previous
    )


def _made(stage: Stage) -> dict[str, str]:
    if stage.verb == "report":
        return {"report": _report(stage).name}
    manifest = json.loads((stage.run_dir / "manifest.json").read_text(encoding="utf-8"))
    return manifest.get("artefacts") or {}
