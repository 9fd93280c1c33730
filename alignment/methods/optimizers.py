"""Optimisers from libraries that need not be installed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from alignment.utils.errors import ConfigError, UserError


def adamw_8bit(
    params: Iterable[dict[str, Any]],
    *,
    lr: Annotated[float, "[0, inf)"],
    betas: tuple[float, float],
    eps: Annotated[float, "(0, inf)"],
    weight_decay: Annotated[float, "[0, inf)"],
    min_8bit_size: Annotated[int, "[1, inf)"],
    paged: bool,
) -> Optimizer:
    """Returns bitsandbytes' AdamW, whose moments have 8 bits a number (Dettmers et al. 2021, arXiv 2110.02861).

    Two bytes of state a weight instead of eight, quantised in blocks of 256.

    Args:
        params: Parameter groups.
        lr: Learning rate.
        betas: Decay of the two moments.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled.
        min_8bit_size: Tensors of fewer weights keep moments of 32 bits.
        paged: Whether a GPU's moments move to the host's memory when its own is full.

    Raises:
        UserError: The package ``bitsandbytes`` is not installed.
        ConfigError: The weights are in shards (FSDP2).
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "optim=adamw_8bit needs the package bitsandbytes, which is not installed: "
            "pip install 'alignment[gpu]' (or pip install bitsandbytes)"
        ) from error
    groups = list(params)
    if any(isinstance(weight, DTensor) for group in groups for weight in group["params"]):
        hint = "8-bit moments do not know shards: use optim=adamw, or hardware=single_gpu or ddp"
        raise ConfigError("optim", got="adamw_8bit with FSDP2", expected="whole weights", hint=hint)
    common = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
    return AdamW8bit(groups, **common, min_8bit_size=min_8bit_size, is_paged=paged)
