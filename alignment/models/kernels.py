"""Attention of several sequences in one row by a single call, for GPUs: FlexAttention and variable-length attention.

Both need more of a row than :class:`~alignment.types.Segments` says: which blocks of it meet, or where each run of
queries has its keys. That is worked out once a forward pass, before the first layer, by :func:`prepare`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from alignment.types import Segments

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedConfig

#: What computes the attention inside a row. ``sdpa`` is the reference, and takes over where the others cannot run.
Kernel = Literal["sdpa", "flex", "varlen"]
#: Places of a row that FlexAttention takes together.
BLOCK = 128
_MOST_GRAPHS = 64


def kernel_of(attention: str) -> Kernel:
    """Returns the kernel of an attention implementation; those that cannot tell sequences apart never need one."""
    return attention if attention in get_args(Kernel) else "sdpa"  # type: ignore[return-value]


def plain_attention(attention: str) -> str:
    """Returns transformers' name for the attention of rows of one sequence: the kernels are for several."""
    return "sdpa" if attention in get_args(Kernel) else attention


def prepare(
    segments: Segments, kernel: Kernel, *, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype
) -> Segments | Blocks | Runs:
    """Returns what the layers need to know of a row.

    Args:
        segments: How the row is cut.
        kernel: As configured. On a CPU it is ``sdpa``, and so is ``varlen`` in fp32, which it does not know.
        config: The architecture, for its sliding window.
        device: Where the row is computed.
        dtype: Of the weights; autocast's goes before it.
    """
    if kernel == "sdpa" or device.type == "cpu":
        return segments
    if kernel == "flex":
        return Blocks.of(segments, windows={None, window_of(config)})
    computed = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype
    return segments if computed == torch.float32 else Runs.of(segments, dtype=computed)


def window_of(config: PreTrainedConfig) -> int | None:
    """Returns how many places, its own included, a query of a sliding-window layer sees."""
    return getattr(config.get_text_config(), "sliding_window", None)


class _Part(NamedTuple):
    """A trunk or a branch: where it begins, its size, and where the trunk before it begins and how long that is."""

    begin: int
    size: int
    trunk: int
    trunk_size: int


def _parts(segments: Segments) -> Iterator[_Part]:
    begin = 0
    for size, *branches in segments.groups:
        trunk = begin
        yield _Part(begin, size, trunk, 0)
        begin += size
        for branch in branches:
            yield _Part(begin, branch, trunk, size)
            begin += branch


@dataclass(frozen=True)
class Blocks:
    """A row for FlexAttention (Dong et al. 2024, arXiv 2412.05496).

    Attributes:
        masks: For each sliding window (``None``: without one) which blocks of queries meet which blocks of keys.
    """

    masks: dict[int | None, BlockMask]

    @classmethod
    def of(cls, segments: Segments, *, windows: set[int | None]) -> Blocks:
        """Works out a row's blocks; no mask over places is made, only one over blocks."""
        from torch.nn.attention.flex_attention import BlockMask

        allow_graphs()
        device, width = segments.places.device, segments.home.numel()
        begin, size, trunk_begin, trunk_size = torch.tensor(list(_parts(segments))).T
        parts = torch.stack([begin, trunk_begin, trunk_begin + trunk_size, trunk_size - begin])
        own, trunk, trunk_end, shift = parts.repeat_interleave(size, dim=1).to(device, non_blocking=True)
        position = torch.arange(width, device=device) + shift
        meet = blocks_that_meet(own, trunk, trunk_end)
        numbers = meet.sum(-1, dtype=torch.int32)[None, None]
        order = meet.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)[None, None]

        def mask(window: int | None) -> BlockMask:
            # One formula for layers with and without a window: a constant in it would be one more graph to compile.
            hidden_up_to = position - (width if window is None else window)

            def sees(_row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                in_trunk = (key >= trunk[query]) & (key < trunk_end[query])
                in_window = position[key] > hidden_up_to[query]
                return (key <= query) & ((key >= own[query]) | in_trunk) & in_window

            return BlockMask.from_kv_blocks(numbers, order, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(width, width))

        return cls({window: mask(window) for window in windows})

    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "rows heads width size"],
        key: Float[Tensor, "rows kv_heads width size"],
        value: Float[Tensor, "rows kv_heads width size"],
        *,
        window: int | None,
        options: dict[str, Any],
    ) -> Float[Tensor, "rows width heads size"]:
        """Computes a layer's attention."""
        from transformers.integrations.flex_attention import flex_attention_forward

        # Under autocast rotary embeddings leave queries and keys in fp32, and values are in half precision.
        query, key = query.to(value.dtype), key.to(value.dtype)
        return flex_attention_forward(module, query, key, value, self.masks[window], **options)[0]


