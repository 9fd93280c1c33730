"""Efficient exact optimisation on pairs, Ji et al. 2024, arXiv 2402.00856."""

from __future__ import annotations

import math
from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def exo_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    beta: float,
    label_smoothing: Annotated[float, "(0, 0.5)"],
) -> Float[Tensor, "pairs"]:
    """Returns KL(q || p) for each pair, equation 16 of the paper.

    q = (sigma(beta d), sigma(-beta d)) with d = c - r is what the policy says of the pair, p = (1 - e, e) what the
    label says. DPO's loss is KL(p || q) up to a constant: it covers p, this one seeks its mode. At e = 0 the divergence
    is infinite, so e must be above 0.

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        beta: The paper's beta_pi: scales log-ratios to rewards.
        label_smoothing: e.

    Returns:
        The loss of each pair, in nats, unreduced.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> exo_loss(chosen_log_ratio=zero, rejected_log_ratio=zero, beta=0.1, label_smoothing=0.25)
        tensor([0.1438])
    """
    logits = beta * (chosen_log_ratio - rejected_log_ratio)
    chosen = logits.sigmoid() * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    rejected = (-logits).sigmoid() * (F.logsigmoid(-logits) - math.log(label_smoothing))
    return chosen + rejected
