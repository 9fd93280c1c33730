"""REINFORCE++, Hu et al. 2025, arXiv 2501.03262: returns of tokens, normalised over the whole batch."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from alignment.advantages.moments import centred, deviation, scaled
from alignment.advantages.ragged import discounted_sums


def token_returns(
    *, token_rewards: Float[Tensor, "tokens"], lengths: Int[Tensor, "rollouts"], gamma: float
) -> Float[Tensor, "tokens"]:
    """Returns the rewards from each token to the end of its completion, discounted: sum_k gamma^k r[t + k].

    Args:
        token_rewards: The score at the last token, minus the penalty for leaving the reference at each.
        lengths: Tokens of each completion, at least 1.
        gamma: Discount a token; 1 in the paper.

    Returns:
        One a token, in the unit of the rewards.

    Raises:
        ValueError: If a completion is empty, or the lengths do not add up.

    Deviations:
        None.

    Example:
        >>> token_returns(token_rewards=torch.tensor([0.0, 1.0, 3.0]), lengths=torch.tensor([2, 1]), gamma=0.5)
        tensor([0.5000, 1.0000, 3.0000])
    """
    return discounted_sums(token_rewards, lengths=lengths, discount=gamma)


def whitened(
    *, values: Float[Tensor, "items"], weights: Float[Tensor, "items"], centre: bool
) -> Float[Tensor, "items"]:
    """Returns (A - mean) / std over all items that count, the paper's global normalisation of advantages.

    Args:
        values: Of the whole batch, all ranks together.
        weights: 1 for an item that counts, 0 for one that does not, whatever that holds.
        centre: False adds the mean again after the division, as PPO does with rewards (whitening without a shift).

    Returns:
        Same shape, without a unit; 0 for items that do not count. Where all that count are equal: 0, or with
        ``centre`` false their mean.

    Raises:
        ValueError: If a weight is neither 0 nor 1.

    Deviations:
        The std is the population's (divided by n), as in OpenRLHF, the authors' code, which bounds the variance from
        below by 1e-8; no bound is needed here. The paper gives neither.

    Example:
        >>> whitened(values=torch.tensor([1.0, 3.0, 9.0]), weights=torch.tensor([1.0, 1.0, 0.0]), centre=True)
        tensor([-1.,  1.,  0.])
    """
    counts = weights > 0
    if not torch.equal(counts.to(weights.dtype), weights):
        raise ValueError("a weight is neither 0 nor 1: an item counts or it does not")
    counted = values[counts]
    if not len(counted):
        return torch.zeros_like(values)
    result = scaled(centred(counted), by=deviation(counted, correction=0))
    if not centre:
        result = result + counted.mean()
    return torch.zeros_like(values).masked_scatter(counts, result)


def group_centred(*, rewards: Float[Tensor, "groups samples"]) -> Float[Tensor, "groups samples"]:
    """Returns R - mean of its group: the first step of the variant with a baseline, before :func:`whitened`.

    Args:
        rewards: The completions of a prompt are a group.

    Returns:
        Same shape and unit; exactly 0 where all rewards of a group are equal.

    Raises:
        ValueError: If a group has fewer than two samples: its mean would take everything away.

    Deviations:
        None.

    Example:
        >>> group_centred(rewards=torch.tensor([[1.0, 2.0, 6.0]]))
        tensor([[-2., -1.,  3.]])
    """
    samples = rewards.shape[1]
    if samples < 2:
        raise ValueError(f"groups of {samples}: a group's mean as a baseline needs at least 2 samples of a prompt")
    return centred(rewards)
