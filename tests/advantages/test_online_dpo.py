from __future__ import annotations

import pytest
import torch

from alignment.advantages.online_dpo import ranked_pairs

REWARDS = torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0], [0.0, 4.0, 4.0], [2.0, 1.5, 2.0]])


def found(pairing, min_margin, rewards=REWARDS):
    chosen, rejected = ranked_pairs(rewards=rewards, pairing=pairing, min_margin=min_margin)
    assert chosen.dtype is rejected.dtype is torch.long
    return list(zip(chosen.tolist(), rejected.tolist(), strict=True))


@pytest.mark.parametrize(
    ("pairing", "min_margin", "expected"),
    [
        # Places 0 1 2 | 3 4 5 | 6 7 8 | 9 10 11; the second group is a tie, the first of equal ones is taken.
        ("best_worst", 0.0, [(1, 0), (7, 6), (9, 10)]),
        ("best_worst", 0.5, [(1, 0), (7, 6), (9, 10)]),
        ("best_worst", 0.6, [(1, 0), (7, 6)]),
        ("best_worst", 2.0, [(1, 0), (7, 6)]),
        ("best_worst", 2.1, [(7, 6)]),
        ("best_worst", 9.0, []),
        ("all", 0.0, [(1, 0), (1, 2), (2, 0), (7, 6), (8, 6), (9, 10), (11, 10)]),
        ("all", 1.5, [(1, 0), (7, 6), (8, 6)]),
    ],
)
def test_pairs_by_hand(pairing, min_margin, expected):
    assert found(pairing, min_margin) == expected


@pytest.mark.parametrize("min_margin", [0.0, 0.7])
def test_all_pairs_agree_with_their_twin(min_margin):
    rewards = torch.randint(4, (5, 6), generator=torch.Generator().manual_seed(0)) / 2
    expected = [
        (g * 6 + i, g * 6 + j)
        for g, group in enumerate(rewards.tolist())
        for i, better in enumerate(group)
        for j, worse in enumerate(group)
        if better > worse and better - worse >= min_margin
    ]
    assert found("all", min_margin, rewards) == expected
    assert len(expected) > 20


def test_the_order_of_groups_only_moves_the_pairs():
    order = torch.tensor([2, 0, 3, 1])
    moved = {
        (int(order[c // 3]) * 3 + c % 3, int(order[r // 3]) * 3 + r % 3) for c, r in found("all", 0.0, REWARDS[order])
    }
    assert moved == set(found("all", 0.0))


@pytest.mark.parametrize("pairing", ["best_worst", "all"])
def test_one_sample_has_no_partner(pairing):
    assert found(pairing, 0.0, torch.tensor([[1.0], [2.0]])) == []


def test_a_negative_margin_is_refused():
    with pytest.raises(ValueError, match="never negative"):
        found("all", -0.1)
