"""Odds ratio preference optimisation, Hong et al. 2024, arXiv 2403.07691."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def log_odds(*, mean_logps: Float[Tensor, "sequences"]) -> Float[Tensor, "sequences"]:
    """Returns log(p / (1 - p)) with p = exp(M), the geometric mean of a completion's token probabilities.

    Near p = 1 the odds and their gradient grow without bound. M is kept below zero by the type's smallest step, so
    that both stay finite; a completion that is as certain as that has no gradient left in its log-probs anyway.

    Args:
        mean_logps: M(y), in nats a token, at most 0.

    Example:
        >>> log_odds(mean_logps=torch.tensor([0.5, 0.9]).log())
        tensor([0.0000, 2.1972])
    """
    below_zero = mean_logps.clamp(max=-torch.finfo(mean_logps.dtype).eps)
    return below_zero - torch.log(-torch.expm1(below_zero))


def orpo_loss(
    *, policy_chosen_mean_logps: Float[Tensor, "pairs"], policy_rejected_mean_logps: Float[Tensor, "pairs"]
) -> Float[Tensor, "pairs"]:
    """Returns -log sigma(log odds(y_w) - log odds(y_l)) for each pair, equation 7 of the paper.

    Args:
        policy_chosen_mean_logps: M(y_w), the mean over the chosen completion's tokens, in nats a token.
        policy_rejected_mean_logps: The same for the rejected completion.

    Returns:
        The odds ratio's part of the loss for each pair, in nats, unreduced, without its coefficient.

    Example:
        >>> chosen, rejected = torch.tensor([0.5]).log(), torch.tensor([0.5]).log()
        >>> orpo_loss(policy_chosen_mean_logps=chosen, policy_rejected_mean_logps=rejected)
        tensor([0.6931])
    """
    chosen_log_odds = log_odds(mean_logps=policy_chosen_mean_logps)
    return -F.logsigmoid(chosen_log_odds - log_odds(mean_logps=policy_rejected_mean_logps))
