"""Identity preference optimisation, Azar et al. 2023, arXiv 2310.12036."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def ipo_loss(
    *,
    policy_chosen_logps: Float[Tensor, "pairs"],
    policy_rejected_logps: Float[Tensor, "pairs"],
    reference_chosen_logps: Float[Tensor, "pairs"],
    reference_rejected_logps: Float[Tensor, "pairs"],
    tau: float,
) -> Float[Tensor, "pairs"]:
    """Returns (h - 1 / (2 tau))^2 for each pair, equation 17 of the paper.

    h = (log pi(y_w) - log pi_ref(y_w)) - (log pi(y_l) - log pi_ref(y_l)). Unlike DPO's, the loss is bounded below at a
    finite h, so that labels without noise do not drive the policy away from its reference.

    Args:
        policy_chosen_logps: Log-prob of the chosen completion in nats, summed or a token: all four alike.
        policy_rejected_logps: The same for the rejected completion.
        reference_chosen_logps: The same under the reference, without gradient.
        reference_rejected_logps: The same under the reference, without gradient.
        tau: Strength of the regularisation; larger stays closer to the reference.

    Returns:
        The loss of each pair, unreduced.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> ipo_loss(policy_chosen_logps=zero, policy_rejected_logps=zero,
        ...     reference_chosen_logps=zero, reference_rejected_logps=zero, tau=0.5)
        tensor([1.])
    """
    chosen_log_ratio = policy_chosen_logps - reference_chosen_logps
    rejected_log_ratio = policy_rejected_logps - reference_rejected_logps
    return (chosen_log_ratio - rejected_log_ratio - 1 / (2 * tau)).square()
