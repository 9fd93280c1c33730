"""Prompts in, micro-batches of fresh experience out: what an online method trains on looks like any other data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from alignment.data.loader import PlannedLoader
from alignment.data.plan import MicroBatchPlan
from alignment.rollout.experience import Experience
from alignment.types import Batch, PromptBatch
from alignment.utils.errors import ConfigError


class Learner(Protocol):
    """Whoever writes completions and says how to learn from them."""

    def collect(self, prompts: Iterator[PromptBatch], number: int) -> Experience | None:
        """Writes completions of the next prompts and measures them; ``None`` where no prompt is left.

        Args:
            prompts: Batches of prompts; as many are taken as are needed.
            number: How many experiences there were before.
        """
        ...

    def plan(self, experience: Experience, number: int) -> list[MicroBatchPlan]:
        """This rank's micro-batches of an experience, all optimiser steps of all epochs over it."""
        ...

    def micro_batch(self, experience: Experience, plan: MicroBatchPlan) -> Batch:
        """Makes one of them."""
        ...


class ExperienceLoader:
    """Yields the micro-batches of one experience after another, each written by the policy as it is by then.

    The experience at hand is part of the state: a run can be taken up between any two of its steps.

    Args:
        prompts: Batches of prompts, this rank's share.
        learner: Makes experiences and micro-batches.
        length: Micro-batches in a pass over the prompts, at the most: an experience may have fewer groups, or be left.
        settings: What must be the same for a position to mean the same: config key -> value.
        in_flight: How many micro-batches were handed out but not trained on yet.
    """

    def __init__(
        self,
        prompts: PlannedLoader,
        *,
        learner: Learner,
        length: int,
        settings: dict[str, Any],
        in_flight: Callable[[], int],
    ) -> None:
        self._prompts, self._learner, self._length = prompts, learner, length
        self._settings, self._in_flight = settings, in_flight
        self._experience: Experience | None = None
        self._plans: list[MicroBatchPlan] = []
        self._place = self._number = self._given = 0
        self._pass_ends = self._resumed = False

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        if not self._resumed:
            self._given, self._pass_ends = 0, False
        self._resumed = False
        stream: Iterator[Any] = iter(()) if self._pass_ends else iter(self._prompts)
        while True:
            if self._experience is None:
                self._experience = self._learner.collect(stream, self._number)
                if self._experience is None:
                    return
                self._plans = self._learner.plan(self._experience, self._number)
                self._number, self._place = self._number + 1, 0
            while self._place < len(self._plans):
                plan = self._plans[self._place]
                self._place += 1
                self._given += 1
                yield self._learner.micro_batch(self._experience, plan)
            self._experience = None

    def leave(self) -> None:
        """Goes on to the next experience: the rest of this one is not trained on."""
        self._place = len(self._plans)

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, with the experience that is not used up yet."""
        in_flight = self._in_flight()
        place = self._place - in_flight
        unused = self._experience is not None and place < len(self._plans)
        prompts = self._prompts.state_dict()
        return {
            "settings": self._settings,
            "prompts": prompts,
            # A pass that ends early is told from one that is full: after a full one the trainer begins the next.
            "pass_ends": self._pass_ends or prompts["done"] >= len(self._prompts),
            "given": self._given - in_flight,
            "number": self._number,
            "place": place if unused else 0,
            "experience": self._experience.state_dict() if unused and self._experience is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where the state was saved.

        Raises:
            ConfigError: Experiences were cut into other steps.
        """
        for name, value in state["settings"].items():
            if self._settings[name] != value:
                raise ConfigError(
                    name,
                    got=self._settings[name],
                    expected=f"{value}, as when the checkpoint was saved",
                    hint="A run is resumed only with the same data, cut into the same steps",
                )
        self._prompts.load_state_dict(state["prompts"])
        self._number, self._place, self._given = state["number"], state["place"], state["given"]
        self._resumed = self._given < self._length
        self._pass_ends = self._resumed and state["pass_ends"]
        self._experience = None
        if state["experience"] is not None:
            self._experience = Experience.from_state_dict(state["experience"])
            self._plans = self._learner.plan(self._experience, self._number - 1)
