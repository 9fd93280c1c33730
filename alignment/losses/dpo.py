"""Direct preference optimisation, Rafailov et al. 2023, arXiv 2305.18290: the logistic loss on pairs."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def dpo_loss(
    *,
    chosen_log_ratio: Float[Tensor, "pairs"],
    rejected_log_ratio: Float[Tensor, "pairs"],
    beta: float,
    label_smoothing: Annotated[float, "[0, 0.5)"],
) -> Float[Tensor, "pairs"]:
    """Returns -(1 - e) log sigma(beta d) - e log sigma(-beta d) for each pair, with d = c - r.

    c = log pi(y_w) - log pi_ref(y_w), and r the same of y_l: equation 7 of the paper. With a label smoothing e > 0 it
    is conservative DPO (E. Mitchell, "A note on DPO with noisy preferences", 2023, equation 3), which takes e as the
    probability that a label is flipped.

    Args:
        chosen_log_ratio: c, in nats.
        rejected_log_ratio: r, in nats.
        beta: Strength of the KL constraint; larger stays closer to the reference.
        label_smoothing: e.

    Returns:
        The loss of each pair, in nats, unreduced.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> dpo_loss(chosen_log_ratio=zero, rejected_log_ratio=zero, beta=0.1, label_smoothing=0.0)
        tensor([0.6931])
    """
    logits = beta * (chosen_log_ratio - rejected_log_ratio)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
