"""When each step of a method that writes its own completions ends, and what writing and judging them took of it.

The same clock in Lightning and in TRL; see :mod:`step_clock`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from step_clock import now, tokens_digest
from transformers import TrainerCallback

from alignment.diagnostics.rollouts import RolloutObserver
from alignment.rollout.experience import Experience

#: A prompt, and how many tokens were written for it.
Written = tuple[list[int], int]


def work_digest(steps: Iterable[Iterable[Written]]) -> str:
    """Names what a run had to do: each step's prompts, and how long their completions were.

    >>> work_digest([[([5, 6], 3), ([7], 3)]]) == work_digest([[([7], 3), ([5, 6], 3)]])
    True
    """
    return tokens_digest([[*prompt, -length] for prompt, length in step] for step in steps)


class Clock:
    """Wall and processor time at the ends of steps, and how much of both went into two phases until then.

    Attributes:
        ends: Of each step: wall, processor.
        spent: Of each step: wall and processor seconds of writing, then of writing and judging, since the start.
        written: Of each step, what there was to do.
    """

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.spent: list[list[float]] = []
        self.written: list[list[Written]] = []
        self._phases = {"write": [0.0, 0.0], "collect": [0.0, 0.0]}

    def timed(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the same work, whose time counts as a phase's."""

        def counted(*args: Any, **options: Any) -> Any:
            start = now()
            result = work(*args, **options)
            for place, (before, after) in enumerate(zip(start, now(), strict=True)):
                self._phases[phase][place] += after - before
            return result

        return counted

    def note_end(self) -> None:
        """Notes the end of a step."""
        self.ends.append(now())
        self.spent.append([*self._phases["write"], *self._phases["collect"]])

    def measured(self) -> dict[str, Any]:
        """Returns what was noted."""
        return {"ends": self.ends, "spent": self.spent, "digest": work_digest(self.written)}


class LightningRolloutClock(RolloutObserver):
    """Times an online method's steps, and writes a file when training ends.

    Args:
        path: A ``.json`` file.
    """

    def __init__(self, path: str) -> None:
        self.path, self.clock = Path(path), Clock()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Puts the clock around what writes and what collects."""
        module: Any = pl_module
        module.writer.engine.generate = self.clock.timed("write", module.writer.engine.generate)
        module.collect = self.clock.timed("collect", module.collect)

    def on_rollouts(self, trainer: pl.Trainer, experience: Experience, number: int) -> None:
        """Notes what was written."""
        self.clock.written.append([(list(item.prompt_ids), len(item.completion_ids)) for item in experience.rollouts])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Notes the end of a step, after its last micro-batch."""
        if trainer.global_step > len(self.clock.ends):
            self.clock.note_end()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file."""
        self.path.write_text(json.dumps(self.clock.measured()), encoding="utf-8")


class TRLRolloutClock(TrainerCallback):
    """Times a trainer of TRL's that writes completions.

    Args:
        trainer: TRL's; the clock is put around two of its methods.
    """

    def __init__(self, trainer: Any) -> None:
        self.clock = Clock()
        generate = trainer._generate

        def noted(*args: Any, **options: Any) -> Any:
            result = generate(*args, **options)
            prompts, completions = result[:2]
            self.clock.written.append([(list(p), len(c)) for p, c in zip(prompts, completions, strict=True)])
            return result

        trainer._generate = self.clock.timed("write", noted)
        collect = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = self.clock.timed("collect", collect)
        trainer.add_callback(self)

    def on_step_end(self, *_args: Any, **_state: Any) -> None:
        """Notes a step."""
        self.clock.note_end()
