"""Self-play preference optimisation with hard labels, Wu et al. 2024, arXiv 2405.00675."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def sppo_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    beta: float,
) -> Float[Tensor, "pairs"]:
    """Returns (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 for each pair.

    Equation 4.7 of the paper, with eta = 1 / beta and a probability to win of 1 for the chosen and 0 for the rejected
    completion: each log-ratio is pulled to a value of its own.

    Deviations:
        The paper's probabilities come from a judge over several samples of the policy; these are the labels of a pair.

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        beta: 1 / eta; larger stays closer to the reference.

    Returns:
        The loss of each pair, in nats squared, unreduced.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> sppo_loss(chosen_log_ratio=zero, rejected_log_ratio=zero, beta=0.5)
        tensor([2.])
    """
    target = 1 / (2 * beta)
    return (chosen_log_ratio - target).square() + (rejected_log_ratio + target).square()
