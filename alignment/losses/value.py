"""How a critic learns: PPO's value loss."""

from __future__ import annotations

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor


def clipped_value_loss(
    *,
    values: Float[Tensor, "tokens"],
    old_values: Float[Tensor, "tokens"],
    returns: Float[Tensor, "tokens"],
    clip: Annotated[float, "(0, inf)"] | None,
) -> Float[Tensor, "tokens"]:
    """Returns max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2 for each token.

    Engstrom et al. 2020, arXiv 2005.12729, section 3: the clip that PPO's authors have in their code. A critic that has
    moved towards the return by more than c gets no gradient; one that has moved away from it keeps its own.

    Args:
        values: V, the critic that is trained.
        old_values: V_old, what it said when the samples were taken.
        returns: R, without gradient, in the unit of the values.
        clip: c, in that unit; ``None`` for (V - R)^2 / 2.

    Returns:
        One a token, unreduced.

    Deviations:
        Half of the paper's, so that the gradient is V - R.

    Example:
        >>> clipped_value_loss(values=torch.tensor([0.9]), old_values=torch.tensor([0.0]), returns=torch.tensor([1.0]),
        ...     clip=0.2)
        tensor([0.3200])
    """
    squares = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        squares = torch.maximum(squares, (near - returns).square())
    return squares / 2
