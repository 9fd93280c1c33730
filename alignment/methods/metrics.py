"""Sums behind logged means: exact over micro-batches and ranks, and without a device sync until they are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

from alignment.ops.reduce import masked_total


class MetricSums:
    """Collects (sum, count) pairs by name and turns them into means.

    What is logged for an optimiser step is the mean over all of its records or tokens, however these were
    spread over micro-batches and ranks: two processes log what one process logs.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, name: str, values: Tensor, weights: Tensor | None) -> None:
        """Adds values, each counted by its weight."""
        pair = torch.stack(masked_total(values, weights))
        self._sums[name] = self._sums[name].to(pair.device) + pair if name in self._sums else pair

    def pop_means(self) -> dict[str, float]:
        """Returns the means over all ranks and starts afresh. Every rank must hold the same names.

        A name under which nothing was counted has no mean, and is left out.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        sums = torch.stack([self._sums[name] for name in names])
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # Restored ones are on the CPU, of which NCCL knows nothing.
            sums = sums.cuda() if dist.get_backend() == "nccl" else sums
            dist.all_reduce(sums)
        self._sums = {}
        return {name: total / count for name, (total, count) in zip(names, sums.tolist(), strict=True) if count}

    def state_dict(self) -> dict[str, Tensor]:
        """Returns this rank's sums."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores them."""
        self._sums = dict(state)

    def clear(self) -> None:
        """Drops what was collected."""
        self._sums = {}


def with_prefix(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics under ``prefix/``."""
    return {f"{prefix}/{name}": value for name, value in metrics.items()}
