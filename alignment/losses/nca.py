"""Noise contrastive alignment on pairs, Chen et al. 2024, arXiv 2402.05369."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def nca_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    beta: float,
) -> Float[Tensor, "pairs"]:
    """Returns -log sigma(beta c) - [log sigma(-beta c) + log sigma(-beta r)] / 2 for each pair.

    The paper's NCA for one preferred of two completions. It judges each side by itself, not their difference, so that
    the chosen side's likelihood is held up.

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        beta: Scales log-ratios to rewards.

    Returns:
        The loss of each pair, in nats, unreduced.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> nca_loss(chosen_log_ratio=zero, rejected_log_ratio=zero, beta=0.1)
        tensor([1.3863])
    """
    chosen, rejected = beta * chosen_log_ratio, beta * rejected_log_ratio
    return -F.logsigmoid(chosen) - 0.5 * (F.logsigmoid(-chosen) + F.logsigmoid(-rejected))
