"""Direct preference optimisation, Rafailov et al. 2023, arXiv 2305.18290."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def dpo_loss(
    *,
    policy_chosen_sum_logps: Float[Tensor, "pairs"],
    policy_rejected_sum_logps: Float[Tensor, "pairs"],
    reference_chosen_sum_logps: Float[Tensor, "pairs"],
    reference_rejected_sum_logps: Float[Tensor, "pairs"],
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, "pairs"]:
    """Returns -(1 - e) log sigma(beta d) - e log sigma(-beta d) for each pair.

    d = (log pi(y_w) - log pi_ref(y_w)) - (log pi(y_l) - log pi_ref(y_l)), equation 7 of the paper; with a label
    smoothing e > 0 it is conservative DPO (E. Mitchell, "A note on DPO with noisy preferences", 2023,
    equation 3), which takes e as the probability that a label is flipped.

    Args:
        policy_chosen_sum_logps: Sum over the chosen completion's tokens, in nats.
        policy_rejected_sum_logps: The same for the rejected completion.
        reference_chosen_sum_logps: The same under the reference, without gradient.
        reference_rejected_sum_logps: The same under the reference, without gradient.
        beta: Strength of the KL constraint; larger stays closer to the reference.
        label_smoothing: e in [0, 0.5).

    Returns:
        The loss of each pair, in nats, unreduced.

    Example:
        >>> import torch
        >>> zero = torch.zeros(1)
        >>> dpo_loss(policy_chosen_sum_logps=zero, policy_rejected_sum_logps=zero,
        ...     reference_chosen_sum_logps=zero, reference_rejected_sum_logps=zero,
        ...     beta=0.1, label_smoothing=0.0)
        tensor([0.6931])
    """
    chosen_log_ratio = policy_chosen_sum_logps - reference_chosen_sum_logps
    rejected_log_ratio = policy_rejected_sum_logps - reference_rejected_sum_logps
    logits = beta * (chosen_log_ratio - rejected_log_ratio)
    loss = -F.logsigmoid(logits)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-logits)
    return loss
