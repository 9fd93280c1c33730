"""Contrastive preference optimisation, Xu et al. 2024, arXiv 2401.08417."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def cpo_loss(
    *,
    policy_chosen_sum_logps: Float[Tensor, "pairs"],
    policy_rejected_sum_logps: Float[Tensor, "pairs"],
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, "pairs"]:
    """Returns -(1 - e) log sigma(beta m) - e log sigma(-beta m) for each pair, with m = S(y_w) - S(y_l).

    With e = 0 it is the paper's L_prefer: DPO's loss with a uniform reference, which cancels.

    Args:
        policy_chosen_sum_logps: Sum over the chosen completion's tokens, in nats.
        policy_rejected_sum_logps: The same for the rejected completion.
        beta: Scale of the reward.
        label_smoothing: e in [0, 0.5), the probability that a label is flipped; not in the paper.

    Returns:
        The loss of each pair, in nats, unreduced, without the likelihood term.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> cpo_loss(policy_chosen_sum_logps=zero, policy_rejected_sum_logps=zero, beta=0.1, label_smoothing=0.0)
        tensor([0.6931])
    """
    logits = beta * (policy_chosen_sum_logps - policy_rejected_sum_logps)
    loss = -F.logsigmoid(logits)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-logits)
    return loss
