"""Which of a prompt's fresh samples are compared: online DPO, Guo et al. 2024, arXiv 2402.04792."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor


def ranked_pairs(
    *, rewards: Float[Tensor, "groups samples"], pairing: Literal["best_worst", "all"], min_margin: float
) -> tuple[Int[Tensor, "pairs"], Int[Tensor, "pairs"]]:
    """Returns the flat places (group * samples + sample) of each pair's chosen and rejected completion.

    A pair is kept where its rewards differ, by at least ``min_margin``: a tie says nothing. Among equal rewards the
    first sample is taken.

    Args:
        rewards: The completions of a prompt are a group; from a reward model, a judge or a verifier.
        pairing: ``best_worst``: the best sample of a group against its worst, one pair a group at most. ``all``: every
            two samples of a group, the better one chosen.
        min_margin: Least difference, in the unit of the rewards.

    Returns:
        Chosen and rejected, one a pair, group by group; both empty where no pair is left.

    Raises:
        ValueError: If ``min_margin`` is negative: no pair is that close.

    Deviations:
        The paper has two samples of a prompt, which a language model ranks, and no margin.

    Example:
        >>> ranked_pairs(rewards=torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]]), pairing="best_worst", min_margin=0.0)
        (tensor([1]), tensor([0]))
    """
    if min_margin < 0:
        raise ValueError(f"min_margin is {min_margin}: the difference of a ranked pair is never negative")
    samples = rewards.shape[1]
    if pairing == "best_worst":
        better, worse = rewards.argmax(1, keepdim=True), rewards.argmin(1, keepdim=True)
    else:
        places = torch.arange(samples, device=rewards.device)
        better, worse = places.repeat_interleave(samples), places.repeat(samples)
    first = samples * torch.arange(len(rewards), device=rewards.device)[:, None]
    chosen, rejected = (first + better).flatten(), (first + worse).flatten()
    margins = rewards.flatten()[chosen] - rewards.flatten()[rejected]
    is_pair = (margins > 0) & (margins >= min_margin)
    return chosen[is_pair], rejected[is_pair]
