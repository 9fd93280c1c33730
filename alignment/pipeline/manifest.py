"""The manifest: what a run was made from, what it cost and what came out, as one JSON file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import alignment
from alignment.utils.files import write_json_atomic

FILE = "manifest.json"
_PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "hydra-core",
    "omegaconf",
    "datasets",
    "peft",
    "wandb",
    "numpy",
    "tokenizers",
)
#: Keys that say where and how long, not what: two runs that differ in nothing else are the same run.
NOT_IDENTITY = ("paths", "resume", "logger", "callbacks")
_OF_THE_START = ("started", "command", "overrides")


class Manifest:
    """A run's manifest, rewritten whole each time something is known.

    Args:
        folder: The run's folder.
        values: What is known at the start.
        is_writer: False on all ranks but the first: they keep values and write nothing.
    """

    def __init__(self, folder: Path, values: dict[str, Any], *, is_writer: bool = True) -> None:
        self.path = folder / FILE
        self.values = values
        self._is_writer = is_writer
        self._began = time.perf_counter()
        self.update()

    def update(self, **values: Any) -> None:
        """Adds values and writes the file."""
        self.values |= values
        if self._is_writer:
            write_json_atomic(self.path, self.values)

    def end(self, status: str, *, error: str | None = None) -> None:
        """Notes how the run ended."""
        self.update(status=status, ended=_now(), seconds=round(time.perf_counter() - self._began, 3), error=error)


@contextmanager
def recorded(manifest: Manifest) -> Iterator[Manifest]:
    """Ends the manifest as ``finished``, ``interrupted`` (a signal) or ``failed``, whatever happens inside."""
    try:
        yield manifest
    except (SystemExit, KeyboardInterrupt) as stop:
        manifest.end("interrupted", error=f"stopped: {stop!r}")
        raise
    except BaseException as error:
        manifest.end("failed", error="".join(traceback.format_exception_only(error)).strip())
        raise
    else:
        manifest.end("finished")


def start_values(*, verb: str, cfg: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Returns what is known before anything is loaded."""
    return {
        "verb": verb,
        "name": str(cfg.name),
        "status": "running",
        "started": _now(),
        "ended": None,
        "seconds": None,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "overrides": overrides,
        "resumes": [],
        "config_hash": config_hash(cfg),
        "seed": cfg.get("seed"),
        "git": _git(),
        "versions": versions(),
        "metrics": {},
        "budget": {},
        "artefacts": {},
        "error": None,
    }


def resumed_values(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Returns a resumed run's first values: how it first began stays, and this start is added to ``resumes``.

    Args:
        folder: The run's folder, with the manifest of the process before.
        values: Of this start, from :func:`start_values`.
    """
    path = folder / FILE
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    first = {key: before[key] for key in _OF_THE_START if key in before}
    resumes = [*before.get("resumes", []), {key: values[key] for key in _OF_THE_START}]
    return values | first | {"resumes": resumes}


def config_hash(cfg: DictConfig) -> str:
    """Names a configuration by content, leaving out where its results go and how it is watched."""
    plain = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in NOT_IDENTITY])
    text = OmegaConf.to_yaml(plain, resolve=True, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Returns the versions of the packages whose behaviour a result depends on."""
    found = {"python": platform.python_version(), "alignment": alignment.__version__}
    return found | {name: importlib.metadata.version(name) for name in _PACKAGES}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git() -> dict[str, Any] | None:
    """Returns the commit of the package's own checkout, or ``None`` when it is installed from a wheel."""
    root = Path(alignment.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root)]
    sha = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603
    status = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=False)  # noqa: S603
    return {"sha": sha.stdout.strip(), "dirty": bool(status.stdout.strip())} if sha.returncode == 0 else None
