"""What is learnt from: a batch of completions with everything that was measured on them when they were drawn.

The whole batch is on every rank. It is put together from the ranks' shares in an order that does not depend on how
many there were, so that what is computed over it (whitening, advantages, minibatches) does not either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch import distributed as dist

from alignment.data.collate import TokenSequence, token_batch
from alignment.data.plan import MicroBatchPlan
from alignment.types import Layout, Rollout, RolloutBatch


@dataclass(frozen=True)
class Measured:
    """One completion and what was measured on it.

    Attributes:
        rollout: The completion.
        reward: Its total, as the reward gave it.
        components: What the total was made from.
        old_logps: Log-probs in nats of its tokens under the policy as it is, ``None`` where nobody asked.
        reference_logps: Under the reference.
        values: What the critic says of the state before each token, and after the last.
    """

    rollout: Rollout
    reward: float
    components: dict[str, float]
    old_logps: np.ndarray | None = None
    reference_logps: np.ndarray | None = None
    values: np.ndarray | None = None


@dataclass(frozen=True)
class Experience:
    """A batch of completions, group by group. What is said of tokens is flat over completion tokens, in that order.

    Attributes:
        rollouts: The completions; those of a prompt stand together.
        group_size: Completions of each prompt.
        raw_rewards: As the reward gave them.
        components: What they were made from, by name.
        rewards: After shaping.
        old_logps: Log-probs in nats under the policy that wrote them; ``None`` where none were asked for.
        reference_logps: Under the reference; ``None`` without one.
        values: What the critic said of the state before each token; ``None`` without one.
        last_values: And of the state after each completion's last token.
        weights: 1 for a completion that is learnt from, 0 for one that is masked.
        advantages: Of each token; ``None`` until the method has computed them.
        returns: What the critic is to say; ``None`` without one.
    """

    rollouts: tuple[Rollout, ...]
    group_size: int
    raw_rewards: Float[Tensor, "rollouts"]
    components: dict[str, Float[Tensor, "rollouts"]]
    rewards: Float[Tensor, "rollouts"]
    weights: Float[Tensor, "rollouts"]
    old_logps: Float[Tensor, "tokens"] | None = None
    reference_logps: Float[Tensor, "tokens"] | None = None
    values: Float[Tensor, "tokens"] | None = None
    last_values: Float[Tensor, "rollouts"] | None = None
    advantages: Float[Tensor, "tokens"] | None = None
    returns: Float[Tensor, "tokens"] | None = None

    @classmethod
    def of(cls, measured: Sequence[Measured], *, group_size: int) -> Experience:
        """Puts measured completions together, group by group.

        Args:
            measured: In the order in which they are to stand.
            group_size: Completions of each prompt.
        """
        rewards = torch.tensor([item.reward for item in measured], dtype=torch.float32)
        values = [item.values for item in measured if item.values is not None]
        return cls(
            rollouts=tuple(item.rollout for item in measured),
            group_size=group_size,
            raw_rewards=rewards,
            components={
                # A failed completion may lack some.
                name: torch.tensor([item.components.get(name, 0.0) for item in measured], dtype=torch.float32)
                for name in dict.fromkeys(name for item in measured for name in item.components)
            },
            rewards=rewards,
            weights=torch.ones(len(measured)),
            old_logps=_flat([item.old_logps for item in measured]),
            reference_logps=_flat([item.reference_logps for item in measured]),
            values=_flat([item[:-1] for item in values]),
            last_values=torch.tensor([float(item[-1]) for item in values]) if values else None,
        )

    @cached_property
    def lengths(self) -> Int[Tensor, "rollouts"]:
        """Tokens of each completion."""
        return torch.tensor([len(rollout.completion_ids) for rollout in self.rollouts], dtype=torch.long)

    @cached_property
    def prompt_lengths(self) -> Int[Tensor, "rollouts"]:
        """Tokens of each completion's prompt."""
        return torch.tensor([len(rollout.prompt_ids) for rollout in self.rollouts], dtype=torch.long)

    @cached_property
    def starts(self) -> Int[Tensor, "rollouts"]:
        """Where each completion's tokens begin."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def sampler_logps(self) -> Float[Tensor, "tokens"]:
        """Log-probs in nats under the engine that drew the tokens."""
        return torch.tensor([value for rollout in self.rollouts for value in rollout.token_logps], dtype=torch.float32)

    @cached_property
    def truncated(self) -> Bool[Tensor, "rollouts"]:
        """Which completions were cut off."""
        return torch.tensor([rollout.is_truncated for rollout in self.rollouts], dtype=torch.bool)

    @property
    def policy_logps(self) -> Float[Tensor, "tokens"]:
        """Log-probs under the policy that wrote: its own where they were asked for, else its engine's."""
        return self.sampler_logps if self.old_logps is None else self.old_logps

    @property
    def log_ratios(self) -> Float[Tensor, "tokens"]:
        """Log policy - log reference of each token, in nats."""
        assert self.reference_logps is not None
        return self.policy_logps - self.reference_logps

    @property
    def num_groups(self) -> int:
        """Prompts."""
        return len(self.rollouts) // self.group_size

    def grouped(self, values: Tensor) -> Tensor:
        """Turns one value a completion into groups x samples."""
        return values.view(self.num_groups, self.group_size)

    def per_token(self, values: Float[Tensor, "rollouts"]) -> Float[Tensor, "tokens"]:
        """Gives each token its completion's value."""
        return values.repeat_interleave(self.lengths)

    def sums(self, values: Float[Tensor, "tokens"]) -> Float[Tensor, "rollouts"]:
        """Adds up the tokens of each completion."""
        index = torch.arange(len(self.rollouts)).repeat_interleave(self.lengths)
        return values.new_zeros(len(self.rollouts)).index_add(0, index, values)

    def places(self, groups: Int[Tensor, "some"]) -> Int[Tensor, "their_rollouts"]:
        """Returns where the completions of some groups are, group by group."""
        return (groups[:, None] * self.group_size + torch.arange(self.group_size)).flatten()

    def row_tokens(self, layout: Layout) -> np.ndarray:
        """Returns tokens that each group adds to a micro-batch's rows; its longest sequence where these are padded."""
        prompts, completions = self.grouped(self.prompt_lengths), self.grouped(self.lengths)
        if layout is Layout.PADDED:
            return (prompts + completions).amax(1).numpy()
        times = 1 if layout is Layout.PREFIX_SHARED else self.group_size
        return (prompts[:, 0] * times + completions.sum(1)).numpy()

    def only(self, groups: Sequence[int]) -> Experience:
        """Returns the named groups."""
        places = self.places(torch.tensor(groups, dtype=torch.long))
        tokens = self.token_places(places)
        changed: dict[str, Any] = {
            "rollouts": tuple(self.rollouts[place] for place in places.tolist()),
            "components": {name: values[places] for name, values in self.components.items()},
        }
        for name in _PER_ROLLOUT:
            changed[name] = None if getattr(self, name) is None else getattr(self, name)[places]
        for name in _PER_TOKEN:
            changed[name] = None if getattr(self, name) is None else getattr(self, name)[tokens]
        return replace(self, **changed)

    def and_then(self, other: Experience) -> Experience:
        """Returns the groups of both, one after the other; both hold the same kinds of measurements."""
        nothing = torch.zeros_like(self.raw_rewards), torch.zeros_like(other.raw_rewards)
        changed: dict[str, Any] = {
            "rollouts": self.rollouts + other.rollouts,
            "components": {
                name: torch.cat([self.components.get(name, nothing[0]), other.components.get(name, nothing[1])])
                for name in self.components | other.components
            },
        }
        for name in (*_PER_ROLLOUT, *_PER_TOKEN):
            mine, theirs = getattr(self, name), getattr(other, name)
            changed[name] = None if mine is None else torch.cat([mine, theirs])
        return replace(self, **changed)

    def token_places(self, places: Int[Tensor, "some"]) -> Int[Tensor, "their_tokens"]:
        """Returns where the tokens of some completions are, completion by completion."""
        lengths = self.lengths[places]
        shift = (self.starts[places] - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
        return torch.arange(int(lengths.sum())) + shift

    def batch(self, plan: MicroBatchPlan, *, pad_id: int, layout: Layout) -> RolloutBatch:
        """Returns the micro-batch that a plan over groups describes.

        Args:
            plan: Which groups; one of weight 0 is a filler.
            pad_id: Fills rows.
            layout: How sequences lie in rows.
        """
        assert self.advantages is not None
        places = self.places(torch.tensor(plan.indices, dtype=torch.long))
        tokens = self.token_places(places)
        rollouts = [self.rollouts[place] for place in places.tolist()]
        group_weights = torch.tensor(plan.weights, dtype=torch.float32)

        def some(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[tokens]

        return RolloutBatch(
            ids=tuple(rollout.prompt_id for rollout in rollouts[:: self.group_size]),
            weights=group_weights,
            counts=dict(plan.counts),
            tokens=token_batch(
                [TokenSequence(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts],
                pad_id=pad_id,
                layout=layout,
            ),
            sequence_weights=group_weights.repeat_interleave(self.group_size) * self.weights[places],
            advantages=self.advantages[tokens],
            sampler_logps=self.sampler_logps[tokens],
            old_logps=some(self.old_logps),
            reference_logps=some(self.reference_logps),
            old_values=some(self.values),
            returns=some(self.returns),
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns everything in plain values and tensors, for a checkpoint that loads without unpickling code."""
        state = {item.name: getattr(self, item.name) for item in fields(self)}
        return state | {"rollouts": json.dumps([asdict(rollout) for rollout in self.rollouts])}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Experience:
        """Restores it, bit by bit."""
        return cls(**{**state, "rollouts": tuple(rollout_from(entry) for entry in json.loads(state["rollouts"]))})


_PER_ROLLOUT = ("raw_rewards", "rewards", "weights", "last_values")
_PER_TOKEN = ("old_logps", "reference_logps", "values", "advantages", "returns")


def gathered(mine: list[Measured], *, order: Callable[[Measured], Any]) -> list[Measured]:
    """Returns what all ranks have measured, in an order that does not depend on who measured what."""
    everyone: list[Any] = [mine]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        everyone = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
    return sorted((item for share in everyone for item in share), key=order)


def _flat(parts: Sequence[np.ndarray | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.from_numpy(np.concatenate(known)) if known else None


def rollout_from(entry: dict[str, Any]) -> Rollout:
    """Makes a roll-out of its fields as JSON keeps them."""
    tuples = {name: tuple(entry[name]) for name in ("prompt_ids", "completion_ids", "token_logps")}
    return Rollout(**{**entry, **tuples})
