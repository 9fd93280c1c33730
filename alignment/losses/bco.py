"""Binary classifier optimisation on pairs, Jung et al. 2024, arXiv 2404.04656."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def bco_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    beta: float,
    reward_shift: float | Float[Tensor, ""],
) -> Float[Tensor, "pairs"]:
    """Returns -log sigma(beta c - delta) - log sigma(delta - beta r) for each pair.

    A classifier tells chosen from rejected completions by their rewards; its negative log-likelihood bounds DPO's loss
    from above, most tightly where delta lies halfway between the mean rewards of the two.

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        beta: Scales log-ratios to rewards.
        reward_shift: delta, without gradient.

    Returns:
        The loss of each pair, in nats, unreduced.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> bco_loss(chosen_log_ratio=zero, rejected_log_ratio=zero, beta=0.1, reward_shift=0.0)
        tensor([1.3863])
    """
    return -F.logsigmoid(beta * chosen_log_ratio - reward_shift) - F.logsigmoid(
        reward_shift - beta * rejected_log_ratio
    )
