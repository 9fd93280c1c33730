"""Completions of the next prompts, written while training goes on with the present ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import distributed as dist

from alignment.models.logprob_model import LogprobModel
from alignment.models.sharding import is_sharded
from alignment.rollout.engine import EngineBuilder, TokenPrompt, casts_kept
from alignment.rollout.experience import rollout_from
from alignment.types import Rollout, Sampling
from alignment.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Ahead:
    """Writes in a thread of its own, with a copy of the policy as it was when it was asked.

    What it writes does not depend on how fast training goes meanwhile: weights, prompts and seeds are fixed before.

    Args:
        policy: As it trains. A copy of it is kept.
        engine: Makes what draws from the copy.
        tokenizer: The policy's.
        precision: The precision of training.

    Raises:
        ConfigError: The policy's weights are shared out over ranks: none has a whole copy.
    """

    def __init__(
        self,
        policy: LogprobModel,
        *,
        engine: EngineBuilder,
        tokenizer: PreTrainedTokenizerBase,
        precision: Callable[[], AbstractContextManager[None]],
    ) -> None:
        if is_sharded(policy):
            hint = "each rank keeps a whole copy of the policy: use hardware=ddp, or write and train in turn"
            raise ConfigError("method.rollouts.one_step_off", got=True, expected="false with FSDP2", hint=hint)
        self._policy = policy
        self._copy = copy.deepcopy(policy).eval()
        self._engine = engine(model=self._copy, tokenizer=copy.deepcopy(tokenizer))
        self._precision = precision
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts")
        self._written: Future[list[Rollout]] | None = None

    @torch.no_grad()
    def start(self, prompts: Sequence[TokenPrompt], sampling: Sampling) -> None:
        """Begins to write completions of some prompts, with the weights of this moment."""
        # A resumed run makes this before its weights go to their device.
        self._copy.to(next(self._policy.parameters()).device)
        for mine, now in zip(self._copy.state_dict().values(), self._policy.state_dict().values(), strict=True):
            mine.copy_(now)
        self._written = self._thread.submit(self._write, prompts, sampling)

    def take(self, prompts: Sequence[TokenPrompt]) -> list[Rollout] | None:
        """Waits for the completions of the prompts that were given to :meth:`start`; ``None`` if there were none."""
        if self._written is None:
            return None
        mine = {prompt.id for prompt in prompts}
        written, self._written = self._written.result(), None
        return [rollout for rollout in written if rollout.prompt_id in mine]

    def state_dict(self) -> dict[str, str]:
        """Waits, and returns the completions that all ranks hold, for a checkpoint. Every rank has to ask."""
        everyone = [[] if self._written is None else self._written.result()]
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            everyone = everyone * dist.get_world_size()
            dist.all_gather_object(everyone, everyone[dist.get_rank()])
        return {"rollouts": json.dumps([asdict(rollout) for share in everyone for rollout in share])}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Takes up what had been written when the state was saved."""
        written = [rollout_from(entry) for entry in json.loads(state["rollouts"])]
        self._written = None
        if written:
            self._written = Future()
            self._written.set_result(written)

    def _write(self, prompts: Sequence[TokenPrompt], sampling: Sampling) -> list[Rollout]:
        with torch.no_grad(), self._precision(), casts_kept():
            return self._engine.generate(prompts, sampling)
