"""The hinge of SLiC-HF, Zhao et al. 2023, arXiv 2305.10425."""

from __future__ import annotations

from typing import Annotated

from jaxtyping import Float
from torch import Tensor


def hinge_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    beta: float,
    margin: Annotated[float, "(0, inf)"],
) -> Float[Tensor, "pairs"]:
    """Returns max(0, margin - beta (c - r)) for each pair: one that is far enough apart teaches nothing more.

    Deviations:
        SLiC-HF takes log-probs, and adds the likelihood of a target. Log-ratios to the reference are RSO's (Liu et al.
        2023, arXiv 2309.06657).

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        beta: Scales log-ratios to rewards.
        margin: The difference of rewards that is enough.

    Returns:
        The loss of each pair, unreduced.

    Example:
        >>> import torch
        >>> hinge_loss(chosen_log_ratio=torch.tensor([4.0, 20.0]), rejected_log_ratio=torch.zeros(2),
        ...     beta=0.1, margin=1.0)
        tensor([0.6000, 0.0000])
    """
    return (margin - beta * (chosen_log_ratio - rejected_log_ratio)).clamp(min=0)
