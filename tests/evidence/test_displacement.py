"""E6: on pairs that are nearly the same DPO makes the chosen completions unlikely; DPOP does not; the monitor knows."""

from __future__ import annotations

import pytest
from evidence import SEEDS, at_least, at_most, schedule, table

RUN = (
    *schedule("1e-3"),
    "data.train.num_records=1600",
    "data.train.temperature=0",
    "data.validation.num_records=200",
    "data.validation.temperature=0",
    "method.beta=0.3",
    "trainer.max_epochs=2",
    "callbacks.fresh_samples=null",
    "export=null",
)
ARMS = {
    "near_dpo": ("method=dpo", "data=world_near_duplicates"),
    "near_dpop": ("method=dpo", "method/loss=dpop", "data=world_near_duplicates"),
    "distinct_dpo": ("method=dpo", "data=world"),
}


@pytest.mark.hours
def test_likelihood_displacement(train_arm, start):
    arms = {
        name: [
            train_arm(f"e6_{name}", *arm, *start.as_model, *RUN, f"data.train.seed={seed}", seed=seed) for seed in SEEDS
        ]
        for name, arm in ARMS.items()
    }

    def measured(metric: str) -> dict[str, list[float]]:
        return {name: [run.metrics[f"val/logps/{metric}"] for run in runs] for name, runs in arms.items()}

    shift, fell, mass = (measured(name) for name in ("chosen_shift_nats", "chosen_fell_share", "chosen_mass_ratio"))
    table("shift of the chosen log-prob, nats", shift)
    table("share of pairs whose chosen fell", fell)
    table("mass ratio of the chosen", mass)
    warned = {name: ["likelihood_displacement" in run.warnings for run in runs] for name, runs in arms.items()}
    print(warned)
    assert at_most(shift["near_dpo"]) < -0.5
    assert at_least(fell["near_dpo"]) >= 0.6
    assert at_least(shift["near_dpop"]) > -0.5
    assert at_most(fell["near_dpop"]) < 0.6
    assert warned == {"near_dpo": [True] * 5, "near_dpop": [False] * 5, "distinct_dpo": [False] * 5}
