"""Monitors of online methods speak when they should, and are silent otherwise."""

from __future__ import annotations

import json
from types import SimpleNamespace

import torch

from alignment.diagnostics.rollout_monitors import KLRunaway, ModeCollapse, RewardHacking, SamplerMismatch

ONLINE = {"train/advantage/used_groups": 1.0}


def look(monitor, step: int, metrics: dict[str, float]) -> None:
    values = {name: torch.tensor(value) for name, value in metrics.items()}
    trainer = SimpleNamespace(callback_metrics=values, global_step=step, is_global_zero=True, sanity_checking=False)
    monitor.on_train_batch_end(trainer, None, None, None, 0)


def steps(folder) -> list[int]:
    path = folder / "warnings.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def test_t18_a_mismatch_beyond_rounding_is_told_by_precision(tmp_path):
    for precision, limit in (("32-true", 1.02), ("bf16-mixed", 1.05)):
        monitor = SamplerMismatch(max_ratio=None, folder=tmp_path / precision)
        (tmp_path / precision).mkdir()
        monitor.on_train_start(SimpleNamespace(precision=precision), None)
        look(monitor, 1, {"train/policy/sampler_mismatch": limit - 0.001})
        assert steps(tmp_path / precision) == []
        look(monitor, 2, {"train/policy/sampler_mismatch": limit + 0.001})
        assert steps(tmp_path / precision) == [2]


def test_a_policy_far_away_is_told_once_each_time(tmp_path):
    monitor = KLRunaway(max_nats=50.0, folder=tmp_path)
    for step, nats in enumerate([1.0, 49.0, 51.0, 60.0, 40.0, 55.0]):
        look(monitor, step, {"train/kl/policy_reference_nats": nats})
    assert steps(tmp_path) == [2, 5]


def test_collapse_is_a_fall_of_entropy_or_of_diversity(tmp_path):
    for name in ("train/policy/entropy_nats", "fresh/diversity/distinct_2"):
        folder = tmp_path / name.replace("/", "_")
        folder.mkdir()
        monitor = ModeCollapse(min_entropy_share=0.2, min_distinct_share=0.5, min_unlike_share=0.5, folder=folder)
        look(monitor, 1, ONLINE | {name: 1.0})
        look(monitor, 2, ONLINE | {name: 0.6})
        assert steps(folder) == []
        look(monitor, 3, ONLINE | {name: 0.1})
        assert steps(folder) == [3]


def test_samples_that_become_alike_are_told_by_what_self_bleu_leaves(tmp_path):
    """From .2 to .6: half of what was unlike is gone. With .65 less than half is left."""
    monitor = ModeCollapse(min_entropy_share=0.2, min_distinct_share=0.5, min_unlike_share=0.5, folder=tmp_path)
    for step, value in ((1, 0.2), (2, 0.1), (3, 0.59)):
        look(monitor, step, ONLINE | {"fresh/diversity/self_bleu": value})
    assert steps(tmp_path) == []
    look(monitor, 4, ONLINE | {"fresh/diversity/self_bleu": 0.65})
    assert steps(tmp_path) == [4]
    assert "fresh/diversity/self_bleu has risen from 0.2 to 0.65" in (tmp_path / "warnings.jsonl").read_text()


def test_collapse_is_no_matter_of_offline_methods(tmp_path):
    monitor = ModeCollapse(min_entropy_share=0.2, min_distinct_share=0.5, min_unlike_share=0.5, folder=tmp_path)
    for entropy in (1.0, 0.01):
        look(monitor, 1, {"train/policy/entropy_nats": entropy})
    assert steps(tmp_path) == []


def hacking(folder) -> RewardHacking:
    return RewardHacking(guard="fresh/reward/total", max_fall=0.2, folder=folder)


def test_e9_the_alarm_comes_after_the_gold_reward_has_peaked(tmp_path):
    monitor = hacking(tmp_path)
    for step, (proxy, gold) in enumerate([(0.1, 0.1), (0.3, 0.3), (0.5, 0.5), (0.7, 0.48), (0.9, 0.3)]):
        look(monitor, step, {"train/reward/total": proxy, "fresh/reward/total": gold})
    assert steps(tmp_path) == [4]


def test_no_alarm_where_both_fall_or_both_rise(tmp_path):
    for sign in (1, -1):
        monitor = hacking(tmp_path)
        for step in range(6):
            value = 0.5 + sign * 0.05 * step
            look(monitor, step, {"train/reward/total": value, "fresh/reward/total": value})
    assert steps(tmp_path) == []


def test_a_resumed_run_remembers_the_peak(tmp_path):
    first, second = hacking(tmp_path), hacking(tmp_path)
    for step, (proxy, gold) in enumerate([(0.1, 0.1), (0.5, 0.5)]):
        look(first, step, {"train/reward/total": proxy, "fresh/reward/total": gold})
    second.load_state_dict(first.state_dict())
    look(second, 9, {"train/reward/total": 0.9, "fresh/reward/total": 0.2})
    assert steps(tmp_path) == [9]
