"""Simple preference optimisation, Meng et al. 2024, arXiv 2405.14734."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def simpo_loss(
    *,
    policy_chosen_logps: Float[Tensor, "pairs"],
    policy_rejected_logps: Float[Tensor, "pairs"],
    beta: float,
    gamma: float,
) -> Float[Tensor, "pairs"]:
    """Returns -log sigma(beta (M(y_w) - M(y_l)) - gamma) for each pair, equation 6 of the paper.

    The reward is beta times the mean log-prob of a completion's tokens, with no reference, and gamma is the margin
    by which the chosen one's has to win.

    Args:
        policy_chosen_logps: Log-prob of the chosen completion in nats, a token (the paper) or summed: both alike.
        policy_rejected_logps: The same for the rejected completion.
        beta: Scale of the reward.
        gamma: Target margin of rewards.

    Returns:
        The loss of each pair, in nats, unreduced.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> simpo_loss(policy_chosen_logps=zero, policy_rejected_logps=zero, beta=2.0, gamma=1.0)
        tensor([1.3133])
    """
    return -F.logsigmoid(beta * (policy_chosen_logps - policy_rejected_logps) - gamma)
