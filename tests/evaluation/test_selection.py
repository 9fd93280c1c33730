"""Choosing among samples: estimators by enumeration, votes by hand, and what is refused."""

from __future__ import annotations

import itertools
import math
from statistics import fmean

import numpy as np
import pytest

from alignment.evaluation.fresh import Sample
from alignment.evaluation.records import sample_row
from alignment.evaluation.selection import (
    BestOfN,
    MajorityVote,
    best_of_n_bound,
    best_of_subsets,
    selection_sizes,
    summarize_selection,
    winner,
)
from alignment.types import Rollout
from alignment.utils.errors import ConfigError, UserError

PATTERN = {"pattern": r"Answer: ([^\n]*)", "last_number": False}


def sample(
    reward: float, score: float | None = None, *, answer: str = "", prompt: str = "p", number: int = 0
) -> Sample:
    rollout = Rollout(prompt, "x", (1,), (5, 2), f"Answer: {answer}", "stop", number)
    return Sample(rollout, reward, {}, policy_sum_logp=-1.0, log_ratio_nats=None, score=score)


def vote(weights: str = "equal") -> MajorityVote:
    return MajorityVote(sizes=None, weights=weights, **PATTERN)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_best_of_subsets_is_the_mean_over_all_of_them(size):
    random = np.random.default_rng(size)
    rewards, scores = random.normal(size=7).tolist(), random.integers(0, 4, size=7).tolist()  # with ties
    every = itertools.combinations(range(7), size)
    expected = fmean(rewards[max(subset, key=lambda place: (scores[place], -place))] for subset in every)
    assert best_of_subsets(rewards, scores, size) == pytest.approx(expected, abs=1e-12)


def test_best_of_n_takes_the_best_and_the_first_of_equals():
    samples = [sample(1.0, 0.5), sample(2.0, 3.0), sample(4.0, 3.0), sample(8.0, -1.0)]
    assert BestOfN(sizes=None).expected_reward(samples, 4) == 2.0
    assert BestOfN(sizes=None).expected_reward(samples, 1) == fmean([1, 2, 4, 8])


def test_the_estimate_from_many_samples_is_that_of_drawing_n():
    # A population of five kinds of completion: best of 3 by brute force over 125 draws, against the estimate.
    kinds = [(0.0, 1.0), (1.0, 2.0), (0.0, 3.0), (1.0, 4.0), (0.5, 0.0)]
    exact = fmean(max(draw, key=lambda kind: kind[1])[0] for draw in itertools.product(kinds, repeat=3))
    random = np.random.default_rng(0)
    estimates = []
    for _ in range(4000):
        drawn = [kinds[place] for place in random.integers(0, 5, size=6)]
        estimates.append(best_of_subsets([kind[0] for kind in drawn], [kind[1] for kind in drawn], 3))
    assert np.mean(estimates) == pytest.approx(exact, abs=4 * np.std(estimates) / math.sqrt(4000))


@pytest.mark.parametrize(
    ("answers", "votes", "place"),
    [
        (["1", "2", "2"], [1, 1, 1], 1),
        (["1", "2", "2", "1"], [1, 1, 1, 1], 0),
        ([None, "2", "1", "1"], [9, 1, 1, 1], 2),
        ([None, None], [1, 1], 0),
        (["1", "2", "2"], [3, 1, 1], 0),
        (["1", "2"], [0, 0], 0),
    ],
)
def test_votes_by_hand(answers, votes, place):
    assert winner(answers, votes) == place


def test_votes_are_for_numbers_and_not_for_texts():
    samples = [sample(0.0, answer="7"), sample(1.0, answer="8"), sample(1.0, answer="8.0"), sample(0.0, answer="")]
    assert vote().expected_reward(samples, 4) == 1.0


@pytest.mark.parametrize(("weights", "reward"), [("equal", 0.0), ("score", 1.0), ("sigmoid", 0.0)])
def test_weights_change_who_wins(weights, reward):
    # Equal: two against one. Scores: 0.2 + 0.2 < 0.9. Sigmoids of them: .55 + .55 > .71.
    samples = [sample(1.0, 0.9, answer="1"), sample(0.0, 0.2, answer="2"), sample(0.0, 0.2, answer="2")]
    assert vote(weights).expected_reward(samples, 3) == reward


