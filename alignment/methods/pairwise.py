"""What DPO's choices of a loss have in common: how one is called, what it needs, and what it cannot go with."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch import distributed as dist

from alignment.config.typecheck import mismatch
from alignment.losses.wpo import wpo_weights
from alignment.methods.terms import Weighted
from alignment.ops.reduce import masked_total
from alignment.types import TokenLogps
from alignment.utils.errors import ConfigError

#: Keyword-only, of some of the fields of :class:`PairInputs`; returns one value a pair.
LossFunction = Callable[..., Tensor]


@dataclass(frozen=True)
class PairInputs:
    """What a loss on pairs may take; which of these it does take, its signature says.

    Attributes:
        chosen_log_ratio: log-prob under the policy minus that under the reference, in nats.
        rejected_log_ratio: The same of the rejected completion.
        beta: Scales log-ratios to rewards.
        reference_margin: log-prob of chosen minus rejected completion under the reference, in nats.
        weights: 1 for a pair, 0 for a filler. Only a loss that compares pairs with one another takes them.
        reward_shift: Mean reward of the steps before this one.
    """

    chosen_log_ratio: Float[Tensor, "pairs"]
    rejected_log_ratio: Float[Tensor, "pairs"]
    beta: float
    reference_margin: Float[Tensor, "pairs"]
    weights: Float[Tensor, "pairs"]
    reward_shift: float | Float[Tensor, ""]


PAIR_INPUTS = tuple(field.name for field in fields(PairInputs))


class Mixture:
    """A weighted sum of losses on pairs, as in MPO (Wang et al. 2024, arXiv 2411.10442).

    Args:
        losses: By name.
        weights: What each is multiplied by: one above 0 for each loss.
    """

    def __init__(self, *, losses: dict[str, LossFunction], weights: dict[str, float]) -> None:
        self.losses, self.weights = losses, weights


class PairwiseLoss:
    """One loss on pairs or a mixture, called in the same way.

    Args:
        loss: As configured.

    Attributes:
        losses: The functions by name.
        weights: What each is multiplied by.
        takes: The fields of :class:`PairInputs` that any of them takes.

    Raises:
        ConfigError: If a function takes what there is not, or one of its hyperparameters is out of range.
    """

    def __init__(self, loss: LossFunction | Mixture) -> None:
        single = not isinstance(loss, Mixture)
        self.losses: Mapping[str, LossFunction] = {"": loss} if single else loss.losses
        self.weights: Mapping[str, float] = {"": 1.0} if single else loss.weights
        for name, function in self.losses.items():
            check_function(f"method.loss.losses.{name}" if name else "method.loss", function, PAIR_INPUTS)
        self.takes = frozenset[str]().union(*map(arguments, self.losses.values()))

    def __call__(self, inputs: PairInputs) -> tuple[Float[Tensor, "pairs"], Weighted]:
        """Returns the loss of each pair, unreduced, and of a mixture the parts to log."""
        values = {
            name: function(**{field: getattr(inputs, field) for field in arguments(function)})
            for name, function in self.losses.items()
        }
        total = torch.stack([self.weights[name] * value for name, value in values.items()]).sum(0)
        parts: Weighted = {f"loss/mixture_{name}": (value, inputs.weights) for name, value in values.items() if name}
        return total, parts

    @property
    def compares_pairs(self) -> bool:
        """Whether a pair's loss depends on the other pairs of the step."""
        return "weights" in self.takes

    def reads_differences_only(self) -> bool:
        """Whether what is added to both log-ratios of a pair cancels, as beta log Z of an f-divergence must."""
        if self.takes != {"chosen_log_ratio", "rejected_log_ratio", "beta"}:
            return False
        chosen, rejected = torch.tensor([-2.0, -0.5, 1.0]), torch.tensor([0.5, -1.0, -3.0])
        plain, moved = (
            self(PairInputs(chosen + shift, rejected + shift, 1.0, chosen, chosen, 0.0))[0] for shift in (0.0, 0.75)
        )
        return torch.allclose(plain, moved)


