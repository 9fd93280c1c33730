"""FSDP2: which modules are sharded, and how a sharded model is made whole for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from alignment.models.logprob_model import BackboneModule
from alignment.utils.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Module = TypeVar("Module", bound=BackboneModule)


def shard(model: Module, mesh: DeviceMesh) -> Module:
    """Shards every decoder block, and what is left (embeddings, last norm, head) as one group.

    The forward of a :class:`BackboneModule` is the root's forward, so the head's weight, tied or not, is
    gathered once a step and stays until the backward pass has used it.

    Args:
        model: Whole on every rank, with the same weights (FSDP2 broadcasts none).
        mesh: One-dimensional mesh over the data-parallel ranks.

    Raises:
        UserError: If the architecture does not say what its blocks are.
    """
    names = model.hf_model._no_split_modules
    if not names:
        raise UserError(
            f"{type(model.hf_model).__name__} does not name its blocks (_no_split_modules): use hardware=ddp"
        )
    for module in list(model.modules()):
        if type(module).__name__ in names:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Says whether the model's weights are shared out over ranks, also while they are gathered."""
    return bool(_sharded_parts(model))


def to_shards(model: nn.Module) -> None:
    """Frees what a sharded model has gathered; the root stays gathered after a forward without a backward pass."""
    for part in _sharded_parts(model):
        part.reshard()


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Gathers a sharded model's weights on every rank, so that inside no forward needs the other ranks.

    Generation calls parts of the model, and a different number of times on each rank; with weights in
    shards the ranks would wait for each other forever. Does nothing for a model that is not sharded.
    """
    parts = _sharded_parts(model)
    if parts:
        # Generation enters below the root; FSDP2 would take the first block that it meets for a root of its own.
        fully_shard.state(model)._lazy_init()  # type: ignore[attr-defined]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not model, recurse=False)
            part.reshard()
        if parts:
            _forget_forwards(model)


def _sharded_parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _forget_forwards(model: nn.Module) -> None:
    """Drops what FSDP2 noted of forwards without a backward pass, as many on a rank as it had tokens to write.

    The next backward pass would fetch weights ahead by these notes: in another order on each rank, and wait forever.
    """
    order = fully_shard.state(model)._comm_ctx.post_forward_order  # type: ignore[attr-defined]
    for group in order:
        group._post_forward_indices.clear()
    order.clear()
