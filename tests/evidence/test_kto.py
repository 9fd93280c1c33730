"""E11: KTO keeps its reward when nine in ten of the thumbs up are missing and the rest weigh ten times more."""

from __future__ import annotations

import pytest
from evidence import SEEDS, at_least, schedule, table

RUN = (
    *schedule("4e-4"),
    "method=kto",
    "method.beta=0.1",
    "data=world_feedback",
    "data.train.num_records=6400",
    "data.validation.num_records=200",
    "trainer.max_epochs=-1",
    "trainer.max_steps=110",
    "callbacks.fresh_samples.num_prompts=128",
    "export=null",
)


@pytest.mark.hours
@pytest.mark.xfail(reason="docs/evidence.md: 94% of the reward are kept, and 69% of the gain", strict=True)
def test_kto_keeps_its_reward_without_most_thumbs_up(train_arm, start):
    def rewards(name: str, *arm: str) -> list[float]:
        runs = [
            train_arm(f"e11_{name}", *start.as_model, *RUN, *arm, f"data.train.seed={seed}", seed=seed)
            for seed in SEEDS
        ]
        return [run.metrics["fresh/reward/total"] for run in runs]

    full = rewards("full", "method.desirable_weight=1.33")
    few = rewards("few", "data.train.keep_desirable=0.1", "method.desirable_weight=13.3")
    first = start.metrics["fresh/reward/total"]
    kept = [b / a for a, b in zip(full, few, strict=True)]
    gains = [(b - first) / (a - first) for a, b in zip(full, few, strict=True)]
    table(f"gold reward; the start's is {first:.4f}", {"all": full, "a tenth": few, "kept": kept, "gain kept": gains})
    assert at_least(kept) >= 0.95
