"""Group-relative advantages, Shao et al. 2024, arXiv 2402.03300 (DeepSeekMath)."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from alignment.advantages.moments import centred, deviation, scaled


def group_advantages(
    *, rewards: Float[Tensor, "groups samples"], scale: Literal["group", "batch", "none"]
) -> Float[Tensor, "groups samples"]:
    """Returns (R - mean of its group) / std, section 4.1.2 of the paper.

    The std is that of the sample's own group, that of all rewards of the batch, or 1. Where all rewards of a group are
    equal its advantages are exactly 0.

    Args:
        rewards: The completions of a prompt are a group.
        scale: ``group``: std of the group, as in the paper. ``batch``: std of all rewards of the batch as they are, not
            centred by group first, so that differences between prompts count in it (TRL's meaning of the word).
            ``none``: undivided, Dr. GRPO (Liu et al. 2025, arXiv 2503.20783), whose authors show that
            the division favours prompts that are nearly always or nearly never solved.

    Returns:
        Same shape; in units of the std, or of the rewards for ``none``.

    Raises:
        ValueError: If a group has fewer than two samples: there is nothing to compare.

    Deviations:
        The paper does not say which std. This is the unbiased one (divided by n - 1), as in TRL, whose code adds
        1e-4 to it; nothing is added here, since an exact comparison takes care of groups without spread.

    Example:
        >>> import torch
        >>> group_advantages(rewards=torch.tensor([[0.0, 4.0], [3.0, 3.0]]), scale="none")
        tensor([[-2.,  2.],
                [ 0.,  0.]])
    """
    samples = rewards.shape[1]
    if samples < 2:
        raise ValueError(f"groups of {samples}: an advantage within a group needs at least 2 samples of a prompt")
    above_mean = centred(rewards)
    if scale == "none":
        return above_mean
    compared = rewards if scale == "group" else rewards.flatten()
    return scaled(above_mean, by=deviation(compared, correction=1))


def has_spread(*, rewards: Float[Tensor, "groups samples"]) -> Bool[Tensor, "groups"]:
    """Returns whether the rewards of a group differ at all: only then do its advantages teach anything.

    Dynamic sampling keeps these groups only: Yu et al. 2025, arXiv 2503.14476 (DAPO), equation 11, states it for
    rewards that are right or wrong.

    Args:
        rewards: The completions of a prompt are a group.

    Returns:
        One a group.

    Deviations:
        Any difference counts, so that it also serves rewards of other values.

    Example:
        >>> import torch
        >>> has_spread(rewards=torch.tensor([[0.0, 1.0], [3.0, 3.0]]))
        tensor([ True, False])
    """
    return rewards.amax(1) > rewards.amin(1)
