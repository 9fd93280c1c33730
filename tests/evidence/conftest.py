"""Starts and runs the arms; ``ALIGNMENT_EVIDENCE=FOLDER`` keeps them, and a finished one is read, not trained."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from evidence import SMALL, Arm

from alignment.data.store import content_hash

from runs import job, train


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory) -> Path:
    kept = os.environ.get("ALIGNMENT_EVIDENCE")
    return Path(kept) if kept else tmp_path_factory.mktemp("evidence")


@pytest.fixture(scope="session")
def train_arm(runs_folder) -> Callable[..., Arm]:
    def train_arm(name: str, *overrides: str, seed: int) -> Arm:
        folder = runs_folder / name / f"{seed}-{content_hash(overrides=overrides)[:8]}"
        arm = Arm(folder)
        if not arm.is_finished:
            train(job(runs_folder, "hardware.threads=1", f"seed={seed}", *overrides, small=False), folder)
        return arm

    return train_arm


@pytest.fixture(scope="session")
def start(train_arm) -> Arm:
    """A model that writes reviews of every kind, half of them not what was asked for."""
    return train_arm("start", "experiment=world_sft", *SMALL, "trainer.max_epochs=2", "optim.lr=5e-3", seed=1)
