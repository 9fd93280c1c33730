"""One job: a composed configuration handed to its verb, and what is left behind when that fails."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignment.utils.errors import UserError
from alignment.utils.files import write_json_atomic, write_text_atomic
from alignment.utils.redact import redact_file, redact_override, redact_text

#: Where each verb's work is done; imported inside the job, because it imports torch.
WORK = {
    "train": "alignment.pipeline.train",
    "evaluate": "alignment.pipeline.evaluate",
    "generate": "alignment.pipeline.generate",
    "label": "alignment.pipeline.label",
    "pipeline": "alignment.pipeline.graph",
}
DONE, FAILED, USAGE = 0, 1, 2


def full_errors() -> bool:
    """Whether the user asked for tracebacks, in the way that Hydra users know."""
    return os.environ.get("HYDRA_FULL_ERROR", "") == "1"


def report_user_error(error: UserError) -> int:
    """Prints what the user can put right, and returns the exit code."""
    if full_errors():
        traceback.print_exception(error)
    else:
        print(f"error: {redact_text(str(error))}", file=sys.stderr)
    return USAGE


@dataclass
class Job:
    """What Hydra calls: it never raises, so that one job of a sweep cannot stop the others.

    Attributes:
        verb: Which work is done.
        command: The command line that the user typed, for the manifest; Hydra sees another one.
        exit_code: Of the job that ran in this process.
    """

    verb: str
    command: tuple[str, ...]
    exit_code: int = field(default=DONE, init=False)

    def __call__(self, cfg: DictConfig) -> float:
        """Runs the job that Hydra has composed, in the folder that Hydra has made.

        Returns:
            The run's objective, for sweepers that optimise; not a number without one, and after a failure.
        """
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        run_dir = Path(hydra.runtime.output_dir)
        overrides = [redact_override(override) for override in hydra.overrides.task]
        redact_file(Path(hydra.sweep.dir) / "multirun.yaml")
        sys.argv = [redact_override(argument) for argument in self.command]
        self.exit_code, objective = execute(self.verb, cfg, run_dir, overrides)
        return objective


def execute(verb: str, cfg: DictConfig, run_dir: Path, overrides: list[str]) -> tuple[int, float]:
    """Resolves, validates and runs one job.

    Returns:
        The exit code and the objective.
    """
    try:
        cfg = _prepared(verb, cfg, run_dir)
        objective = _call(verb, cfg, run_dir, overrides)
    except Exception as error:
        log = _leave_behind(_run_dir(cfg), verb, overrides, error)
        user_error = _user_error(error)
        if user_error is not None:
            return report_user_error(user_error), float("nan")
        if full_errors():
            traceback.print_exception(error)
        print(f"align {verb} failed: {_summary(error)}\nThe traceback is in {log}", file=sys.stderr)
        return FAILED, float("nan")
    _forget_failure(_run_dir(cfg))
    return DONE, float("nan") if objective is None else objective


def _prepared(verb: str, cfg: DictConfig, run_dir: Path) -> DictConfig:
    from hydra.core.hydra_config import HydraConfig

    from alignment.config.compose import resolved
    from alignment.config.validate import validate

    cfg.paths.run_dir = str(run_dir)
    cfg = resolved(cfg)
    # Lightning asks Hydra's singleton how to start further ranks, and would start this whole command again.
    HydraConfig.instance().cfg = None
    validate(cfg, verb)
    return cfg


def join(run_dir: Path) -> int:
    """Runs the job of a process that joins a distributed run: its configuration is the one that was saved.

    Raises:
        UserError: There is no run in the folder.
    """
    run_dir = run_dir.resolve()
    saved = run_dir / "config.yaml"
    if not saved.is_file():
        raise UserError(f"--job: '{saved}' is not there; it names the folder of a run that has begun")
    cfg = OmegaConf.load(saved)
    assert isinstance(cfg, DictConfig)
    manifest = _read_manifest(run_dir)
    return execute(str(manifest.get("verb", "train")), cfg, run_dir, list(manifest.get("overrides", [])))[0]


def _call(verb: str, cfg: DictConfig, run_dir: Path, overrides: list[str]) -> float | None:
    run: Callable[..., float | None] = importlib.import_module(WORK[verb]).run
    return run(cfg, run_dir) if verb == "pipeline" else run(cfg, run_dir, overrides)


def _run_dir(cfg: DictConfig) -> Path:
    """Returns where the job's results are: a run that goes on with another one has noted that one's folder."""
    return Path(cfg.paths.run_dir)


def _leave_behind(run_dir: Path, verb: str, overrides: list[str], error: Exception) -> Path:
    """Writes the traceback, and a manifest that says that the job failed.

    Other ranks than the first write their own traceback and leave the manifest alone.
    """
    log = run_dir / _error_log()
    write_text_atomic(log, redact_text("".join(traceback.format_exception(error))))
    if _rank() == 0:
        values = {"verb": verb, "overrides": overrides, "started": _now()} | _read_manifest(run_dir)
        failed = {"status": "failed", "ended": values.get("ended") or _now(), "error": _summary(error)}
        write_json_atomic(run_dir / "manifest.json", values | failed)
    return log


def _forget_failure(run_dir: Path) -> None:
    """Takes back what an earlier failure of the same job has left behind."""
    (run_dir / _error_log()).unlink(missing_ok=True)
    values = _read_manifest(run_dir)
    if _rank() == 0 and values.get("status") == "failed":
        # A pipeline writes no manifest of its own: this one is the failure's.
        values |= {"status": "finished", "ended": _now(), "error": None}
        write_json_atomic(run_dir / "manifest.json", values)


def _error_log() -> str:
    return "error.log" if _rank() == 0 else f"error.rank{_rank()}.log"


def _rank() -> int:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def _user_error(error: BaseException | None) -> UserError | None:
    """Returns what the user can put right: the error itself, or what Hydra wrapped when it built a component."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def _summary(error: Exception) -> str:
    return redact_text("".join(traceback.format_exception_only(error)).strip())


def _read_manifest(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "manifest.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
