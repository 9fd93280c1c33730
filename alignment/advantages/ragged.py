"""Sums along completions of different lengths whose tokens lie flat, one completion after the other."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def last_tokens(*, lengths: Int[Tensor, "rollouts"], num_tokens: int) -> Int[Tensor, "rollouts"]:
    """Returns the place of each completion's last token.

    Args:
        lengths: Tokens of each completion, at least 1.
        num_tokens: Of all completions together.

    Returns:
        Places in the flat order.

    Raises:
        ValueError: If a completion is empty, or the lengths do not add up.

    Example:
        >>> last_tokens(lengths=torch.tensor([2, 1, 3]), num_tokens=6)
        tensor([1, 2, 5])
    """
    _check(lengths, num_tokens)
    return lengths.cumsum(0) - 1


def discounted_sums(
    values: Float[Tensor, "tokens"], *, lengths: Int[Tensor, "rollouts"], discount: float
) -> Float[Tensor, "tokens"]:
    """Returns sum_{k >= 0} discount^k values[t + k] for each token t, up to the end of its completion.

    All completions take a step together, from the last token of the longest backwards.

    Args:
        values: One a token.
        lengths: Tokens of each completion, at least 1.
        discount: Weight of the next token's sum.

    Returns:
        One a token, in the unit of the values.

    Raises:
        ValueError: If a completion is empty, or the lengths do not add up.

    Example:
        >>> discounted_sums(torch.tensor([1.0, 1.0, 1.0]), lengths=torch.tensor([1, 2]), discount=0.5)
        tensor([1.0000, 1.5000, 1.0000])
    """
    _check(lengths, len(values))
    if not len(values):
        return values
    places = torch.arange(int(lengths.max()), device=values.device)
    is_token = places < lengths[:, None]
    # Fillers stand behind a completion and are 0: the sum that comes back through them is still 0.
    padded = values.new_zeros(is_token.shape).masked_scatter(is_token, values)
    sums: list[Tensor] = []
    following = torch.zeros_like(padded[:, 0])
    for column in reversed(padded.unbind(1)):
        following = column + discount * following
        sums.append(following)
    return torch.stack(sums[::-1], dim=1)[is_token]


def _check(lengths: Int[Tensor, "rollouts"], num_tokens: int) -> None:
    if (lengths < 1).any():
        raise ValueError(f"a completion of {lengths.min().item()} tokens: it must hold at least one")
    if lengths.sum() != num_tokens:
        raise ValueError(f"the completions have {lengths.sum().item()} tokens together, but {num_tokens} values came")
