"""Rewards of DPO under other divergences than reverse KL, Wang et al. 2023, arXiv 2309.16240.

A divergence D_f(policy || reference) = E_ref[f(u)] with u = policy / reference makes f'(u) take the place of log u in
DPO's loss. Each function here is f' as a function of log u. Constants cancel in the difference of a pair; they are
chosen so that a policy that is its reference has reward 0.

An exponential of a log-ratio of whole completions overflows fp32 at 88 nats. Exponents end at ``MAX_EXPONENT``; a
completion beyond has no gradient any more.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

#: In nats.
MAX_EXPONENT = 80.0


def reverse_kl(*, log_ratio: Float[Tensor, "sequences"]) -> Float[Tensor, "sequences"]:
    """Returns log u: plain DPO.

    Args:
        log_ratio: log u, in nats.
    """
    return log_ratio


def forward_kl(*, log_ratio: Float[Tensor, "sequences"]) -> Float[Tensor, "sequences"]:
    """Returns 1 - 1 / u. It is bounded above and falls without bound: it covers the reference's mass.

    Args:
        log_ratio: log u, in nats.

    Example:
        >>> import torch
        >>> forward_kl(log_ratio=torch.tensor([0.0, 2.0]))
        tensor([0.0000, 0.8647])
    """
    return 1 - (-log_ratio).clamp(max=MAX_EXPONENT).exp()


def js(*, log_ratio: Float[Tensor, "sequences"]) -> Float[Tensor, "sequences"]:
    """Returns log(2u / (1 + u)), of the Jensen-Shannon divergence; at most log 2.

    Args:
        log_ratio: log u, in nats.

    Example:
        >>> import torch
        >>> js(log_ratio=torch.tensor([0.0, 100.0]))
        tensor([0.0000, 0.6931])
    """
    return math.log(2) + F.logsigmoid(log_ratio)


def alpha(*, log_ratio: Float[Tensor, "sequences"], alpha: Annotated[float, "(0, 1)"]) -> Float[Tensor, "sequences"]:
    """Returns (1 - u^-alpha) / alpha: reverse KL as alpha goes to 0, forward KL at 1.

    Args:
        log_ratio: log u, in nats.
        alpha: Where between the two.

    Example:
        >>> import torch
        >>> alpha(log_ratio=torch.tensor([0.0, 2.0]), alpha=0.5)
        tensor([0.0000, 1.2642])
    """
    return -(-alpha * log_ratio).clamp(max=MAX_EXPONENT).expm1() / alpha
