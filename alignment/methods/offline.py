"""Methods that learn from a fixed data set: one loss a batch, automatic optimisation."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alignment.methods.base import Method, Parts
from alignment.methods.metrics import MetricSums, with_prefix
from alignment.ops.reduce import global_mean
from alignment.types import Batch, PreferenceBatch, Role, TokenLogps

#: Values to log by name, each with the weights of its mean; ``None`` weighs all alike.
Weighted = dict[str, tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Term:
    """A part of the loss, before anything is averaged.

    Attributes:
        values: One an item, unreduced.
        per: What an item is, a key of the batch's ``counts``: ``records``, ``tokens``, ``chosen_tokens``.
        weights: 0 for fillers.
        coefficient: Multiplies the term's mean.
    """

    values: Float[Tensor, "items"]
    per: str
    weights: Float[Tensor, "items"]
    coefficient: float = 1.0


@dataclass(frozen=True)
class Terms:
    """What a method makes of a batch: the loss's parts, and values to log with the weights of their means."""

    loss: dict[str, Term]
    metrics: Weighted = field(default_factory=dict)


class OfflineMethod(Method):
    """Turns :meth:`terms` into training and validation steps."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.val_sums = MetricSums()
        self._coefficients: dict[str, float] = {}

    @abstractmethod
    def terms(self, batch: Any) -> Terms:
        """Computes the method's loss and metrics on one micro-batch."""

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Returns this micro-batch's share of the step's loss."""
        terms = self.terms(batch)
        self._collect(self.train_sums, terms)
        shares = [
            term.coefficient
            * global_mean(term.values, weights=term.weights, count=batch.counts[term.per], shares=self.shares)
            for term in terms.loss.values()
        ]
        return torch.stack(shares).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collects the same metrics on held-out records."""
        self._collect(self.val_sums, self.terms(batch))

    def on_validation_epoch_start(self) -> None:
        """Drops what an interrupted validation left behind."""
        self.val_sums.clear()

    def on_validation_epoch_end(self) -> None:
        """Logs the means over all held-out records."""
        if not self.trainer.sanity_checking:
            self.publish(with_prefix("val", self.means(self.val_sums)))

    def _collect(self, sums: MetricSums, terms: Terms) -> None:
        self._coefficients = {name: term.coefficient for name, term in terms.loss.items()}
        for name, term in terms.loss.items():
            sums.add(f"loss/{name}", term.values, term.weights)
        for name, (values, weights) in terms.metrics.items():
            sums.add(name, values, weights)

    def means(self, sums: MetricSums) -> dict[str, float]:
        """Returns what was collected, with ``loss/total`` as the terms' weighted sum."""
        means = sums.pop_means()
        if means:
            means["loss/total"] = sum(c * means[f"loss/{name}"] for name, c in self._coefficients.items())
        return means


class PreferenceMethod(OfflineMethod):
    """Base of the methods that read pairs."""

    batch_type = PreferenceBatch

    def reference_logps(self, batch: PreferenceBatch) -> TokenLogps:
        """Returns the reference's log-probs in the policy's layout, without gradient."""
        assert Role.REFERENCE in self.roles
        assert self.bundle.reference is not None
        token_logps = self.bundle.reference.batch_logps(batch)
        tokens = batch.tokens
        return TokenLogps(token_logps, tokens.sequence_index, tokens.num_sequences, tokens.in_completion)
