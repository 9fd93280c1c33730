"""The command in this process, with another function in the place of the training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

import alignment.pipeline.train as training
from alignment.cli.main import main

Align = Callable[..., int]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Hydra configures logging for the whole process."""
    root, lightning = logging.getLogger(), logging.getLogger("lightning.pytorch")
    before = [(logger, logger.level, list(logger.handlers), logger.propagate) for logger in (root, lightning)]
    yield
    for logger, level, handlers, propagate in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.fixture
def align(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Align:
    """Runs ``align`` in an empty folder and returns its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["align", *arguments])
        return main()

    return run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[DictConfig]:
    """Replaces the training: seed 2 fails, seed 3 is the user's fault, every other one finishes."""
    seen: list[DictConfig] = []

    def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> float:
        from alignment.utils.errors import UserError

        seen.append(cfg)
        if cfg.seed == 2:
            raise RuntimeError("the loss is not finite")
        if cfg.seed == 3:
            raise UserError("data.jsonl:17: no field 'chosen'")
        manifest: dict[str, Any] = {"verb": "train", "status": "finished", "overrides": overrides}
        manifest["metrics"] = {"val/loss/total": 0.1 * cfg.seed}
        (run_dir / "manifest.json").write_text(json.dumps(manifest))
        return 0.1 * cfg.seed

    monkeypatch.setattr(training, "run", run)
    return seen
