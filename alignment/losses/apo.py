"""Anchored preference optimisation, D'Oosterlinck et al. 2024, arXiv 2408.06266."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def apo_zero_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    beta: float,
) -> Float[Tensor, "pairs"]:
    """Returns 1 - sigma(beta c) + sigma(beta r) for each pair: chosen up, rejected down.

    Equation 7 of the paper and a constant 1, for data whose chosen completions are better than the model's own.

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        beta: Scales log-ratios to rewards.

    Returns:
        The loss of each pair, in (0, 2), unreduced.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> apo_zero_loss(chosen_log_ratio=zero, rejected_log_ratio=zero, beta=0.1)
        tensor([1.])
    """
    return (-beta * chosen_log_ratio).sigmoid() + (beta * rejected_log_ratio).sigmoid()


def apo_down_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    beta: float,
) -> Float[Tensor, "pairs"]:
    """Returns sigma(beta c) + 1 - sigma(beta (c - r)) for each pair: both down, rejected further.

    Equation 8 of the paper and a constant 1, for data whose chosen completions are worse than the model's own.

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        beta: Scales log-ratios to rewards.

    Returns:
        The loss of each pair, in (0, 2), unreduced.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> apo_down_loss(chosen_log_ratio=zero, rejected_log_ratio=zero, beta=0.1)
        tensor([1.])
    """
    return (beta * chosen_log_ratio).sigmoid() + (beta * (rejected_log_ratio - chosen_log_ratio)).sigmoid()
