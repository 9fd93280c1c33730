"""Process reward models, Lightman et al. 2023, arXiv 2305.20050; soft labels: Wang et al. 2023, arXiv 2312.08935."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def prm_loss(*, step_logits: Float[Tensor, "steps 2"], labels: Float[Tensor, "steps"]) -> Float[Tensor, "steps"]:
    """Returns -p log q - (1 - p) log(1 - q) for each step, q the model's probability that the step is right.

    Equation 2 of Math-Shepherd (Wang et al.); a label between 0 and 1 is the share of roll-outs from this step that
    reached the answer.

    Args:
        step_logits: The two logits, wrong and right, at each step's last token.
        labels: p in [0, 1].

    Returns:
        The loss of each step, in nats, unreduced.

    Example:
        >>> import torch
        >>> prm_loss(step_logits=torch.zeros(2, 2), labels=torch.tensor([1.0, 0.25]))
        tensor([0.6931, 0.6931])
    """
    wrong, right = step_logits.log_softmax(-1).unbind(-1)
    return -labels * right - (1 - labels) * wrong
