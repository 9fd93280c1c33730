"""DPO-positive (Smaug), Pal et al. 2024, arXiv 2402.13228."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def dpop_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    beta: float,
    penalty: Annotated[float, "(0, inf)"],
) -> Float[Tensor, "pairs"]:
    """Returns -log sigma(beta [c - r - lambda max(0, -c)]) for each pair.

    The penalty counts where the chosen completion has become less likely than under the reference, which DPO's loss
    alone allows as long as the rejected one falls further.

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        beta: Strength of the KL constraint.
        penalty: lambda.

    Returns:
        The loss of each pair, in nats, unreduced.

    Example:
        >>> import torch
        >>> dpop_loss(chosen_log_ratio=torch.tensor([1.0, -1.0]), rejected_log_ratio=torch.tensor([0.0, -2.0]),
        ...     beta=1.0, penalty=2.0)
        tensor([0.3133, 1.3133])
    """
    fall = (-chosen_log_ratio).clamp(min=0)
    return -F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio - penalty * fall))
