"""REINFORCE leave-one-out, Ahmadian et al. 2024, arXiv 2402.14740."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from alignment.advantages.moments import centred


def leave_one_out(*, rewards: Float[Tensor, "groups samples"]) -> Float[Tensor, "groups samples"]:
    """Returns R_i minus the mean reward of the other samples of its group, the paper's RLOO (Kool et al. 2019).

    With G samples that is G / (G - 1) (R_i - mean of all). The baseline does not depend on sample i, so the gradient
    estimate is unbiased. A penalty for leaving the reference belongs into the rewards, before this: subtracted
    afterwards it would have no baseline (T26).

    Args:
        rewards: The completions of a prompt are a group.

    Returns:
        Same shape and unit; exactly 0 where all rewards of a group are equal.

    Raises:
        ValueError: If a group has fewer than two samples: nothing would be left.

    Deviations:
        None.

    Example:
        >>> import torch
        >>> leave_one_out(rewards=torch.tensor([[1.0, 2.0, 6.0]]))
        tensor([[-3.0000, -1.5000,  4.5000]])
    """
    samples = rewards.shape[1]
    if samples < 2:
        raise ValueError(f"groups of {samples}: leaving one out needs at least 2 samples of a prompt")
    return centred(rewards) * (samples / (samples - 1))
