"""Finding what a run should go on from."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignment.diagnostics.checkpoint import STATE, damage, latest_checkpoint
from alignment.pipeline.manifest import FILE, NOT_IDENTITY, config_hash
from alignment.utils.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resume:
    """Where to go on.

    Attributes:
        run_dir: The run's folder, which the resumed run shares.
        checkpoint: The trainer's state, or ``None`` to start from the beginning.
        finished: The run found is already complete.
    """

    run_dir: Path
    checkpoint: Path | None
    finished: bool = False


def find_resume(cfg: DictConfig, run_dir: Path) -> Resume:
    """Turns ``resume=`` into a folder and a checkpoint.

    ``null`` starts in ``run_dir``. ``auto`` goes on with the newest run under ``paths.runs`` that was made from the
    same configuration, from its newest usable checkpoint, and starts afresh when there is none. Anything else is
    a run's folder or one of its checkpoints.

    Raises:
        ConfigError: If ``resume`` names something that cannot be gone on from.
    """
    if cfg.resume is None:
        return Resume(run_dir, None)
    if cfg.resume == "auto":
        return _newest_equal_run(cfg, run_dir)
    path = Path(str(cfg.resume)).expanduser()
    if (path / STATE).exists():
        problem = damage(path)
        if problem is not None:
            raise ConfigError("resume", got=str(path), expected="an undamaged checkpoint", hint=problem)
        _say_what_changed(cfg, path.parent.parent)
        return Resume(path.parent.parent, path / STATE)
    if _is_complete(cfg, path):
        return Resume(path, None, finished=True)
    _say_what_changed(cfg, path)
    checkpoint = latest_checkpoint(path / "checkpoints")
    if checkpoint is None:
        raise ConfigError(
            "resume",
            got=str(path),
            expected="auto, a run's folder with checkpoints/step-..., or one of these checkpoints",
            hint="no such folder" if not path.exists() else "it holds no usable checkpoint",
        )
    return Resume(path, checkpoint / STATE)


def _say_what_changed(cfg: DictConfig, run_dir: Path) -> None:
    """Warns of every key whose value is not the one that the run began with: it may be meant, as more steps are."""
    saved = run_dir / "config.yaml"
    if not saved.is_file():
        return
    before, now = _leaves(OmegaConf.load(saved)), _leaves(cfg)
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if changed:
        shown = ", ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in changed[:8])
        log.warning("%s goes on with another configuration than it began with: %s", run_dir, shown)


def _leaves(cfg: Any) -> dict[str, Any]:
    """Returns a configuration's values by dotted key, without those that say where and how it is watched."""

    def walk(value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            return {key: value}
        return {name: leaf for inner, part in value.items() for name, leaf in walk(part, f"{key}.{inner}").items()}

    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    kept = {str(key): value for key, value in plain.items() if key not in NOT_IDENTITY}
    return {name.lstrip("."): leaf for name, leaf in walk(kept, "").items()}


def _is_complete(cfg: DictConfig, run_dir: Path) -> bool:
    """Whether a run has ended as this very configuration would end it: to go on would train nothing."""
    manifest = run_dir / FILE
    if not manifest.is_file():
        return False
    values = json.loads(manifest.read_text(encoding="utf-8"))
    return values.get("status") == "finished" and values.get("config_hash") == config_hash(cfg)


def _newest_equal_run(cfg: DictConfig, run_dir: Path) -> Resume:
    wanted = config_hash(cfg)
    runs: list[tuple[str, Path, bool]] = []
    for manifest in {*Path(cfg.paths.runs).expanduser().glob(f"**/{FILE}"), *run_dir.glob(FILE)}:
        try:
            values = json.loads(manifest.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError) as error:
            log.warning("%s cannot be read (%s): passing over it", manifest, error)
            continue
        if values.get("config_hash") == wanted and values.get("verb") == "train":
            runs.append((values["started"], manifest.parent, values["status"] == "finished"))
    # The run's own folder first (a pipeline's stage, a sweep's job), then the newest.
    runs.sort(key=lambda run: (run[1].resolve() == run_dir.resolve(), run[0]), reverse=True)
    for _, folder, finished in runs:
        checkpoint = latest_checkpoint(folder / "checkpoints")
        if finished:
            return Resume(folder, None, finished=True)
        if checkpoint is not None:
            return Resume(folder, checkpoint / STATE)
    return Resume(run_dir, None)
