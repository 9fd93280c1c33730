"""How many completions are written at a time, and how often they are learnt from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from alignment.utils.errors import ConfigError


@dataclass(frozen=True)
class RolloutPlan:
    """The part of an online method that decides what is written when.

    Attributes:
        group_size: Completions of each prompt.
        minibatches: Optimiser steps in one pass over what was written; each takes ``data.batch_size`` prompts.
        epochs: Passes over it.
        truncated: What becomes of completions that were cut off: ``keep`` learns from them as they were judged,
            ``mask`` leaves them out, ``bootstrap`` puts what the critic says of their last state in their reward's
            place.
        dynamic_sampling: Batches of prompts that may be written to fill one with groups whose rewards differ, as DAPO
            does (Yu et al. 2025, arXiv 2503.14476, section 3.2); ``None`` takes one batch and keeps every group.
        one_step_off: Whether the next completions are written while training goes on with the present ones, by the
            policy as it was before that.
        importance_cap: The most that a token, or a completion, may count because the policy now finds it likelier than
            the one that wrote it: truncated importance weights (Ionides 2008); ``None`` weighs all alike.
        max_kl_nats: KL a token from the policy that wrote them (k3) beyond which the steps that are left on these
            completions are skipped; ``None`` takes all steps.
    """

    group_size: Annotated[int, "[1, inf)"]
    minibatches: Annotated[int, "[1, inf)"]
    epochs: Annotated[int, "[1, inf)"]
    truncated: Literal["keep", "mask", "bootstrap"]
    dynamic_sampling: Annotated[int, "[1, inf)"] | None
    one_step_off: bool
    importance_cap: Annotated[float, "[1, inf)"] | None
    max_kl_nats: Annotated[float, "(0, inf)"] | None

    @property
    def steps(self) -> int:
        """Optimiser steps on what is written at a time."""
        return self.minibatches * self.epochs

    def check(self, *, least_group_size: int, has_critic: bool) -> None:
        """Refuses what the method cannot learn from.

        Raises:
            ConfigError: Naming the key to change.
        """
        if self.group_size < least_group_size:
            raise ConfigError(
                "method.rollouts.group_size",
                got=self.group_size,
                expected=f"at least {least_group_size}",
                hint="this method compares the completions of a prompt with one another",
            )
        if self.truncated == "bootstrap" and not has_critic:
            raise ConfigError(
                "method.rollouts.truncated",
                got="bootstrap",
                expected="keep or mask without a critic",
                hint="nobody can say what a completion that was cut off would have come to",
            )
        if self.dynamic_sampling is not None and self.group_size < 2:
            raise ConfigError(
                "method.rollouts.dynamic_sampling",
                got=self.dynamic_sampling,
                expected="null with method.rollouts.group_size=1",
                hint="the rewards of a group of one never differ",
            )
        if self.max_kl_nats is not None and self.steps == 1:
            raise ConfigError(
                "method.rollouts.max_kl_nats",
                got=self.max_kl_nats,
                expected="null where completions are used for one step",
                hint="there is no later step to skip: raise method.rollouts.epochs or method.rollouts.minibatches",
            )
