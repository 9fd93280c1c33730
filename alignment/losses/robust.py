"""Robust DPO, Chowdhury et al. 2024, arXiv 2403.00409."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def robust_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    beta: float,
    label_smoothing: Annotated[float, "[0, 0.5)"],
) -> Float[Tensor, "pairs"]:
    """Returns [-(1 - e) log sigma(beta d) + e log sigma(-beta d)] / (1 - 2e) for each pair, with d = c - r.

    Where labels are flipped with probability e, its mean is that of DPO's loss on the true labels: noise is taken out,
    where conservative DPO takes it into account. At e = 0 it is DPO's loss.

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        beta: Strength of the KL constraint.
        label_smoothing: e, the share of flipped labels.

    Returns:
        The loss of each pair, unreduced; it may be negative.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> robust_loss(chosen_log_ratio=zero, rejected_log_ratio=zero, beta=0.1, label_smoothing=0.1)
        tensor([0.6931])
    """
    logits = beta * (chosen_log_ratio - rejected_log_ratio)
    clean, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)