@dataclass(frozen=True)
class Runs:
    """A row for variable-length attention: each trunk and each branch is a run of queries with keys of its own.

    Attributes:
        query_ends: Where each run's queries end in the row, after a 0.
        key_ends: Where each run's keys end among ``places``, after a 0.
        longest_query: Most queries of a run.
        longest_key: Most keys of a run.
        places: For each run the places of its keys: of a branch the trunk's, then its own.
        dtype: Half precision to compute in.
    """

    query_ends: Int[Tensor, "runs_and_one"]
    key_ends: Int[Tensor, "runs_and_one"]
    longest_query: int
    longest_key: int
    places: Int[Tensor, "keys"]
    dtype: torch.dtype

    @classmethod
    def of(cls, segments: Segments, *, dtype: torch.dtype) -> Runs:
        """Works out a row's runs."""
        parts = list(_parts(segments))
        queries, keys = [part.size for part in parts], [part.trunk_size + part.size for part in parts]
        spans = [(first, size) for part in parts for first, size in ((part.trunk, part.trunk_size), part[:2])]
        places = torch.cat([torch.arange(first, first + size) for first, size in spans])

        def there(tensor: Tensor) -> Tensor:
            return tensor.to(segments.places.device, non_blocking=True)

        return cls(
            query_ends=there(torch.tensor([0, *queries], dtype=torch.int32).cumsum(0, dtype=torch.int32)),
            key_ends=there(torch.tensor([0, *keys], dtype=torch.int32).cumsum(0, dtype=torch.int32)),
            longest_query=max(queries),
            longest_key=max(keys),
            places=there(places),
            dtype=dtype,
        )

    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "rows heads width size"],
        key: Float[Tensor, "rows kv_heads width size"],
        value: Float[Tensor, "rows kv_heads width size"],
        *,
        window: int | None,
        options: dict[str, Any],
    ) -> Float[Tensor, "rows width heads size"]:
        """Computes a layer's attention: a run's last query stands at its last key, and sees none behind its own."""
        from torch.nn.attention.varlen import varlen_attn

        heads = query.shape[1] // key.shape[1]
        shares: dict[str, Any] = {"enable_gqa": heads > 1} if "enable_gqa" in signature(varlen_attn).parameters else {}
        if not shares:  # torch 2.11: several heads cannot be told to share a key
            key, value = (states.repeat_interleave(heads, dim=1) for states in (key, value))
        q, k, v = (states[0].transpose(0, 1).to(self.dtype) for states in (query, key, value))
        output = varlen_attn(
            q.contiguous(),
            k.index_select(0, self.places),
            v.index_select(0, self.places),
            self.query_ends,
            self.key_ends,
            self.longest_query,
            self.longest_key,
            scale=options.get("scaling"),
            # Keys before its own that a query sees (-1: all), and behind it.
            window_size=(-1 if window is None else window - 1, 0),
            **shares,
        )
        assert isinstance(output, Tensor)
        return output[None]


def allow_graphs() -> None:
    """Lets FlexAttention be compiled for as many kinds of rows as there are, and never run uncompiled.

    Without gradients, in a window, under autocast, with one block alone it is another graph; beyond the limit of eight,
    uncompiled, it would make a mask over all places of a row, without a word.
    """
    config = torch._dynamo.config
    if not config.fail_on_recompile_limit_hit:
        config.recompile_limit = max(config.recompile_limit, _MOST_GRAPHS)
        config.fail_on_recompile_limit_hit = True


def blocks_that_meet(
    own: Int[Tensor, "width"], trunk: Int[Tensor, "width"], trunk_end: Int[Tensor, "width"]
) -> Bool[Tensor, "blocks blocks"]:
    """Tells which blocks of keys any query of a block sees, sliding windows aside.

    Args:
        own: For each place where its own trunk or branch begins.
        trunk: For a place in a branch where its trunk begins; for another any place.
        trunk_end: Behind that trunk's last place; for a place in no branch the same as ``trunk``.
    """
    count = -(-own.numel() // BLOCK)
    place = torch.arange(own.numel(), device=own.device)
    in_branch = (trunk_end > trunk).long()
    # A place's keys are two spans. Counted +1 in the block where a span begins and -1 behind the one where it ends,
    # the running sum over blocks is how many of a block's places see another.
    changes = torch.zeros(count, count + 1, dtype=torch.long, device=own.device)
    spans = ((own, place, torch.ones_like(place)), (trunk, trunk_end - in_branch, in_branch))
    for first, last, number in spans:
        changes.index_put_((place // BLOCK, first // BLOCK), number, accumulate=True)
        changes.index_put_((place // BLOCK, last // BLOCK + 1), -number, accumulate=True)
    return changes.cumsum(-1)[:, :count] > 0
