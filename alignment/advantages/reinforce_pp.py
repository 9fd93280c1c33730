"""REINFORCE++, Hu et al. 2025, arXiv 2501.03262: returns of tokens.

They are normalised over the whole batch, by :func:`alignment.advantages.moments.whitened`.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from alignment.advantages.moments import centred
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
        >>> import torch
        >>> token_returns(token_rewards=torch.tensor([0.0, 1.0, 3.0]), lengths=torch.tensor([2, 1]), gamma=0.5)
        tensor([0.5000, 1.0000, 3.0000])
    """
    return discounted_sums(token_rewards, lengths=lengths, discount=gamma)


def group_centred(*, rewards: Float[Tensor, "groups samples"]) -> Float[Tensor, "groups samples"]:
    """Returns R - mean of its group: the first step of the variant with a baseline, before returns are whitened.

    Args:
        rewards: The completions of a prompt are a group.

    Returns:
        Same shape and unit; exactly 0 where all rewards of a group are equal.

    Raises:
        ValueError: If a group has fewer than two samples: its mean would take everything away.

    Deviations:
        None.

    Example:
        >>> import torch
        >>> group_centred(rewards=torch.tensor([[1.0, 2.0, 6.0]]))
        tensor([[-2., -1.,  3.]])
    """
    samples = rewards.shape[1]
    if samples < 2:
        raise ValueError(f"groups of {samples}: a group's mean as a baseline needs at least 2 samples of a prompt")
    return centred(rewards)
