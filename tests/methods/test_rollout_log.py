"""Phases of an online step share its time out, and each has the speed of its own tokens."""

from __future__ import annotations

import pytest

from alignment.methods.rollout_log import RolloutLog


def budget(*, generated: float, trained: float, seconds: float) -> dict[str, float]:
    return {"tokens_generated": generated, "tokens_trained": trained, "seconds": seconds, "prompts": 1.0}


def test_phases_share_out_the_time_since_the_line_before():
    log = RolloutLog(is_first_rank=True)
    spent = {"generate": 2.0, "score": 0.5, "measure": 1.0}
    first = log.pop(seconds=spent, budget=budget(generated=100, trained=300, seconds=5.0))
    assert first == {
        "time/generate_seconds": 2.0,
        "time/score_seconds": 0.5,
        "time/measure_seconds": 1.0,
        "time/update_seconds": 1.5,
        "speed/generated_tokens_per_second": 50.0,
        "speed/trained_tokens_per_second": 200.0,
    }
    later = log.pop(seconds=spent, budget=budget(generated=100, trained=500, seconds=5.8))
    assert later["time/generate_seconds"] == 0.0
    assert later["time/update_seconds"] == pytest.approx(0.8)
    assert later["speed/trained_tokens_per_second"] == pytest.approx(250.0)
    assert "speed/generated_tokens_per_second" not in later


def test_a_resumed_run_counts_from_where_it_was_taken_up():
    log = RolloutLog(is_first_rank=True)
    log.load_state_dict({}, budget=budget(generated=1000, trained=5000, seconds=60.0))
    spent = {"generate": 1.0, "score": 0.0, "measure": 0.0}
    resumed = log.pop(seconds=spent, budget=budget(generated=1010, trained=5030, seconds=64.0))
    assert resumed["time/update_seconds"] == 3.0
    assert resumed["speed/generated_tokens_per_second"] == 10.0
    assert resumed["speed/trained_tokens_per_second"] == 10.0
