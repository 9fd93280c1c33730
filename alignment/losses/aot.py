"""Alignment via optimal transport, Melnyk et al. 2024, arXiv 2406.05882: distributions are compared, not pairs."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def aot_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    reference_margin: Float[Tensor, "pairs"],
    weights: Float[Tensor, "pairs"],
    beta: float,
    label_smoothing: Annotated[float, "[0, 0.5)"],
) -> Float[Tensor, "pairs"]:
    """Returns the logistic loss of u(i) - v(i), the i-th smallest of each: paired AOT.

    u = log pi(y_w) - log pi(y_l) are the policy's margins and v the reference's. Sorted and compared one by one, they
    solve the transport problem in one dimension, and the loss falls as the distribution of u dominates that of v.

    Args:
        chosen_log_ratio: log pi(y_w) - log pi_ref(y_w), in nats.
        rejected_log_ratio: The same of y_l.
        reference_margin: v = log pi_ref(y_w) - log pi_ref(y_l), in nats, without gradient.
        weights: 1 for a pair, 0 for one that is left out of both distributions.
        beta: Scales the difference, as in DPO.
        label_smoothing: e, as in conservative DPO.

    Returns:
        A loss for each pair that counts and 0 for the others, unreduced. It belongs to a rank of the sorted values:
        only the sum has a meaning, and every pair must be there at once.

    Example:
        >>> import torch
        >>> c, v = torch.tensor([3.0, 0.0]), torch.tensor([-1.0, 1.0])
        >>> aot_loss(chosen_log_ratio=c, rejected_log_ratio=torch.zeros(2), reference_margin=v,
        ...     weights=torch.ones(2), beta=1.0, label_smoothing=0.0)
        tensor([0.1269, 0.3133])
    """
    policy_margin = chosen_log_ratio - rejected_log_ratio + reference_margin
    return _sorted_loss(policy_margin, reference_margin, weights, beta, label_smoothing)


def aot_unpaired_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    weights: Float[Tensor, "pairs"],
    beta: float,
    label_smoothing: Annotated[float, "[0, 0.5)"],
) -> Float[Tensor, "pairs"]:
    """Returns the logistic loss of c(i) - r(i), the i-th smallest of each: unpaired AOT.

    The distribution of chosen log-ratios is to dominate that of rejected ones, whichever prompts they belong to.

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        weights: 1 for a pair, 0 for one that is left out of both distributions.
        beta: Scales the difference, as in DPO.
        label_smoothing: e, as in conservative DPO.

    Returns:
        As :func:`aot_loss`.

    Example:
        >>> import torch
        >>> c, r = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> aot_unpaired_loss(chosen_log_ratio=c, rejected_log_ratio=r, weights=torch.ones(2),
        ...     beta=1.0, label_smoothing=0.0)
        tensor([0.6931, 0.6931])
    """
    return _sorted_loss(chosen_log_ratio, rejected_log_ratio, weights, beta, label_smoothing)


def _sorted_loss(above: Tensor, below: Tensor, weights: Tensor, beta: float, label_smoothing: float) -> Tensor:
    counts = weights > 0
    logits = beta * (above[counts].sort().values - below[counts].sort().values)
    losses = -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
    return above.new_zeros(len(above)).masked_scatter(counts, losses)
