"""Sample-based estimators of KL(policy || reference), after J. Schulman, "Approximating KL divergence" (2020).

With l = log policy(y) - log reference(y) for a sample y of the policy. All are in nats and unreduced.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def k1(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns l: unbiased, signed. Its expected gradient as a loss is zero; use it in rewards and metrics only."""
    return log_ratio


def k2(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns l^2 / 2: biased, never negative; as a loss its gradient is reverse KL's."""
    return log_ratio.square() / 2


def k3(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns exp(-l) - 1 + l: unbiased, never negative; as a bare loss its gradient is FORWARD KL's."""
    return (-log_ratio).expm1() + log_ratio
