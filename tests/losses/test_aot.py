import itertools
import math

import numpy as np
import pytest
import torch

from alignment.losses.aot import aot_loss, aot_unpaired_loss

SETTINGS = [{"beta": b, "label_smoothing": e} for b in (0.1, 1.0) for e in (0.0, 0.2)]


def inputs(pairs: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    names = ("chosen_log_ratio", "rejected_log_ratio", "reference_margin")
    drawn = {name: 4 * torch.randn(pairs, generator=generator, dtype=torch.float64) for name in names}
    return drawn | {"weights": torch.ones(pairs, dtype=torch.float64)}


def paired(*, reference_margin, **others):
    return aot_loss(reference_margin=reference_margin, **others)


def unpaired(*, reference_margin, **others):
    return aot_unpaired_loss(**others)


def samples(loss, values):
    """The two samples that a loss compares: what should be large, what should be small."""
    chosen, rejected, reference, weights = (value.numpy() for value in values.values())
    above, below = (chosen - rejected + reference, reference) if loss is paired else (chosen, rejected)
    return above[weights > 0], below[weights > 0]


def twin(above, below, *, beta, label_smoothing):
    """The cheapest of all ways to match the samples, one by one: optimal transport without sorting.

    A convex cost of the difference is least where both are in order, so the least over matchings is the sorted one.
    """

    def cost(order):
        difference = beta * (above - below[list(order)])
        smoothed = label_smoothing * np.logaddexp(0, difference)
        return ((1 - label_smoothing) * np.logaddexp(0, -difference) + smoothed).sum()

    return min(cost(order) for order in itertools.permutations(range(len(below))))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("loss", [paired, unpaired])
def test_the_sum_is_the_cost_of_optimal_transport(loss, setting):
    values = inputs()
    losses = loss(**values, **setting)
    assert losses.shape == (6,)
    assert losses.sum().item() == pytest.approx(twin(*samples(loss, values), **setting), abs=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("loss", [paired, unpaired])
def test_gradient(loss, setting):
    tensors = {name: value.requires_grad_(name != "weights") for name, value in inputs().items()}
    assert torch.autograd.gradcheck(
        lambda *given: loss(**dict(zip(tensors, given, strict=True)), **setting), tuple(tensors.values())
    )


@pytest.mark.parametrize("loss", [paired, unpaired])
def test_the_order_of_pairs_does_not_matter(loss):
    values = inputs()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    total = loss(**values, **SETTINGS[1]).sum()
    other = loss(**{name: value[order] for name, value in values.items()}, **SETTINGS[1]).sum()
    torch.testing.assert_close(other, total, rtol=0, atol=1e-12)


@pytest.mark.parametrize("loss", [paired, unpaired])
@pytest.mark.parametrize("filler", [1e6, -1e6, float("nan")])
def test_a_filler_takes_no_part(loss, filler):
    """Whatever it holds, it does not push the others to other ranks, costs nothing and has no gradient."""
    values = {name: value.detach().clone() for name, value in inputs().items()}
    kept = torch.tensor([0, 1, 3, 5])
    alone = loss(**{name: value[kept] for name, value in values.items()}, **SETTINGS[1])
    for name, value in values.items():
        value[[2, 4]] = 0.0 if name == "weights" else filler
    chosen = values["chosen_log_ratio"].requires_grad_()
    losses = loss(**values, **SETTINGS[1])
    torch.testing.assert_close(losses[kept], alone, rtol=0, atol=0)
    assert losses[[2, 4]].tolist() == [0.0, 0.0]
    losses.sum().backward()
    assert chosen.grad[[2, 4]].tolist() == [0.0, 0.0]
    assert chosen.grad[kept].abs().min() > 0


def test_values_derived_by_hand():
    """Margins 3 and 0 against a reference's 1 and -1: in order they differ by 2 and by 1."""
    losses = aot_loss(
        chosen_log_ratio=torch.tensor([4.0, -1.0]),
        rejected_log_ratio=torch.zeros(2),
        reference_margin=torch.tensor([-1.0, 1.0]),
        weights=torch.ones(2),
        beta=1.0,
        label_smoothing=0.0,
    )
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(-2))], abs=1e-6)


def test_long_completions_stay_finite():
    values = {name: torch.tensor([-1e4, 1e4]) for name in ("chosen_log_ratio", "rejected_log_ratio")}
    values["rejected_log_ratio"] = values["rejected_log_ratio"].flip(0) * 3
    losses = aot_unpaired_loss(**values, weights=torch.ones(2), beta=1.0, label_smoothing=0.1)
    assert torch.isfinite(losses).all()
