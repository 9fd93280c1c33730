"""The only place that decides what a loss is divided by."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def global_mean(
    values: Float[Tensor, "items"], *, weights: Float[Tensor, "items"] | None, count: float, shares: int
) -> Float[Tensor, ""]:
    """Returns this micro-batch's share of a mean over the whole optimiser step.

    A step of B items may be computed in one piece, in accumulated micro-batches, or on several ranks,
    with uneven numbers of items in each. The mean over all of them is sum(values) / B, so each piece
    contributes its own sum over the GLOBAL count. Lightning divides the loss by the number of
    accumulated micro-batches and averages gradients over ranks; ``shares`` undoes both.

    Args:
        values: Unreduced losses, one an item (a record, a pair, a token).
        weights: 1 for an item that counts, 0 for a filler, whatever that holds; ``None`` counts all.
        count: Items in the whole optimiser step, all micro-batches and ranks together.
        shares: Micro-batches a step times ranks.

    Returns:
        A scalar whose gradient, after Lightning's accumulation and averaging, is that of the global mean.

    Raises:
        ValueError: If ``count`` is not positive.

    Example:
        >>> values = torch.tensor([1.0, 2.0, 3.0])
        >>> pieces = [global_mean(p, weights=None, count=3, shares=2) for p in values.split(2)]
        >>> sum(pieces) / 2  # what Lightning makes of them
        tensor(2.)
    """
    if count <= 0:
        raise ValueError(f"a mean over {count} items: an optimiser step must hold at least one")
    return _weighted(values, weights).sum() * (shares / count)


def masked_total(
    values: Float[Tensor, "items"], weights: Float[Tensor, "items"] | None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns the sum of the values that count and how many count: the two halves of a logged mean."""
    values = values.detach().double()
    if weights is None:
        return values.sum(), values.new_full((), values.numel())
    return _weighted(values, weights.double()).sum(), weights.double().sum()


def _weighted(values: Float[Tensor, "items"], weights: Float[Tensor, "items"] | None) -> Float[Tensor, "items"]:
    """Multiplies. A filler may hold anything, NaN too: it is selected out first, and its gradient is exactly 0."""
    return values if weights is None else torch.where(weights > 0, values, 0.0) * weights