def test_sigmoid_votes_take_any_score():
    samples = [sample(1.0, 5.0, answer="1"), *[sample(0.0, -900.0, answer="2")] * 3, sample(0.0, 1e308, answer="")]
    assert vote("sigmoid").expected_reward(samples, 5) == 1.0
    with pytest.raises(UserError, match=r"selection\.weights=score: the scorer gave -900"):
        vote("score").expected_reward(samples, 5)


def test_votes_among_fewer_are_averaged_over_blocks():
    samples = [sample(float(i), answer=str(i // 2)) for i in range(7)]
    # Blocks (0, 1, 2) and (3, 4, 5), answers 0 0 1 and 1 2 2; the seventh is left over.
    assert vote().expected_reward(samples, 3) == fmean([0, 4])
    assert vote().expected_reward(samples, 7) == 0


def test_the_bound_is_the_kl_of_best_of_n_from_a_uniform_policy():
    """E3: for a uniform policy over many completions with different scores the formula is the KL itself."""
    size, kinds = 4, 20_000
    ranks = np.arange(kinds + 1) / kinds
    best = np.diff(ranks**size)  # P(the best of n has this rank)
    kl = float((best * np.log(best * kinds)).sum())
    assert best_of_n_bound(size) == pytest.approx(kl, abs=1e-3)
    assert best_of_n_bound(16) == pytest.approx(math.log(16) - 15 / 16)
    # With ties it is an upper bound: two kinds, one of them better.
    better = 1 - 0.5**size
    assert better * math.log(better * 2) + (1 - better) * math.log((1 - better) * 2) < best_of_n_bound(size)


@pytest.mark.parametrize(
    ("sizes", "num", "expected"),
    [(None, 16, [1, 2, 4, 8, 16]), (None, 12, [1, 2, 4, 8, 12]), (None, 2, [1, 2]), ([8, 1, 8], 8, [1, 8])],
)
def test_sizes(sizes, num, expected):
    assert selection_sizes(BestOfN(sizes=sizes), num) == expected


@pytest.mark.parametrize("sizes", [[0, 2], [17], []])
def test_sizes_that_cannot_be_are_named(sizes):
    with pytest.raises(ConfigError, match=r"selection\.sizes: got .*from 1 to rollout\.sampling\.num_samples \(16\)"):
        selection_sizes(BestOfN(sizes=sizes), 16)


def test_the_summary_has_the_curve_and_its_end():
    rewards = {"a": [0.0, 1.0, 0.0, 1.0], "b": [0.0, 0.0, 0.0, 1.0]}
    samples = [
        sample(reward, score=float(number), prompt=prompt, number=number)
        for prompt, group in rewards.items()
        for number, reward in enumerate(group)
    ]
    metrics = summarize_selection(samples, BestOfN(sizes=None), sizes=[1, 2, 4])
    # The best-scored of two: a: samples 1 (1 of 6 pairs), 2 (2 of 6), 3 (3 of 6); rewards 1, 0, 1. b: 3 of 6.
    expected = {"reward": [0.375, (4 / 6 + 3 / 6) / 2, 1.0], "oracle": [0.375, (5 / 6 + 3 / 6) / 2, 1.0]}
    for name, values in expected.items():
        for size, value in zip([1, 2, 4], values, strict=True):
            assert metrics[f"selection/{name}_at_{size}"].mean == pytest.approx(value), (name, size)
        assert metrics[f"selection/{name}"] == metrics[f"selection/{name}_at_4"]
    assert metrics["selection/mean_reward"].mean == pytest.approx(0.375)
    assert (metrics["selection/mean_reward"].ci_low, metrics["selection/mean_reward"].ci_high) == (0.25, 0.5)
    assert metrics["selection/mean_reward"].num == 8
    assert metrics["kl/best_of_n_bound_nats"].mean == pytest.approx(best_of_n_bound(4))
    assert metrics["kl/best_of_n_bound_nats_at_2"].mean == pytest.approx(math.log(2) - 0.5)


def test_no_bound_is_claimed_for_votes():
    samples = [sample(1.0, answer="1", number=number) for number in range(2)]
    metrics = summarize_selection(samples, vote(), sizes=[1, 2])
    assert set(metrics) == {
        "selection/mean_reward",
        *(f"selection/{name}{at}" for name in ("reward", "oracle") for at in ("", "_at_1", "_at_2")),
    }


def test_a_sample_keeps_its_score():
    assert sample_row(sample(1.0, 0.25))["score"] == 0.25
    assert "score" not in sample_row(sample(1.0))
