"""E15: a reward model comes near the best that label noise allows, and its confidence is honest."""

from __future__ import annotations

import statistics

import pytest
from evidence import SEEDS, Arm, at_most, schedule, table

from alignment.data.worlds.reviews import gold_reward
from alignment.data.worlds.sources import WorldPreferences

RUN = (
    *schedule("2e-3"),
    "method=reward_model",
    "data=world",
    "data.train.num_records=20000",
    "data.validation.num_records=4000",
    "export=null",
)


def best_accuracy() -> float:
    """Returns how often the side with the higher true reward is chosen, on the held-out pairs; a tie is half."""
    pairs = WorldPreferences(num_records=4000, seed=0, split="held_out", temperature=0.1, pairs="independent").load()
    gaps = [
        gold_reward(row["messages"], row["chosen"]).total - gold_reward(row["messages"], row["rejected"]).total
        for row in pairs
    ]
    return statistics.mean((gap > 0) + 0.5 * (gap == 0) for gap in gaps)


def arms(train_arm, start) -> list[Arm]:
    return [train_arm("e15", *start.as_model, *RUN, f"data.train.seed={seed}", seed=seed) for seed in SEEDS]


@pytest.mark.hours
def test_reward_model_is_calibrated(train_arm, start):
    error = [run.metrics["val/calibration/expected_error"] for run in arms(train_arm, start)]
    table("calibration", {"expected calibration error": error})
    assert at_most(error) <= 0.03


@pytest.mark.hours
def test_reward_model_is_nearly_bayes_optimal(train_arm, start):
    accuracy = [run.metrics["val/reward/accuracy"] for run in arms(train_arm, start)]
    best = best_accuracy()
    table(f"best accuracy {best:.4f}", {"accuracy": accuracy})
    assert at_most([best - value for value in accuracy]) <= 0.02
