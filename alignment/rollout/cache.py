"""What a model has read of a batch of rows, written in place.

transformers' own layer joins old and new keys and values anew at every token, which copies all of them. Here there
is room for tokens to come, and of rows that leave the batch only as many are moved as there are gaps to fill.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

#: Tokens that are made room for at a time. All is copied once in so many steps, and no row holds more in vain,
#: however many tokens it may come to.
ROOM_TOKENS = 64


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Returns a cache whose layers of plain full attention are written in place.

    Windows, recurrent states and whatever else a model's layers keep stay as transformers has them.
    """
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class GrowingLayer(DynamicLayer):
    """A layer of full attention, whose keys and values are views of the filled part of larger tensors.

    What is read first, the prompts, is held as it comes, without room: most often its rows are repeated next.
    Not for training: what an earlier token's gradient needs would be written over.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(
        self,
        key_states: Float[Tensor, "rows heads new size"],
        value_states: Float[Tensor, "rows heads new value_size"],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "rows heads tokens size"], Float[Tensor, "rows heads tokens value_size"]]:
        """Puts keys and values behind those that are here, and returns all."""
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        rows, tokens, new = len(self.keys), self.keys.shape[-2], key_states.shape[-2]
        if self._rooms is None or self._rooms[0].shape[-2] < tokens + new:
            every = torch.arange(rows, device=self.keys.device)
            self._rooms = (_with_room(self.keys, every, new=new), _with_room(self.values, every, new=new))
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:rows, :, tokens : tokens + new] = states
        return self._fill(rows, tokens + new)

    def batch_select_indices(self, indices: Int[Tensor, "taken"]) -> None:
        """Goes on with these rows; only those whose place changes are moved, unless there are to be more than now."""
        if self.keys is None or self.values is None:
            return
        rows, tokens = len(indices), self.keys.shape[-2]
        if self._rooms is None or rows > len(self.keys):
            self._rooms = (_with_room(self.keys, indices, new=1), _with_room(self.values, indices, new=1))
        else:
            moved = (indices != torch.arange(rows, device=indices.device)).nonzero()[:, 0]
            for filled in (self.keys, self.values):
                filled[moved] = filled[indices[moved]]
        self._fill(rows, tokens)

    def _fill(self, rows: int, tokens: int) -> tuple[Tensor, Tensor]:
        assert self._rooms is not None
        self.keys, self.values = (room[:rows, :, :tokens] for room in self._rooms)
        return self.keys, self.values


def _with_room(
    filled: Float[Tensor, "rows heads tokens size"], rows: Int[Tensor, "taken"], *, new: int
) -> Float[Tensor, "taken heads capacity size"]:
    """Copies rows into a tensor that has room for at least ``new`` more tokens."""
    _, heads, tokens, size = filled.shape
    room = filled.new_empty(len(rows), heads, tokens + max(new, ROOM_TOKENS), size)
    torch.index_select(filled, 0, rows, out=room[:, :, :tokens])
    return room
