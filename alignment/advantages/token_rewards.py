"""Where a completion's score is paid."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from alignment.advantages.ragged import last_tokens


def terminal_rewards(
    *, rewards: Float[Tensor, "rollouts"], lengths: Int[Tensor, "rollouts"]
) -> Float[Tensor, "tokens"]:
    """Returns each completion's score at its last token, and 0 at all others.

    The last token is the end-of-sequence token of a completion that ended, and the last one generated of a truncated
    completion. As in Stiennon et al. 2020, arXiv 2009.01325, where nothing but the end is scored.

    Args:
        rewards: One a completion.
        lengths: Tokens of each completion, at least 1; the end-of-sequence token counts.

    Returns:
        One a token of all completions, in the unit of the rewards.

    Raises:
        ValueError: If a completion is empty, or there are not as many lengths as rewards.

    Deviations:
        None.

    Example:
        >>> import torch
        >>> terminal_rewards(rewards=torch.tensor([2.0, -1.0]), lengths=torch.tensor([3, 1]))
        tensor([ 0.,  0.,  2., -1.])
    """
    if len(rewards) != len(lengths):
        raise ValueError(f"{len(rewards)} rewards for {len(lengths)} completions: there must be one each")
    num_tokens = int(lengths.sum())
    places = last_tokens(lengths=lengths, num_tokens=num_tokens)
    return rewards.new_zeros(num_tokens).index_copy(0, places, rewards)
