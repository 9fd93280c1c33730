"""Monitors: known ways in which preference optimisation fails, said in words while the run can still be stopped."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from alignment.utils.files import append_json_line

log = logging.getLogger(__name__)

#: Of the training pairs, over which a mean that a few pairs decide is taken.
_LOGGED_STEPS = 4


class Monitor(Callback, ABC):
    """Base: looks at the logged metrics, and warns once each time the trouble begins.

    Args:
        folder: The run's folder; warnings are added to its ``warnings.jsonl``.
    """

    name: str

    def __init__(self, *, folder: Path) -> None:
        self.folder = folder
        self._alarmed = False

    @abstractmethod
    def problem(self, metrics: dict[str, float]) -> tuple[str, dict[str, float]] | None:
        """Returns what is wrong, in words, with the values that show it; ``None`` when nothing is."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run must remember."""
        return {"alarmed": self._alarmed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self._alarmed = state_dict["alarmed"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks once an optimiser step."""
        self._look(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks after a validation."""
        if not trainer.sanity_checking:
            self._look(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the last step."""
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        found = self.problem(metrics)
        if found is not None and not self._alarmed and trainer.is_global_zero:
            message, values = found
            log.warning("step %d, %s: %s", trainer.global_step, self.name, message)
            line = {"step": trainer.global_step, "monitor": self.name, "message": message, "values": values}
            append_json_line(self.folder / "warnings.jsonl", line)
        self._alarmed = found is not None


class LikelihoodDisplacement(Monitor):
    """Warns when the chosen completions, taken together, become unlikely.

    DPO raises a margin, not a likelihood: on pairs that are nearly the same it can push the chosen completion
    down together with the rejected one, and the mass goes to answers that nobody preferred (Razin et al.
    2024, arXiv 2410.08847).

    That most chosen completions fall is no displacement yet. A policy that learns to prefer the best of them takes
    mass from the middling ones, which are many: their mean log-prob falls though the chosen completions as a whole
    gain. Whether they do is what the mean of policy / reference over them says, the ratio of their masses: about 1 or
    more where mass moves among them, near 0 where it leaves them. Of the training pairs, which are few a step, the last
    logged steps are taken together.

    Args:
        max_drop_nats: Mean fall of the chosen log-prob below the reference's that is tolerated.
        min_share: Share of pairs whose chosen log-prob must have fallen.
        min_mass_ratio: Part of their mass that the chosen completions must have kept.
        folder: The run's folder.
    """

    name = "likelihood_displacement"

    def __init__(self, *, max_drop_nats: float, min_share: float, min_mass_ratio: float, folder: Path) -> None:
        super().__init__(folder=folder)
        self.max_drop_nats = max_drop_nats
        self.min_share = min_share
        self.min_mass_ratio = min_mass_ratio
        self.train_ratios: deque[float] = deque(maxlen=_LOGGED_STEPS)

    def state_dict(self) -> dict[str, Any]:
        """Returns the last logged steps' ratios too."""
        return super().state_dict() | {"train_ratios": list(self.train_ratios)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        super().load_state_dict(state_dict)
        self.train_ratios = deque(state_dict["train_ratios"], maxlen=_LOGGED_STEPS)

    def problem(self, metrics: dict[str, float]) -> tuple[str, dict[str, float]] | None:
        """Looks at held-out pairs when there are any, else at training pairs."""
        split = "val" if "val/logps/chosen_shift_nats" in metrics else "train"
        shift = metrics.get(f"{split}/logps/chosen_shift_nats")
        share = metrics.get(f"{split}/logps/chosen_fell_share")
        ratio = self._mass_ratio(metrics, split)
        if shift is None or share is None or ratio is None:
            return None
        if shift > -self.max_drop_nats or share < self.min_share or ratio >= self.min_mass_ratio:
            return None
        words = (
            f"the chosen completions have become less likely: {shift:.2f} nats on average against the reference, "
            f"on {share:.0%} of {split} pairs, and all together they have {ratio:.2g} times the mass that they had. "
            "The margin grows because the rejected ones fall faster, and the mass goes to answers that nobody chose. "
            "If the pairs are nearly the same, add an NLL term or a DPOP penalty, filter such pairs, or lower the "
            "learning rate"
        )
        return words, {"chosen_shift_nats": shift, "chosen_fell_share": share, "chosen_mass_ratio": ratio}

    def _mass_ratio(self, metrics: dict[str, float], split: str) -> float | None:
        train = metrics.get("train/logps/chosen_mass_ratio")
        # Between two logged steps the last one's value is seen again.
        if train is not None and train not in self.train_ratios:
            self.train_ratios.append(train)
        if split == "val":
            return metrics.get("val/logps/chosen_mass_ratio")
        return sum(self.train_ratios) / len(self.train_ratios) if self.train_ratios else None


class LengthBias(Monitor):
    """Warns when the policy's own samples grow long: length is the easiest thing to learn from preferences.

    Args:
        max_ratio: Mean length of fresh samples over that of the start which is tolerated.
        folder: The run's folder.
    """

    name = "length_bias"

    def __init__(self, *, max_ratio: float, folder: Path) -> None:
        super().__init__(folder=folder)
        self.max_ratio = max_ratio
        self.start_tokens: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the length at the start too."""
        return super().state_dict() | {"start_tokens": self.start_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        super().load_state_dict(state_dict)
        self.start_tokens = state_dict["start_tokens"]

    def problem(self, metrics: dict[str, float]) -> tuple[str, dict[str, float]] | None:
        """Compares fresh samples with the first ones."""
        tokens = metrics.get("fresh/length/completion_tokens")
        if tokens is None:
            return None
        if self.start_tokens is None:
            self.start_tokens = tokens
        ratio = tokens / max(self.start_tokens, 1e-9)
        if ratio <= self.max_ratio:
            return None
        words = (
            f"samples have grown from {self.start_tokens:.0f} to {tokens:.0f} tokens ({ratio:.1f} times). "
            "Check whether chosen completions are longer in the data (data statistics in the manifest), and compare "
            "rewards at equal length, or use a length-normalised objective"
        )
        return words, {"start_tokens": self.start_tokens, "tokens": tokens}


class Overfitting(Monitor):
    """Warns when the held-out loss rises while the training loss falls.

    Args:
        tolerance: Relative rise above the best held-out loss that is tolerated.
        patience: Validations in a row that must show it.
        folder: The run's folder.
    """

    name = "overfitting"

    def __init__(self, *, tolerance: float, patience: int, folder: Path) -> None:
        super().__init__(folder=folder)
        self.tolerance = tolerance
        self.patience = patience
        self.history: deque[float] = deque(maxlen=patience)
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """Returns the history too."""
        return super().state_dict() | {"history": list(self.history), "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        super().load_state_dict(state_dict)
        self.history = deque(state_dict["history"], maxlen=self.patience)
        self.best = state_dict["best"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes the new held-out loss, then looks."""
        value = trainer.callback_metrics.get("val/loss/total")
        if value is not None and not trainer.sanity_checking:
            self.history.append(float(value))
            self.best = float(value) if self.best is None else min(self.best, float(value))
        super().on_validation_end(trainer, pl_module)

    def problem(self, metrics: dict[str, float]) -> tuple[str, dict[str, float]] | None:
        """Compares the last validations with the best one."""
        train = metrics.get("train/loss/total")
        if self.best is None or train is None or len(self.history) < self.patience:
            return None
        limit = self.best + abs(self.best) * self.tolerance
        if min(self.history) <= limit or train >= min(self.history):
            return None
        last = self.history[-1]
        words = (
            f"the held-out loss is {last:.4g}, {last / self.best - 1:.0%} above its best ({self.best:.4g}), while the "
            f"training loss is {train:.4g}: the policy memorises its pairs. Stop earlier "
            "(callbacks.checkpoint.monitor=val/loss/total keeps the best), lower trainer.max_epochs, or raise "
            "method.beta"
        )
        return words, {"val_loss": last, "best_val_loss": self.best, "train_loss": train}
