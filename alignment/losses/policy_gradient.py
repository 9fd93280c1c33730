"""Losses of policy-gradient methods, one value a token or a sequence: what each item's log-prob is pushed by.

All take the log-prob under the policy that is trained and under the old one that sampled; r = exp(policy - old) is the
importance ratio. Advantages, and log-probs of the old policy, come without gradient. On the policy's own samples
(r = 1) each gradient is -A times that of the log-prob.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def clipped_ratio_loss(
    *,
    policy_logps: Float[Tensor, "items"],
    old_logps: Float[Tensor, "items"],
    advantages: Float[Tensor, "items"],
    clip_low: Annotated[float, "[0, inf)"],
    clip_high: Annotated[float, "[0, inf)"],
    dual_clip: Annotated[float, "(1, inf)"] | None,
) -> Float[Tensor, "items"]:
    """Returns -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), Schulman et al. 2017, arXiv 1707.06347, equation 7.

    For A < 0 a dual clip c bounds it from above: -max(min(...), c A), Ye et al. 2019, arXiv 1912.09729.
    The ratio of a token gives PPO and GRPO; that of a whole sequence GSPO: ``policy_logps`` is then
    :func:`sequence_ratio_logps`, and ``old_logps`` is 0.

    Args:
        policy_logps: In nats.
        old_logps: The same under the policy that sampled.
        advantages: A.
        clip_low: How far below 1 the ratio still counts where A < 0; from 1 on there is no lower bound.
        clip_high: How far above 1 the ratio still counts where A > 0. Larger than ``clip_low`` it is the clip-higher of
            Yu et al. 2025, arXiv 2503.14476 (DAPO), equation 10.
        dual_clip: c; larger than 1 + ``clip_high``, or it would clip where the ratio is trusted.

    Returns:
        One an item, in the unit of the advantages, unreduced.

    Deviations:
        None in value or gradient. The bounds are applied to log r, so that an overflowing ratio on the side that is
        clipped gives a gradient of 0 and not of NaN.

    Example:
        >>> logps, zero = torch.tensor([1.5, 1.5, 0.5]).log(), torch.zeros(3)
        >>> clipped_ratio_loss(policy_logps=logps, old_logps=zero, advantages=torch.tensor([1.0, -1.0, -1.0]),
        ...     clip_low=0.2, clip_high=0.2, dual_clip=None)
        tensor([-1.2000,  1.5000,  0.8000])
    """
    log_ratio = policy_logps - old_logps
    # The minimum lets r grow only up to the upper bound where A > 0, and shrink only down to the lower one where A < 0.
    rises = log_ratio.clamp(max=math.log1p(clip_high))
    falls = log_ratio.clamp(min=_lower_bound(clip_low), max=None if dual_clip is None else math.log(dual_clip))
    return -torch.where(advantages < 0, falls, rises).exp() * advantages


def truncated_importance(
    *, log_ratio: Float[Tensor, "items"], cap: Annotated[float, "[1, inf)"]
) -> Float[Tensor, "items"]:
    """Returns min(exp(log_ratio), cap): how much what another policy wrote counts.

    Truncated importance sampling (Ionides 2008, Journal of Computational and Graphical Statistics 17:295), per token or
    per sequence: the variance is bounded, at the price of a bias where the cap acts.

    Args:
        log_ratio: In nats: of the policy that is to be learnt from, less that of the one which wrote; without gradient.
        cap: The largest weight.

    Returns:
        One an item, without unit.

    Example:
        >>> truncated_importance(log_ratio=torch.tensor([0.5, 1.0, 8.0, 1e9]).log(), cap=2.0)
        tensor([0.5000, 1.0000, 2.0000, 2.0000])
    """
    return log_ratio.clamp(max=math.log(cap)).exp()


def is_clipped(
    *,
    policy_logps: Float[Tensor, "items"],
    old_logps: Float[Tensor, "items"],
    advantages: Float[Tensor, "items"],
    clip_low: Annotated[float, "[0, inf)"],
    clip_high: Annotated[float, "[0, inf)"],
) -> Bool[Tensor, "items"]:
    """Returns where :func:`clipped_ratio_loss` has no gradient because the ratio is out of bounds.

    A ratio beyond a bound whose advantage pulls it back is not clipped. What a dual clip takes away is not counted.

    Args:
        policy_logps: In nats.
        old_logps: The same under the policy that sampled.
        advantages: A.
        clip_low: As in the loss.
        clip_high: As in the loss.

    Returns:
        One an item.

    Example:
        >>> logps, zero = torch.tensor([1.5, 1.5, 0.5]).log(), torch.zeros(3)
        >>> is_clipped(policy_logps=logps, old_logps=zero, advantages=torch.tensor([1.0, -1.0, -1.0]),
        ...     clip_low=0.2, clip_high=0.2)
        tensor([ True, False,  True])
    """
    log_ratio = policy_logps - old_logps
    too_high = (advantages > 0) & (log_ratio > math.log1p(clip_high))
    too_low = (advantages < 0) & (log_ratio < _lower_bound(clip_low))
    return too_high | too_low


def cispo_loss(
    *,
    policy_logps: Float[Tensor, "items"],
    old_logps: Float[Tensor, "items"],
    advantages: Float[Tensor, "items"],
    clip_low: Annotated[float, "[0, inf)"] | None,
    clip_high: Annotated[float, "[0, inf)"],
) -> Float[Tensor, "items"]:
    """Returns -sg(clip(r, 1 - clip_low, 1 + clip_high)) A log pi, MiniMax 2025, arXiv 2506.13585, equations 4 and 5.

    The clipped ratio is a weight without gradient (sg), so every token keeps some gradient.

    Args:
        policy_logps: log pi, in nats.
        old_logps: The same under the policy that sampled.
        advantages: A.
        clip_low: ``None`` for no lower bound. The paper makes it so large that there is none, and tunes the upper one.
        clip_high: The upper bound is 1 + this. (TRL's ``epsilon_high`` is the bound itself.)

    Returns:
        One an item, unreduced. Its value means nothing; its gradient is -clip(r) A times that of log pi.

    Deviations:
        None.

    Example:
        >>> logps = torch.tensor([-1.0, -1.0], requires_grad=True)
        >>> cispo_loss(policy_logps=logps, old_logps=torch.tensor([-1.0, -4.0]), advantages=torch.ones(2),
        ...     clip_low=None, clip_high=4.0).sum().backward()
        >>> logps.grad
        tensor([-1., -5.])
    """
    ratio = (policy_logps - old_logps).detach().exp()
    weight = ratio.clamp(min=None if clip_low is None else 1 - clip_low, max=1 + clip_high)
    return -weight * advantages * policy_logps


def reinforce_loss(
    *,
    policy_logps: Float[Tensor, "items"],
    old_logps: Float[Tensor, "items"],
    advantages: Float[Tensor, "items"],
) -> Float[Tensor, "items"]:
    """Returns -r A: REINFORCE (Williams 1992), corrected for samples of an older policy.

    The gradient of r is r times that of log pi. So over samples of the old policy the expected gradient is exactly
    minus that of the expected reward under the trained one. The further apart they are, the larger the variance.

    Args:
        policy_logps: In nats. One a sequence takes a completion as one action, as RLOO's paper does.
        old_logps: The same under the policy that sampled.
        advantages: A.

    Returns:
        One an item, in the unit of the advantages, unreduced; -A where the policy is the old one.

    Deviations:
        Williams has -A log pi, of the same gradient where the policy is the old one. One a TOKEN, the ratio corrects
        for that token only, not for the tokens before it.

    Example:
        >>> logps = torch.tensor([-1.0], requires_grad=True)
        >>> loss = reinforce_loss(policy_logps=logps, old_logps=torch.tensor([-1.0]), advantages=torch.tensor([3.0]))
        >>> loss.sum().backward()
        >>> loss.item(), logps.grad
        (-3.0, tensor([-3.]))
    """
    return -(policy_logps - old_logps).exp() * advantages


def sequence_ratio_logps(
    *,
    policy_logps: Float[Tensor, "tokens"],
    old_logps: Float[Tensor, "tokens"],
    sequence_index: Int[Tensor, "tokens"],
    num_sequences: int,
) -> Float[Tensor, "sequences"]:
    """Returns the mean over each sequence's tokens of log r: the log of GSPO's ratio.

    Zheng et al. 2025, arXiv 2507.18071, equation 7: s = (pi(y) / pi_old(y))^(1 / length). Its clip range is
    far narrower than a token's, since a mean moves less.

    Args:
        policy_logps: In nats.
        old_logps: The same under the policy that sampled.
        sequence_index: The sequence of each token.
        num_sequences: Sequences in all.

    Returns:
        One a sequence, in nats a token; 0, a ratio of 1, for a sequence without tokens.

    Deviations:
        None.

    Example:
        >>> policy, old = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-2.0, -4.0, -3.0])
        >>> sequence_ratio_logps(policy_logps=policy, old_logps=old, sequence_index=torch.tensor([0, 0, 1]),
        ...     num_sequences=2)
        tensor([1.5000, 0.0000])
    """
    log_ratio = policy_logps - old_logps
    sums = log_ratio.new_zeros(num_sequences).index_add(0, sequence_index, log_ratio)
    return sums / sequence_index.bincount(minlength=num_sequences).clamp(min=1)


def _lower_bound(clip_low: float) -> float:
    """Of log r; a ratio is positive, so that 1 - clip_low <= 0 bounds nothing."""
    return math.log1p(-clip_low) if clip_low < 1 else -math.inf
