"""Generalised advantage estimation, Schulman et al. 2015, arXiv 1506.02438."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from alignment.advantages.ragged import discounted_sums, last_tokens


def gae(
    *,
    token_rewards: Float[Tensor, "tokens"],
    values: Float[Tensor, "tokens"],
    bootstrap_values: Float[Tensor, "rollouts"],
    lengths: Int[Tensor, "rollouts"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "tokens"], Float[Tensor, "tokens"]]:
    """Returns sum_k (gamma lam)^k delta[t + k] for each token, equation 16 of the paper, and what to teach the critic.

    delta[t] = r[t] + gamma V[t + 1] - V[t]. V[t] is the critic's prediction BEFORE token t is chosen, from the prompt
    and the tokens ahead of t only; r[t] is paid for token t. With lam 1 the advantage is the discounted return
    minus V[t], equation 18; with lam 0 it is delta[t], equation 17.

    Args:
        token_rewards: r, one a token.
        values: V, one a token, in the unit of the rewards.
        bootstrap_values: The critic's prediction after the last token: 0 for a completion that ended, which nothing
            follows; for a truncated one the value of where it was cut, so that the cut does not count as an end.
        lengths: Tokens of each completion, at least 1.
        gamma: Discount a token.
        lam: Weight of what was seen later against what the critic says now; 1 trusts the rewards alone.

    Returns:
        The advantages, and the returns = advantages + values, one a token each.

    Raises:
        ValueError: If a completion is empty, or the lengths do not add up.

    Deviations:
        The sums end with the completion; the paper's are infinite.

    Example:
        >>> import torch
        >>> advantages, returns = gae(token_rewards=torch.tensor([0.0, 1.0]), values=torch.tensor([0.5, 0.5]),
        ...     bootstrap_values=torch.zeros(1), lengths=torch.tensor([2]), gamma=1.0, lam=0.5)
        >>> advantages, returns
        (tensor([0.2500, 0.5000]), tensor([0.7500, 1.0000]))
    """
    ends = last_tokens(lengths=lengths, num_tokens=len(values))
    next_values = values.roll(-1).index_copy(0, ends, bootstrap_values)
    deltas = token_rewards + gamma * next_values - values
    advantages = discounted_sums(deltas, lengths=lengths, discount=gamma * lam)
    return advantages, advantages + values
