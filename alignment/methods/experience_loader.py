"""Prompts in, micro-batches of fresh experience out: what an online method trains on looks like any other data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

from alignment.data.loader import PlannedLoader, check_same_steps
from alignment.data.plan import MicroBatchPlan
from alignment.rollout.experience import Experience
from alignment.types import Batch, PromptBatch


class Learner(Protocol):
    """Whoever writes completions and says how to learn from them."""

    def collect(self, prompts: Peekable, number: int) -> Experience | None:
        """Writes completions of the next prompts and measures them; ``None`` where no prompt is left.

        Args:
            prompts: Batches of prompts; as many are taken as are needed, and one more may be looked at.
            number: How many experiences there were before.
        """
        ...

    def plan(self, experience: Experience, number: int) -> list[MicroBatchPlan]:
        """This rank's micro-batches of an experience, all optimiser steps of all epochs over it."""
        ...

    def micro_batch(self, experience: Experience, plan: MicroBatchPlan) -> Batch:
        """Makes one of them."""
        ...


class Peekable:
    """Batches of prompts, of which one may be looked at before it is taken."""

    def __init__(self, batches: Iterable[PromptBatch]) -> None:
        self._batches = iter(batches)
        self._seen: list[PromptBatch] = []

    def __iter__(self) -> Iterator[PromptBatch]:
        return self

    def __next__(self) -> PromptBatch:
        return self._seen.pop() if self._seen else next(self._batches)

    def peek(self) -> PromptBatch | None:
        """Returns the batch that is to be taken next; ``None`` if there is none."""
        if not self._seen:
            self._seen = list(islice(self._batches, 1))
        return self._seen[0] if self._seen else None

    @property
    def num_seen(self) -> int:
        """Batches that were looked at and not taken yet: 0 or 1."""
        return len(self._seen)


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
        self._stream = Peekable(())
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
        self._stream = Peekable(() if self._pass_ends else self._prompts)  # type: ignore[arg-type]
        while True:
            if self._experience is None:
                self._experience = self._learner.collect(self._stream, self._number)
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
        prompts["done"] -= self._stream.num_seen
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
        check_same_steps(self._settings, state["settings"])
        self._prompts.load_state_dict(state["prompts"])
        self._number, self._place, self._given = state["number"], state["place"], state["given"]
        self._resumed = self._given < self._length
        self._pass_ends = self._resumed and state["pass_ends"]
        self._experience = None
        if state["experience"] is not None:
            self._experience = Experience.from_state_dict(state["experience"])
            self._plans = self._learner.plan(self._experience, self._number - 1)
