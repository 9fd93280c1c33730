"""Kahneman-Tversky optimisation, Ethayarajh et al. 2024, arXiv 2402.01306."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def kto_loss(
    *,
    policy_sum_logps: Float[Tensor, "records"],
    reference_sum_logps: Float[Tensor, "records"],
    labels: Bool[Tensor, "records"],
    z0: Float[Tensor, ""],
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Float[Tensor, "records"]:
    """Returns lambda_y - v(x, y) for each completion, equations 7 and 8 of the paper.

    With x = log pi(y) - log pi_ref(y): lambda_D (1 - sigma(beta (x - z0))) for a desirable completion,
    lambda_U (1 - sigma(beta (z0 - x))) for an undesirable one.

    Args:
        policy_sum_logps: Sum over the completion's tokens, in nats.
        reference_sum_logps: The same under the reference, without gradient.
        labels: True where the completion is desirable.
        z0: The reference point in nats; no gradient flows through it. With 0 this is the loss of APO-zero
            (D'Oosterlinck et al. 2024, arXiv 2408.06266) on single completions.
        beta: How fast the value saturates; larger stays closer to the reference.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.

    Returns:
        The loss of each completion, in [0, lambda], unreduced.

    Example:
        >>> import torch
        >>> kto_loss(policy_sum_logps=torch.tensor([-3.0, -3.0]), reference_sum_logps=torch.tensor([-3.0, -3.0]),
        ...     labels=torch.tensor([True, False]), z0=torch.tensor(0.0),
        ...     beta=0.1, desirable_weight=1.0, undesirable_weight=2.0)
        tensor([0.5000, 1.0000])
    """
    above = policy_sum_logps - reference_sum_logps - z0.detach()
    # 1 - sigma(a) is sigma(-a), which keeps its digits where sigma(a) is nearly 1.
    return torch.where(
        labels, desirable_weight * torch.sigmoid(-beta * above), undesirable_weight * torch.sigmoid(beta * above)
    )
