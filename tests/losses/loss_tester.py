"""One tester gives every loss the same proofs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass
class LossTester:
    """Proves an unreduced loss.

    Attributes:
        loss: Keyword-only function of tensors and numbers that returns one value an item.
        twin: The same in NumPy, written from the paper without looking at the loss.
        inputs: Names of its tensor arguments, each one value an item.
        settings: Every set of its numbers that is to be proven.
        frozen: Tensor arguments that never get a gradient from a training run.
        low: Least value of a random input.
        high: Largest value of a random input.
    """

    loss: Callable[..., Tensor]
    twin: Callable[..., np.ndarray]
    inputs: tuple[str, ...]
    settings: tuple[dict[str, Any], ...]
    frozen: tuple[str, ...] = ()
    low: float = -30.0
    high: float = -0.01
    items: int = 7
    seed: int = field(default=0)

    def random_inputs(self, *, requires_grad: bool = False) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        values = {}
        for name in self.inputs:
            uniform = torch.rand(self.items, generator=generator, dtype=torch.float64)
            values[name] = (self.low + (self.high - self.low) * uniform).requires_grad_(requires_grad)
        return values

    def check_twin(self) -> None:
        for setting in self.settings:
            values = self.random_inputs()
            expected = self.twin(**{name: value.numpy() for name, value in values.items()}, **setting)
            np.testing.assert_allclose(self.loss(**values, **setting).numpy(), expected, rtol=1e-12, atol=1e-12)

    def check_gradient(self) -> None:
        for setting in self.settings:
            values = self.random_inputs(requires_grad=True)
            assert torch.autograd.gradcheck(
                lambda *tensors, setting=setting: self.loss(**dict(zip(self.inputs, tensors, strict=True)), **setting),
                tuple(values.values()),
            )

    def check_items_are_independent(self) -> None:
        """Permuting and splitting the items permutes and splits the losses: nothing is reduced inside."""
        for setting in self.settings:
            values = self.random_inputs()
            whole = self.loss(**values, **setting)
            assert whole.shape == (self.items,)
            order = torch.randperm(self.items, generator=torch.Generator().manual_seed(1))
            permuted = self.loss(**{name: value[order] for name, value in values.items()}, **setting)
            torch.testing.assert_close(permuted, whole[order], rtol=0, atol=0)
            first = self.loss(**{name: value[:3] for name, value in values.items()}, **setting)
            torch.testing.assert_close(first, whole[:3], rtol=0, atol=0)

    def check_extremes(self, scale: float = 1e4) -> None:
        """Finite value and gradient for log-probs of long completions."""
        for setting in self.settings:
            for sign in (1.0, -1.0):
                values = {
                    name: torch.full((1,), -scale if (index % 2 == 0) == (sign > 0) else -1e-6, requires_grad=True)
                    for index, name in enumerate(self.inputs)
                }
                loss = self.loss(**values, **setting)
                loss.sum().backward()
                assert torch.isfinite(loss).all()
                assert all(torch.isfinite(value.grad).all() for value in values.values() if value.grad is not None)

    def check_all(self) -> None:
        self.check_twin()
        self.check_gradient()
        self.check_items_are_independent()
        self.check_extremes()
