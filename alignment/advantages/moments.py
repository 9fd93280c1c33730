"""Mean and spread that equal values cannot fool: exactly zero where all are equal, whatever their size.

A float32 mean of equal values may be off by a rounding error, and dividing by a spread that is another rounding error
turns it into an advantage of any size. Values are therefore counted from their least one first: that difference
is exactly 0 for equal values, and it keeps the digits that a large common offset would swallow.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def centred(values: Float[Tensor, "*sets items"]) -> Float[Tensor, "*sets items"]:
    """Returns each value minus the mean of its set, the last dimension; exactly 0 where all of a set are equal.

    Args:
        values: At least one a set.

    Returns:
        Same shape and unit.

    Example:
        >>> centred(torch.tensor([[1.0, 3.0], [1e8, 1e8]]))
        tensor([[-1.,  1.],
                [ 0.,  0.]])
    """
    above_least = values - values.amin(-1, keepdim=True)
    return above_least - above_least.mean(-1, keepdim=True)


def deviation(values: Float[Tensor, "*sets items"], *, correction: int) -> Float[Tensor, "*sets 1"]:
    """Returns the standard deviation of each set, the last dimension; exactly 0 where all of a set are equal.

    The values are first mapped to [0, 1], so that squares of small ones do not vanish in float32.

    Args:
        values: More than ``correction`` a set.
        correction: 1 for the unbiased variance, divided by n - 1; 0 for the population's, divided by n.

    Returns:
        One a set, in the unit of the values.

    Example:
        >>> deviation(torch.tensor([[1.0, 3.0], [1e8, 1e8]]), correction=0)
        tensor([[1.],
                [0.]])
    """
    least = values.amin(-1, keepdim=True)
    spread = values.amax(-1, keepdim=True) - least
    unit = (values - least) / _nonzero(spread)
    return spread * unit.std(-1, keepdim=True, correction=correction)


def scaled(values: Float[Tensor, "*shape"], *, by: Float[Tensor, "*other"]) -> Float[Tensor, "*shape"]:
    """Returns values / by, and the values as they are where ``by`` is 0: centred values are 0 there themselves.

    Args:
        values: Centred.
        by: Their :func:`deviation`, of a shape that broadcasts.

    Returns:
        Same shape.

    Example:
        >>> scaled(torch.tensor([[-1.0, 1.0], [0.0, 0.0]]), by=torch.tensor([[2.0], [0.0]]))
        tensor([[-0.5000,  0.5000],
                [ 0.0000,  0.0000]])
    """
    return values / _nonzero(by)


def whitened(*, values: Float[Tensor, "items"], weights: Float[Tensor, "items"]) -> Float[Tensor, "items"]:
    """Returns (A - mean) / std over all items that count: REINFORCE++'s and PPO's normalisation over the whole batch.

    REINFORCE++ is Hu et al. 2025, arXiv 2501.03262.

    Args:
        values: Of the whole batch, all ranks together.
        weights: 1 for an item that counts, 0 for one that does not, whatever that holds.

    Returns:
        Same shape, without a unit; 0 for items that do not count, and for all where those that count are equal.

    Raises:
        ValueError: If a weight is neither 0 nor 1.

    Deviations:
        The std is the population's (divided by n), as in OpenRLHF, the authors' code, which bounds the variance from
        below by 1e-8; no bound is needed here. The paper gives neither.

    Example:
        >>> whitened(values=torch.tensor([1.0, 3.0, 9.0]), weights=torch.tensor([1.0, 1.0, 0.0]))
        tensor([-1.,  1.,  0.])
    """
    counts = weights > 0
    if not torch.equal(counts.to(weights.dtype), weights):
        raise ValueError("a weight is neither 0 nor 1: an item counts or it does not")
    counted = values[counts]
    if not len(counted):
        return torch.zeros_like(values)
    result = scaled(centred(counted), by=deviation(counted, correction=0))
    return torch.zeros_like(values).masked_scatter(counts, result)


def _nonzero(divisors: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return torch.where(divisors == 0, torch.ones_like(divisors), divisors)
