"""Sample-based estimators of KL(policy || reference), after J. Schulman, "Approximating KL divergence" (2020).

With l = log policy(y) - log reference(y) for a sample y of the policy. All are in nats and unreduced.

What an estimator's VALUE estimates and where its GRADIENT leads are two questions (T20). Let p be the policy, q the
reference, and s the gradient of log p(y), which is also that of l. Sampling is not differentiated, and sum_y p s = 0:

- reverse KL, sum_y p l, has the gradient sum_y p s l + sum_y p s = E[l s].
- k1 as a loss: E[s] = 0. Nothing is learned; the noise remains.
- k2 as a loss: E[l s], reverse KL's.
- k3 as a loss: E[(1 - exp(-l)) s] = -sum_y q s. That is the gradient of forward KL(q || p) = sum_y q (log q - log p).
- k3 times r = p / p_old over samples of p_old, r differentiated too: E_old[r k3] = E[k3] = reverse KL at every p, so
  its gradient is reverse KL's, and it is so for samples of an older policy.
- k1 in the reward, R - beta l with l held fixed: -beta E[l s] on the objective, reverse KL's again.

A penalty's place and its estimator are fields of ``method.kl``: see docs/concepts/online.md.
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


def k3_importance(
    *, log_ratio: Float[Tensor, "*shape"], importance_log_ratio: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Returns exp(i) k3(l): unbiased for samples of an older policy, and as a loss its gradient is REVERSE KL's.

    i = log policy(y) - log old(y) keeps its gradient, also where its value is 0: that is what turns k3's gradient
    (derivation at the top of the file). DeepSeek-AI 2025, arXiv 2512.02556, section 3.1, has the same correction.

    Args:
        log_ratio: l, in nats, with gradient.
        importance_log_ratio: i, in nats, with gradient.

    Returns:
        Same shape, in nats, never negative.

    Example:
        >>> import torch
        >>> old = torch.tensor([-1.0])
        >>> policy = old.clone().requires_grad_()
        >>> k3_importance(log_ratio=policy - torch.tensor([-3.0]), importance_log_ratio=policy - old).sum().backward()
        >>> policy.grad  # l times the log-prob's own
        tensor([2.])
    """
    return importance_log_ratio.exp() * k3(log_ratio)
