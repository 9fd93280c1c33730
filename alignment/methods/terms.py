"""From a method's terms to a training step: the one place where unreduced losses become a scalar."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from alignment.methods.base import Method, Parts
from alignment.methods.metrics import MetricSums
from alignment.ops.reduce import global_mean
from alignment.types import Batch

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


class TermsMethod(Method):
    """Turns :meth:`terms` into training steps: one loss a micro-batch, automatic optimisation."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._coefficients: dict[str, float] = {}

    @abstractmethod
    def terms(self, batch: Any) -> Terms:
        """Computes the method's loss and metrics on one micro-batch."""

    def training_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, ""]:
        """Returns this micro-batch's share of the step's loss."""
        terms = self.terms(batch)
        self.collect_terms(self.train_sums, terms)
        shares = [
            term.coefficient
            * global_mean(term.values, weights=term.weights, count=batch.counts[term.per], shares=self.shares)
            for term in terms.loss.values()
        ]
        return torch.stack(shares).sum()

    def collect_terms(self, sums: MetricSums, terms: Terms) -> None:
        """Adds a micro-batch's values to what is logged."""
        self._coefficients = {name: term.coefficient for name, term in terms.loss.items()}
        for name, term in terms.loss.items():
            sums.add(f"loss/{name}", term.values, term.weights)
        for name, (values, weights) in terms.metrics.items():
            sums.add(name, values, weights)

    def means(self, sums: MetricSums) -> dict[str, float]:
        """Returns what was collected, with ``loss/total`` as the terms' weighted sum."""
        is_any = len(sums) > 0
        means = sums.pop_means()
        if is_any:
            means["loss/total"] = sum(c * means.get(f"loss/{name}", 0.0) for name, c in self._coefficients.items())
        return means
