"""E12: ORPO in one stage, from fresh weights, beats fine-tuning on the chosen sides alone."""

from __future__ import annotations

import statistics

import pytest
from evidence import SEEDS, SMALL, Arm, at_least, schedule, table

RUN = (
    "model=world_init",
    *SMALL,
    *schedule("5e-3"),
    "data=world",
    "data.train.num_records=8000",
    "data.validation.num_records=200",
    "callbacks.fresh_samples.num_prompts=128",
    "callbacks.fresh_samples.start_model=reference",
    "export=null",
)


def win_rate(ours: Arm, theirs: Arm) -> float:
    """Returns how often our sample has the higher gold reward on the same prompt; a tie is half a win."""
    first, second = ours.rewards(), theirs.rewards()
    assert first.keys() == second.keys()
    return statistics.mean((first[key] > second[key]) + 0.5 * (first[key] == second[key]) for key in first)


@pytest.mark.hours
def test_orpo_beats_fine_tuning_on_the_chosen_sides(train_arm):
    def arms(name: str, *arm: str) -> list[Arm]:
        return [train_arm(f"e12_{name}", *arm, *RUN, f"data.train.seed={seed}", seed=seed) for seed in SEEDS]

    orpo = arms("orpo", "method=orpo", "method.odds_ratio_coefficient=1.0")
    sft = arms("sft", "method=sft")
    twice = arms("sft_twice", "method=sft", "trainer.max_epochs=2")
    by_updates = [win_rate(a, b) for a, b in zip(orpo, sft, strict=True)]
    by_tokens = [win_rate(a, b) for a, b in zip(orpo, twice, strict=True)]
    rewards = {
        f"gold reward, {name}": [arm.metrics["fresh/reward/total"] for arm in runs]
        for name, runs in (("ORPO", orpo), ("SFT", sft), ("SFT, two passes", twice))
    }
    table("win-rate of ORPO", {"against as many updates": by_updates, "against as many tokens": by_tokens, **rewards})
    assert at_least(by_updates) > 0.5
    assert at_least(by_tokens) > 0.5
