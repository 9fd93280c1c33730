"""Discovered preference optimisation, Lu et al. 2024, arXiv 2406.08414."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def discopop_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    beta: float,
    tau: Annotated[float, "(0, 1]"],
) -> Float[Tensor, "pairs"]:
    """Returns (1 - w) log(1 + exp(-x)) + w exp(-x) for each pair, with x = beta (c - r) and w = sigma(x / tau).

    Equation 5 of the paper: the log-ratio modulated loss, which a language model wrote. It is logistic for pairs in the
    wrong order, exponential for those in the right one, and not convex in between.

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        beta: Strength of the KL constraint.
        tau: How sharp the change from one to the other is. Above 1 the exponential would have the last word on pairs
            in the wrong order, and overflow.

    Returns:
        The loss of each pair, unreduced.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> discopop_loss(chosen_log_ratio=zero, rejected_log_ratio=zero, beta=0.1, tau=0.05)
        tensor([0.8466])
    """
    logits = beta * (chosen_log_ratio - rejected_log_ratio)
    logistic = -F.logsigmoid(logits) * (-logits / tau).sigmoid()
    # w exp(-x) in one exponential: taken apart, 0 times infinity comes out for a pair that is very wrong.
    exponential = (F.logsigmoid(logits / tau) - logits).exp()
    return logistic + exponential
