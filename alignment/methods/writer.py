"""Prompts become completions with rewards, log-probs and values: all that has to be known when they are written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from alignment.data.collate import TokenSequence, token_batch
from alignment.models.critic import StateValues
from alignment.models.logprob_model import BackboneModule, LogprobModel
from alignment.models.sharding import whole
from alignment.rewards.base import Reward
from alignment.rewards.errors import checked_scores
from alignment.rollout.engine import RolloutEngine, TokenPrompt, evaluating
from alignment.rollout.experience import Measured
from alignment.types import Rewards, Rollout, Sampling, TokenBatch, TokenLogps, Values

#: What the time of writing goes into.
PHASES: tuple[str, ...] = ("generate", "score", "measure")


@dataclass
class Writer:
    """Has a policy write, and measures what it wrote.

    Attributes:
        policy: As it is when it is asked.
        engine: Draws from it.
        reward: Judges completions.
        reference: Scores a batch at a temperature as the reference would; ``None`` without one.
        critic: A model that says what a batch's states are worth; ``None`` where the policy says it, or nobody.
        policy_has_values: Whether the policy has a head that says it.
        models: All models that score, to be made whole where they are sharded.
        needs_old_logps: Whether the policy's own log-probs are to be kept: there will be steps after the first.
        temperature: What logits are divided by when completions are scored.
        pad_id: Fills rows.
        sequences_a_pass: Completions scored at a time.
        precision: The precision of training.
        seconds: What each phase has taken so far.
    """

    policy: LogprobModel
    engine: RolloutEngine
    reward: Reward
    reference: Callable[[TokenBatch, float], TokenLogps] | None
    critic: StateValues | None
    policy_has_values: bool
    models: Sequence[BackboneModule]
    needs_old_logps: bool
    temperature: float
    pad_id: int
    sequences_a_pass: int
    precision: Callable[[], AbstractContextManager[None]]
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    @torch.no_grad()
    def write(self, prompts: Sequence[TokenPrompt], sampling: Sampling) -> list[Measured]:
        """Draws completions and measures each.

        Raises:
            UserError: A prompt does not fit, or the reward cannot judge a completion: naming it.
        """
        with ExitStack() as stack:
            for model in self.models:
                stack.enter_context(whole(model))
                stack.enter_context(evaluating(model))
            stack.enter_context(self.precision())
            with self._phase("generate"):
                rollouts = self.engine.generate(prompts, sampling)
            with self._phase("score"):
                rewards = checked_scores(self.reward, rollouts)
            with self._phase("measure"):
                size = self.sequences_a_pass
                parts = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
                measured = [item for part in parts for item in self._measure(part)]
        return [_rewarded(item, rewards, place) for place, item in enumerate(measured)]

    def _measure(self, rollouts: list[Rollout]) -> list[Measured]:
        lengths = [len(rollout.completion_ids) for rollout in rollouts]
        sequences = [TokenSequence(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts]
        device = next(self.policy.parameters()).device
        tokens = token_batch(sequences, pad_id=self.pad_id, layout=self.policy.layout).to(device)
        nothing: list[None] = [None] * len(rollouts)
        old: Sequence[np.ndarray | None] = nothing
        said: Values | None = None
        if self.needs_old_logps or self.policy_has_values:
            scored = self.policy(tokens, self.temperature, values=self.policy_has_values)
            old, said = _pieces(scored.token_logps, lengths), scored.values
        if self.critic is not None:
            said = self.critic(tokens)
        reference: Sequence[np.ndarray | None] = nothing
        if self.reference is not None:
            reference = _pieces(self.reference(tokens, self.temperature).token_logps, lengths)
        values = nothing if said is None else _with_last(_pieces(said.before, lengths), said.after)
        return [
            Measured(rollout, reward=0.0, components={}, old_logps=mine, reference_logps=theirs, values=worth)
            for rollout, mine, theirs, worth in zip(rollouts, old, reference, values, strict=True)
        ]

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began


def _rewarded(item: Measured, rewards: Rewards, place: int) -> Measured:
    components = {name: values[place] for name, values in rewards.components.items()}
    return replace(item, reward=rewards.total[place], components=components)


def _pieces(values: Tensor, lengths: list[int]) -> list[np.ndarray]:
    return [piece.numpy() for piece in values.float().cpu().split(lengths)]


def _with_last(before: list[np.ndarray], after: Tensor) -> list[np.ndarray]:
    return [np.append(values, last) for values, last in zip(before, after.float().cpu().numpy(), strict=True)]
