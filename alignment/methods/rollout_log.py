"""What is logged of completions between two lines of the log: what they are like, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alignment.methods.metrics import MetricSums
from alignment.methods.writer import PHASES


class RolloutLog:
    """Collects values of completions, and turns them into means with the time of each phase beside them.

    Completions are gathered: each rank holds those of all ranks, and only the first one's values count.

    Args:
        is_first_rank: Whether this process's values are the ones that count.
    """

    def __init__(self, *, is_first_rank: bool) -> None:
        self._weight = float(is_first_rank)
        self._sums = MetricSums()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._budget = dict.fromkeys(("tokens_generated", "tokens_trained", "seconds"), 0.0)

    def add(self, metrics: Mapping[str, Tensor], *, device: torch.device) -> None:
        """Collects values of the whole batch, for the next line of the log.

        Args:
            metrics: Values by name, one a completion or a group.
            device: Where sums over ranks are taken.
        """
        for name, values in metrics.items():
            weights = torch.full_like(values, self._weight, dtype=torch.float32)
            self._sums.add(name, values.to(device), weights.to(device))

    def pop(self, *, seconds: Mapping[str, float], budget: Mapping[str, float]) -> dict[str, float]:
        """Returns the means since the line before, the seconds of each phase, and tokens a second.

        What is left of the time beside writing is the update.

        Args:
            seconds: What each phase of writing has taken since the process began.
            budget: Tokens that were written and trained on, and seconds of training, since the run began.
        """
        metrics = self._sums.pop_means()
        spent = {name: seconds[name] - self._seconds[name] for name in PHASES}
        used = {name: budget[name] - before for name, before in self._budget.items()}
        self._seconds, self._budget = dict(seconds), {name: budget[name] for name in self._budget}
        update_seconds = used["seconds"] - sum(spent.values())
        metrics |= {f"time/{name}_seconds": value for name, value in spent.items()}
        metrics["time/update_seconds"] = update_seconds
        if used["tokens_generated"]:
            metrics["speed/generated_tokens_per_second"] = used["tokens_generated"] / max(spent["generate"], 1e-9)
        metrics["speed/trained_tokens_per_second"] = used["tokens_trained"] / max(update_seconds, 1e-9)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Returns this rank's sums."""
        return self._sums.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], *, budget: Mapping[str, float]) -> None:
        """Restores the first rank's sums: every rank must hold the same names, and they count once.

        Args:
            state: Of the first rank.
            budget: What the run had used by then.
        """
        self._sums.load_state_dict({name: pair * self._weight for name, pair in state.items()})
        self._budget = {name: budget[name] for name in self._budget}
