"""The one place that divides: any way of cutting a step into pieces gives the same mean and gradient (T8)."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.ops.reduce import global_mean, masked_total


@given(
    values=st.lists(st.floats(-100, 100), min_size=1, max_size=12),
    cuts=st.lists(st.integers(0, 12), max_size=4),
)
def test_any_cut_gives_the_mean(values, cuts):
    whole = torch.tensor(values, dtype=torch.float64)
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    shares = [global_mean(p, weights=None, count=len(values), shares=len(pieces)) for p in pieces]
    # Lightning divides by accumulation and averages over ranks.
    total = torch.stack(shares).sum() / len(pieces)
    torch.testing.assert_close(total, whole.mean(), rtol=1e-9, atol=1e-9)


def test_a_filler_changes_nothing():
    values = torch.tensor([1.0, 2.0, 50.0])
    weights = torch.tensor([1.0, 1.0, 0.0])
    assert global_mean(values, weights=weights, count=2, shares=1).item() == 1.5
    total, count = masked_total(values, weights)
    assert (total.item(), count.item()) == (3.0, 2.0)


def test_a_fillers_nan_does_not_reach_the_log():
    total, count = masked_total(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 0.0]))
    assert (total.item(), count.item()) == (1.0, 1.0)


def test_a_fillers_nan_reaches_neither_the_loss_nor_the_gradient():
    values = torch.tensor([1.0, float("nan"), 3.0, float("inf")], requires_grad=True)
    loss = global_mean(values, weights=torch.tensor([1.0, 0.0, 0.5, 0.0]), count=2, shares=3)
    loss.backward()
    assert loss.item() == (1.0 + 1.5) / 2 * 3
    assert values.grad is not None
    assert values.grad.tolist() == [1.5, 0.0, 0.75, 0.0]


def test_an_empty_step_is_refused():
    with pytest.raises(ValueError, match="a mean over 0 items"):
        global_mean(torch.zeros(0), weights=None, count=0, shares=1)
