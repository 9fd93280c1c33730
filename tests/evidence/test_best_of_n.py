"""E8: in the world of sums a process reward model chooses better than a majority; a model of outcomes does not.

The arms are those of ``align pipeline chains``, a pipeline a seed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from evidence import SEEDS, Arm, at_least, table

from alignment.config.compose import compose, quote, task_config
from alignment.config.validate import validate
from alignment.pipeline.graph import run

#: How to choose -> the stage that does.
STAGES = {"process": "best_by_process", "vote": "vote", "outcome": "best_by_outcome"}
SIZES = (1, 4, 8, 16)
Curves = dict[str, dict[int, list[float]]]


def chosen(runs_folder: Path, seed: int) -> dict[str, Arm]:
    """Runs one pipeline as the command does; what is finished is read."""
    runs, name = runs_folder / "e8", f"chains_{seed}"
    arms = {way: Arm(runs / "pipeline" / name / stage) for way, stage in STAGES.items()}
    if not all(arm.is_finished for arm in arms.values()):
        paths = [f"paths.runs={quote(str(runs))}", f"paths.cache={quote(str(runs_folder / 'cache'))}"]
        cfg = task_config(compose("pipeline", ["pipeline=chains", f"name={name}", f"common=['seed={seed}']", *paths]))
        validate(cfg, "pipeline")
        run(cfg, Path(cfg.paths.run_dir))
    return arms


@pytest.fixture(scope="module")
def curves(runs_folder) -> Curves:
    """The share of right answers among the chosen: by way, by number of samples, for every seed."""
    arms = [chosen(runs_folder, seed) for seed in SEEDS]
    found = {
        way: {size: [arm[way].metrics[f"selection/reward_at_{size}"] for arm in arms] for size in SIZES}
        for way in STAGES
    }
    table("right", {f"{way}, n = {size}": values for way, curve in found.items() for size, values in curve.items()})
    return found


def lead(curves: Curves, first: str, second: str, size: int) -> float:
    """Returns how far the first is ahead of the second, less two standard errors over the seeds."""
    return at_least([a - b for a, b in zip(curves[first][size], curves[second][size], strict=True)])


@pytest.mark.hours
def test_all_choose_among_the_same_samples(curves):
    assert curves["process"][1] == pytest.approx(curves["vote"][1])
    assert curves["outcome"][1] == pytest.approx(curves["vote"][1])


@pytest.mark.hours
@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_process_reward_model_chooses_better_than_a_majority(curves, size):
    assert lead(curves, "process", "vote", size) > 0


@pytest.mark.hours
@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_process_reward_model_chooses_better_than_one_of_outcomes(curves, size):
    assert lead(curves, "process", "outcome", size) > 0


@pytest.mark.hours
@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.xfail(reason="docs/evidence.md: it ends below a single sample", strict=True)
def test_a_reward_model_of_outcomes_chooses_better_than_a_majority(curves, size):
    assert lead(curves, "outcome", "vote", size) > 0
