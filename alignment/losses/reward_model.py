"""Reward models on preferences, Bradley and Terry 1952; Stiennon et al. 2020, arXiv 2009.01325."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def reward_model_loss(
    *,
    chosen_rewards: Float[Tensor, "pairs"],
    rejected_rewards: Float[Tensor, "pairs"],
    margins: Float[Tensor, "pairs"],
    probabilities: Float[Tensor, "pairs"],
) -> Float[Tensor, "pairs"]:
    """Returns -p log sigma(d - m) - (1 - p) log sigma(m - d) for each pair, d = r(chosen) - r(rejected).

    With p = 1 and m = 0 it is equation 1 of Stiennon et al.; the margin m is Llama 2's (Touvron et al. 2023, arXiv
    2307.09288, equation 2). With soft labels it is the cross-entropy between the annotators' vote and the model's.

    Args:
        chosen_rewards: Rewards of the chosen completions.
        rejected_rewards: Rewards of the rejected ones.
        margins: By how much the chosen one should lead, in the reward's own unit; 0 where it is not known.
        probabilities: P(the chosen one is the better), in [0, 1]; 1 for a hard label, .5 for a tie.

    Returns:
        The loss of each pair, in nats, unreduced.

    Example:
        >>> import torch
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> reward_model_loss(chosen_rewards=zero, rejected_rewards=zero, margins=zero, probabilities=one)
        tensor([0.6931])
    """
    logits = chosen_rewards - rejected_rewards - margins
    return -probabilities * F.logsigmoid(logits) - (1 - probabilities) * F.logsigmoid(-logits)


def centering_penalty(
    *, chosen_rewards: Float[Tensor, "pairs"], rejected_rewards: Float[Tensor, "pairs"]
) -> Float[Tensor, "pairs"]:
    """Returns (r(chosen) + r(rejected))^2: pins the level that preferences leave open (Eisenstein et al. 2023).

    Source: "Helping or herding? Reward model ensembles mitigate but do not eliminate reward hacking", arXiv
    2312.09244, section 2.

    Example:
        >>> import torch
        >>> centering_penalty(chosen_rewards=torch.tensor([3.0]), rejected_rewards=torch.tensor([-1.0]))
        tensor([4.])
    """
    return (chosen_rewards + rejected_rewards).square()
