"""How small heads read a trunk: at which places, and in which precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from alignment.types import TokenBatch, Values


def last_token_index(batch: TokenBatch) -> Int[Tensor, "sequences"]:
    """Returns the flat index of each sequence's last scored token, which is its last real one.

    >>> from alignment.types import TokenBatch
    >>> ids = torch.arange(8).view(2, 4)
    >>> places = torch.tensor([1, 2, 4])  # two scored tokens in the first row, one in the second
    >>> batch = TokenBatch(ids, None, None, places, places + 1, places, torch.tensor([0, 0, 1]), 2, 7)
    >>> last_token_index(batch)
    tensor([3, 5])
    """
    lengths = torch.bincount(batch.sequence_index, minlength=batch.num_sequences)
    return batch.target_index[lengths.cumsum(0) - 1]


def project(hidden: Tensor, head: nn.Linear) -> Tensor:
    """Projects in fp32 (fp64 for fp64 inputs) whatever the weights' type."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.to(dtype)
        return F.linear(hidden.to(dtype), head.weight.to(dtype), bias)


def values_at(hidden: Float[Tensor, "positions hidden"], batch: TokenBatch, *, head: nn.Linear) -> Values:
    """Reads values from hidden states: before each scored token, where it is predicted, and behind each sequence."""
    before, after = hidden[batch.predictor_index], hidden[last_token_index(batch)]
    return Values(before=project(before, head)[:, 0], after=project(after, head)[:, 0])
