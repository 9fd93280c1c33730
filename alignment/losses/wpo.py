"""Weights of weighted preference optimisation, Zhou et al. 2024, arXiv 2406.11827."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def wpo_weights(
    *,
    chosen_alignment_nats: Float[Tensor, "pairs"],
    rejected_alignment_nats: Float[Tensor, "pairs"],
) -> Float[Tensor, "pairs"]:
    """Returns min(1, w(y_w) w(y_l)) for each pair, without gradient: how near its completions are to the policy's own.

    w(y) = exp(mean over the tokens of [log pi(y_t) - log sum_v pi(v)^2]), the paper's sampled alignment: a
    completion that the policy would have sampled has a weight of about 1. The cap at 1 is the authors' code.

    Args:
        chosen_alignment_nats: log w of the chosen completion.
        rejected_alignment_nats: log w of the rejected completion.

    Example:
        >>> import torch
        >>> wpo_weights(chosen_alignment_nats=torch.tensor([-1.0, 0.5]),
        ...     rejected_alignment_nats=torch.tensor([-1.0, 0.5]))
        tensor([0.1353, 1.0000])
    """
    return (chosen_alignment_nats + rejected_alignment_nats).detach().exp().clamp(max=1)
