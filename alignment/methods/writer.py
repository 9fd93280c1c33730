"""Prompts become completions with rewards, log-probs and values: all that has to be known when they are written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from alignment.data.collate import TokenSequence, token_batch
from alignment.models.critic import StateValues
from alignment.models.logprob_model import LogprobModel
from alignment.models.references import Reference
from alignment.models.sharding import whole
from alignment.rewards.base import Reward
from alignment.rewards.errors import checked_scores
from alignment.rollout.ahead import Ahead
from alignment.rollout.engine import RolloutEngine, TokenPrompt, casts_kept, evaluating
from alignment.rollout.experience import Measured
from alignment.types import Rewards, Rollout, Sampling, TokenLogps, Values

#: What the time of writing goes into.
PHASES: tuple[str, ...] = ("generate", "score", "measure")


@dataclass
class Writer:
    """Has a policy write, and measures what it wrote.

    Attributes:
        policy: As it is when it is asked.
        engine: Draws from it.
        reward: Judges completions.
        reference: What the policy is compared with; ``None`` without one.
        critic: A model that says what states are worth; ``None`` where the policy says it, or nobody.
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
    reference: Reference | None
    critic: StateValues | None
    needs_old_logps: bool
    temperature: float
    pad_id: int
    sequences_a_pass: int
    precision: Callable[[], AbstractContextManager[None]]
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    @torch.no_grad()
    def write(
        self, prompts: Sequence[TokenPrompt], sampling: Sampling, *, ahead: Ahead | None = None
    ) -> list[Measured]:
        """Draws completions and measures each.

        Args:
            prompts: What is to be completed.
            sampling: How.
            ahead: May have written them before; what it has is taken.

        Raises:
            UserError: A prompt does not fit, or the reward cannot judge a completion: naming it.
        """
        with ExitStack() as stack:
            frozen = None if self.reference is None else self.reference.frozen
            for model in (model for model in (self.policy, self.critic, frozen) if model is not None):
                stack.enter_context(whole(model))
                stack.enter_context(evaluating(model))
            stack.enter_context(self.precision())
            stack.enter_context(casts_kept())
            with self._phase("generate"):
                written = None if ahead is None else ahead.take(prompts)
                rollouts = self.engine.generate(prompts, sampling) if written is None else written
            with self._phase("score"):
                rewards = checked_scores(self.reward, rollouts)
            with self._phase("measure"):
                starts = range(0, len(rollouts), self.sequences_a_pass)
                chunks = [range(len(rollouts))[start : start + self.sequences_a_pass] for start in starts]
                return [item for chunk in chunks for item in self._measure(rollouts, rewards, chunk)]

    def _measure(self, everything: list[Rollout], rewards: Rewards, places: range) -> list[Measured]:
        """Measures the completions at some places, in one pass of each model."""
        rollouts = [everything[place] for place in places]
        lengths = [len(rollout.completion_ids) for rollout in rollouts]
        sequences = [TokenSequence(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts]
        device = next(self.policy.parameters()).device
        tokens = token_batch(sequences, pad_id=self.pad_id, layout=self.policy.layout).to(device)
        old: TokenLogps | None = None
        has_values = self.policy.value_head is not None
        if self.needs_old_logps or has_values:
            old = self.policy(tokens, self.temperature, values=has_values)
        reference = None if self.reference is None else self.reference.score(tokens, self.temperature)
        values = self.critic(tokens) if self.critic is not None else None if old is None else old.values
        columns = (_logps(old, lengths), _logps(reference, lengths), _values(values, lengths))
        return [
            Measured(
                everything[place],
                reward=rewards.total[place],
                components={name: scores[place] for name, scores in rewards.components.items()},
                old_logps=mine,
                reference_logps=theirs,
                values=worth,
            )
            for place, mine, theirs, worth in zip(places, *columns, strict=True)
        ]

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began


def _logps(scored: TokenLogps | None, lengths: list[int]) -> Sequence[np.ndarray | None]:
    return [None] * len(lengths) if scored is None else _pieces(scored.token_logps, lengths)


def _values(values: Values | None, lengths: list[int]) -> Sequence[np.ndarray | None]:
    if values is None:
        return [None] * len(lengths)
    after = values.after.float().cpu().numpy()
    return [np.append(before, last) for before, last in zip(_pieces(values.before, lengths), after, strict=True)]


def _pieces(values: Tensor, lengths: list[int]) -> list[np.ndarray]:
    return [piece.numpy() for piece in values.float().cpu().split(lengths)]
