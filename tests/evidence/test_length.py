"""E7: where length plays no part in the labels, SimPO without its length normalisation grows long all the same."""

from __future__ import annotations

import pytest
from evidence import SEEDS, at_least, at_most, schedule, table

RUN = (
    *schedule("1e-3"),
    "method=simpo",
    "data=world_length_neutral",
    "data.train.num_records=1600",
    "data.validation.num_records=200",
    "rollout.sampling.max_new_tokens=128",
    "callbacks.fresh_samples.num_prompts=128",
    "export=null",
)


@pytest.mark.hours
def test_length_runs_away_without_normalisation(train_arm, start):
    def tokens(name: str, *arm: str) -> list[float]:
        runs = [
            train_arm(f"e7_{name}", *start.as_model, *RUN, *arm, f"data.train.seed={seed}", seed=seed) for seed in SEEDS
        ]
        return [run.metrics["fresh/length/completion_tokens"] for run in runs]

    with_it = tokens("normalised")
    without = tokens("summed", "method.length_normalised=false")
    # Samples of the start are drawn alike in every arm.
    first = start.metrics["fresh/length/completion_tokens"]
    table(
        f"tokens of a fresh sample; the start's have {first:.2f}",
        {"normalised": with_it, "summed": without, "ratio": [b / a for a, b in zip(with_it, without, strict=True)]},
    )
    assert at_least([value / first for value in without]) > 1.2
    assert at_most([value / first for value in with_it]) < 1.1
    assert at_least([b - a for a, b in zip(with_it, without, strict=True)]) > 0
