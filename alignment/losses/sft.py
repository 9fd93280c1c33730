"""Supervised fine-tuning: maximum likelihood of demonstrations."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def sft_loss(*, token_logps: Float[Tensor, "tokens"]) -> Float[Tensor, "tokens"]:
    """Returns the cross-entropy -log pi(y_t | x, y_<t) of each scored token, in nats, unreduced.

    Args:
        token_logps: Log-probs of the completion tokens.

    Example:
        >>> import torch
        >>> sft_loss(token_logps=torch.tensor([-0.5, -2.0]))
        tensor([0.5000, 2.0000])
    """
    return -token_logps