class RewardShift:
    """The mean reward of all completions of the optimiser steps before this one; 0 before the first.

    A step's own completions count from the next step on: then it does not matter how the step is spread over
    micro-batches and ranks.
    """

    def __init__(self) -> None:
        # Where the rewards are: nothing waits for the device to tell them.
        self._total = torch.zeros(2, dtype=torch.float64)
        self._step: list[Tensor] = []

    @property
    def value(self) -> Float[Tensor, ""]:
        """The mean so far."""
        total, count = self._total
        return torch.where(count > 0, total / count.clamp(min=1), 0.0).float()

    def add(self, rewards: Float[Tensor, "pairs"], weights: Float[Tensor, "pairs"]) -> None:
        """Notes the rewards of a micro-batch of the step."""
        self._step.append(torch.stack(masked_total(rewards, weights)))

    def end_step(self) -> None:
        """Counts what was noted, on all ranks, in."""
        step = torch.stack(self._step).sum(0)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(step)
        self._total, self._step = self._total.to(step.device) + step, []

    def state_dict(self) -> dict[str, float]:
        """Returns what a checkpoint must hold."""
        total, count = self._total.tolist()
        return {"sum": total, "count": count}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restores it."""
        self._total, self._step = torch.tensor([state["sum"], state["count"]], dtype=torch.float64), []


def arguments(function: LossFunction) -> frozenset[str]:
    """Returns the arguments of a function that are not set yet.

    >>> sorted(arguments(partial(sorted, reverse=True, key=None)))
    ['iterable']
    """
    parameters = inspect.signature(function).parameters
    return frozenset(name for name, item in parameters.items() if item.default is inspect.Parameter.empty)


def check_function(key: str, function: LossFunction, inputs: Collection[str]) -> None:
    """Checks a component that is a function with some of its arguments set.

    Args:
        key: Its configuration key.
        function: The component.
        inputs: The arguments that it may take beside those that are set.

    Raises:
        ConfigError: If it takes anything else, or what is set is out of its range.
    """
    if unknown := arguments(function) - set(inputs):
        got = f"a function of {', '.join(sorted(unknown))}"
        raise ConfigError(key, got=got, expected=f"a function of some of {', '.join(inputs)}")
    bare, given = (function.func, function.keywords) if isinstance(function, partial) else (function, {})
    hints: dict[str, Any] = typing.get_type_hints(bare, include_extras=True)
    for name, value in given.items():
        expected = mismatch(value, hints.get(name, Any), {})
        if expected is not None:
            raise ConfigError(f"{key}.{name}", got=value, expected=expected)


def check_combination(*, loss: PairwiseLoss, divergence: LossFunction, weighting: str) -> None:
    """Refuses a divergence or weights with a loss that they mean nothing to.

    Raises:
        ConfigError: If rewards of another divergence than reverse KL meet a loss that does not read their difference
            alone, or weights of pairs a loss that sorts pairs.
    """
    check_function("method.divergence", divergence, ("log_ratio",))
    log_ratio = torch.tensor([-1.0, 0.5])
    if not torch.equal(divergence(log_ratio=log_ratio), log_ratio) and not loss.reads_differences_only():
        raise ConfigError(
            "method.divergence",
            got="another divergence than reverse_kl",
            expected="reverse_kl with this method.loss",
            hint="Another one gives only the difference of a pair's rewards, and this loss reads more: use "
            "method/divergence=reverse_kl, or method/loss=sigmoid, robust, hinge, exo or discopop",
        )
    if weighting == "wpo" and loss.compares_pairs:
        hint = "Sorted values belong to no pair that a weight could be of"
        raise ConfigError("method.weighting", got="wpo", expected="none with a loss that sorts pairs", hint=hint)


def policy_weights(policy: TokenLogps) -> Float[Tensor, "pairs"]:
    """Returns WPO's weight of each pair from the log-probs of chosen then rejected completions."""
    assert policy.collision_logps is not None
    alignment = policy.sum_by_sequence(policy.token_logps - policy.collision_logps) / policy.num_tokens
    chosen, rejected = alignment.chunk(2)
    return wpo_weights(chosen_alignment_nats=chosen, rejected_alignment_nats=rejected)
