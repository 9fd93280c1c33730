"""Learning-rate schedules by optimiser step."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_decay(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup: Annotated[float, "[0, 1)"],
    decay: Literal["constant", "linear", "cosine"],
    final_fraction: Annotated[float, "[0, 1]"],
) -> LambdaLR:
    """Returns a linear warm-up to the optimiser's learning rate, followed by a decay.

    Args:
        optimizer: Its learning rate is the peak.
        total_steps: Optimiser steps of the whole run.
        warmup: Share of the steps that warm up, in [0, 1).
        decay: Shape after the warm-up.
        final_fraction: Learning rate at the end as a share of the peak; without meaning for ``constant``.
    """
    warmup_steps = math.ceil(warmup * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if decay == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        remaining = 1 - progress if decay == "linear" else (1 + math.cos(math.pi * progress)) / 2
        return final_fraction + (1 - final_fraction) * remaining

    return LambdaLR(optimizer, factor)
