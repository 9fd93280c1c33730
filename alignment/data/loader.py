"""A loader that knows where it stands: any epoch can be taken up in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from alignment.data.batches import BatchMaker
from alignment.data.plan import MicroBatchPlan
from alignment.types import Batch
from alignment.utils.errors import ConfigError


class Planner(Protocol):
    """The plans of an epoch; as many in every epoch."""

    def __call__(self, *, epoch: int) -> list[MicroBatchPlan]:
        """Plans one epoch."""
        ...


class PlannedLoader:
    """Yields the micro-batches of one epoch after another; each iteration is the next epoch.

    It counts epochs itself: Lightning's own count is one too high after a resume from a checkpoint
    that was saved at the end of an epoch in a run that is limited by steps. Nothing happens before
    the first batch is asked for, because Lightning makes iterators that it never uses. The state
    counts batches that were trained on, never those that worker processes have made ahead.

    Args:
        maker: Makes a batch of a plan.
        planner: The plans of an epoch.
        geometry: What must be the same for a position to mean the same: config key -> value.
        num_workers: Processes that make batches ahead; 0 makes them here.
        pin_memory: Whether batches are put into page-locked memory.
        in_flight: How many batches were handed out but not trained on yet.
    """

    def __init__(
        self,
        *,
        maker: BatchMaker,
        planner: Planner,
        geometry: dict[str, Any],
        num_workers: int,
        pin_memory: bool,
        in_flight: Callable[[], int],
    ) -> None:
        self.maker = maker
        self._plans = _EpochPlans(planner)
        self._geometry = geometry
        self._in_flight = in_flight
        self._begun = False
        self._position = 0
        self._loader = DataLoader(
            maker,  # type: ignore[arg-type]
            batch_size=None,
            sampler=self._plans,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            # of its own: an iterator draws a seed when it starts, and must not draw it from the model's
            generator=torch.Generator(),
        )

    def start_at(self, done: int, epoch: int) -> None:
        """Leaves out the first ``done`` micro-batches of an epoch; all of them is the next epoch."""
        full = done >= self._plans.total
        self._plans.epoch, self._plans.start = (epoch + 1, 0) if full else (epoch, done)
        self._position = self._plans.start
        self._begun = False

    def __len__(self) -> int:
        return self._plans.total

    def __iter__(self) -> Iterator[Batch]:
        if self._begun:
            self.start_at(0, self._plans.epoch + 1)
        self._begun = True
        for batch in self._loader:
            self._position += 1
            yield batch

    def close(self) -> None:
        """Ends the worker processes; left to the garbage collector, each takes five seconds to be missed."""
        workers = self._loader._iterator
        if isinstance(workers, _MultiProcessingDataLoaderIter):
            workers._shutdown_workers()
            self._loader._iterator = None

    def state_dict(self) -> dict[str, Any]:
        """Where training stands."""
        return {"epoch": self._plans.epoch, "done": self._position - self._in_flight(), "geometry": self._geometry}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where the state was saved.

        Raises:
            ConfigError: Steps were cut up in another way, or the data are others.
        """
        check_same_steps(self._geometry, state["geometry"])
        self.start_at(state["done"], state["epoch"])


def check_same_steps(now: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Refuses to take up a position that means another now.

    Args:
        now: What decides how data are cut into steps: config key -> value.
        saved: The same when the position was saved.

    Raises:
        ConfigError: Naming the key that has another value.
    """
    for name, value in saved.items():
        if now[name] != value:
            raise ConfigError(
                name,
                got=now[name],
                expected=f"{value}, as when the checkpoint was saved",
                hint="A run is resumed only with the same data, cut into the same steps",
            )


class _EpochPlans(Sampler[MicroBatchPlan]):
    """The plans that are still to come in the current epoch."""

    def __init__(self, planner: Planner) -> None:
        self.epoch, self.start = 0, 0
        self._planner = planner
        self.total = len(planner(epoch=0))

    def __iter__(self) -> Iterator[MicroBatchPlan]:
        return iter(self._planner(epoch=self.epoch)[self.start :])

    def __len__(self) -> int:
        return self.total


def _as_it_is(batch: Batch) -> Batch:
    return batch
