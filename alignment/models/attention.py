"""Attention inside the sequences of one row: several behind one another, or several behind one prompt.

It is offered to transformers as an attention implementation of its own, :data:`SEGMENTED`. Without a batch's
:class:`~alignment.types.Segments` that is exactly ``sdpa``; with them every sequence is computed as ``sdpa`` computes
it alone, so that no mask over the whole row ever exists.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignment.models.kernels import Blocks, Runs
from alignment.types import Segments

#: The name under which transformers knows it.
SEGMENTED = "segmented_sdpa"
#: The most numbers that a mask may hold: 16 MiB in fp32. Queries beyond it wait for the next block.
MASK_NUMBERS = 2**22

#: (query, key, value, columns that stand before the first query) -> output, as transformers orders it.
_Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def segmented_attention(
    module: nn.Module,
    query: Float[Tensor, "rows heads width size"],
    key: Float[Tensor, "rows kv_heads width size"],
    value: Float[Tensor, "rows kv_heads width size"],
    attention_mask: Tensor | None,
    *,
    segments: Segments | Blocks | Runs | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "rows width heads size"], None]:
    """Computes a layer's attention; the signature is transformers'.

    On a CPU the sequences are computed one by one, and a prompt's attention once for all of its completions. Elsewhere,
    and in a compiled graph, they are put side by side, padded, into one call: attention alone is padded then. Where
    another kernel was prepared for the row (:mod:`alignment.models.kernels`), that one computes it.
    """
    if segments is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **options
        )
    if not isinstance(segments, Segments):
        return segments.attend(module, query, key, value, window=sliding_window, options=options), None
    attend = partial(_attend, module, window=sliding_window, options=options)
    if query.device.type == "cpu" and not torch.compiler.is_compiling():
        return _one_by_one(query, key, value, segments, attend), None
    return _side_by_side(query, key, value, segments, attend), None


def _one_by_one(query: Tensor, key: Tensor, value: Tensor, segments: Segments, attend: _Attend) -> Tensor:
    sizes = [size for group in segments.groups for size in group]
    pieces = zip(*(states.split(sizes, dim=2) for states in (query, key, value)), strict=True)
    outputs: list[Tensor] = []
    for trunk, *branches in segments.groups:
        q, k, v = next(pieces)
        outputs.append(attend(q, k, v, 0))
        for _ in branches:
            branch_q, branch_k, branch_v = next(pieces)
            outputs.append(attend(branch_q, torch.cat([k, branch_k], 2), torch.cat([v, branch_v], 2), trunk))
    return torch.cat(outputs, dim=1)


def _side_by_side(query: Tensor, key: Tensor, value: Tensor, segments: Segments, attend: _Attend) -> Tensor:
    def rows(states: Tensor) -> Tensor:
        flat = states[0].transpose(0, 1)
        return flat.index_select(0, segments.places.flatten()).unflatten(0, segments.places.shape).transpose(1, 2)

    outputs = attend(rows(query), rows(key), rows(value), 0)
    return outputs.flatten(0, 1).index_select(0, segments.home)[None]


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    before: int,
    *,
    window: int | None,
    options: dict[str, Any],
) -> Tensor:
    """Lets each query see the keys up to its own column, those of its window if there is one."""
    columns = key.shape[2]
    if before == 0 and (window is None or columns <= window):
        return sdpa_attention_forward(module, query, key, value, None, **options)[0]
    # So many blocks of queries, each of a size that a compiled graph need not know: it is made for their number.
    count = -(-query.shape[2] // max(1, MASK_NUMBERS // columns))
    block = -(-query.shape[2] // count)
    outputs: list[Tensor] = []
    for number in range(count):
        first, last = number * block, min((number + 1) * block, query.shape[2])
        begin = 0 if window is None else max(0, before + first - window + 1)
        seen = slice(begin, before + last)
        mask = _mask(before + first - begin, last - first, before + last - begin, window, like=query)
        part = sdpa_attention_forward(
            module, query[:, :, first:last], key[:, :, seen], value[:, :, seen], mask, **options
        )
        outputs.append(part[0])
    return torch.cat(outputs, dim=1)


def _mask(offset: int, queries: int, keys: int, window: int | None, *, like: Tensor) -> Tensor:
    """0 where a query sees a key, minus infinity elsewhere; query 0 is in the column of key ``offset``."""
    mask = like.new_full((1, 1, queries, keys), float("-inf"))
    hidden = mask.triu(offset + 1)
    return hidden if window is None else hidden + mask.tril(offset - window)


AttentionInterface.register(SEGMENTED, segmented_attention)
AttentionMaskInterface.register(SEGMENTED, sdpa_mask)
