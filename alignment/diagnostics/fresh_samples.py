"""Fresh samples while training goes on: what the policy really says, its reward, and how far it has moved."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger

from alignment.evaluation.fresh import Evaluation, Scorer, evaluate_policy, rewards_by_prompt
from alignment.evaluation.records import record_evaluation
from alignment.models.logprob_model import LogprobModel
from alignment.models.sharding import whole
from alignment.rewards.base import Reward
from alignment.rollout.engine import EngineBuilder
from alignment.rollout.replay import ReplayEngine
from alignment.types import Sampling
from alignment.utils.errors import ConfigError

log = logging.getLogger(__name__)

_TABLE_ROWS = 16


class FreshSamples(Callback):
    """Samples from the policy on held-out prompts at the start, every so many steps, and at the end.

    Every method is measured by this one protocol. Training is not disturbed: the random state and the modules' modes
    are left as they were.

    Args:
        num_prompts: Held-out prompts.
        every_n_steps: Optimiser steps between two; ``None`` samples at the start and at the end only.
        engine: Makes what draws from the policy.
        sampling: How to draw.
        reward: Judges the samples; ``None`` leaves rewards out.
        start_model: What the KL is taken against: ``reference`` is the run's own reference, where it can score fresh
            samples, and ``load`` loads the starting weights once more where it cannot.
        folder: The run's folder: samples and metrics are written there.

    Raises:
        ConfigError: The engine gives completions that another run has written.
    """

    def __init__(
        self,
        *,
        num_prompts: int,
        every_n_steps: int | None,
        engine: EngineBuilder,
        sampling: Sampling,
        reward: Reward | None,
        start_model: Literal["reference", "load"],
        folder: Path,
    ) -> None:
        if isinstance(engine, partial) and engine.func is ReplayEngine:
            expected = "an engine that draws from the policy, for example alignment.rollout.hf.HFEngine"
            raise ConfigError("callbacks.fresh_samples.engine", got="ReplayEngine", expected=expected)
        self.num_prompts = num_prompts
        self.every_n_steps = every_n_steps
        self.engine, self.sampling = engine, sampling
        self.reward = reward
        self.start_model = start_model
        self.folder = folder
        self._start: LogprobModel | None = None
        self._start_rewards: dict[str, list[float]] | None = None
        self._measured_step = -1

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed run cannot measure any more: the start's rewards, and what has been measured."""
        return {"start_rewards": self._start_rewards, "measured_step": self._measured_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores it."""
        self._start_rewards = state_dict["start_rewards"]
        self._measured_step = state_dict["measured_step"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the start."""
        if trainer.global_step == 0:
            samples = self._measure(trainer, pl_module).samples
            self._start_rewards = None if self.reward is None else rewards_by_prompt(samples)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures when it is due, at the end of an optimiser step."""
        due = self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0
        if due and trainer.global_step != self._measured_step and not trainer.fit_loop._should_accumulate():
            self._measure(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures the end."""
        if trainer.global_step != self._measured_step:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: pl.Trainer, module: Any) -> Evaluation:
        step, began = trainer.global_step, time.perf_counter()
        prompts = trainer.datamodule.held_out_prompts(self.num_prompts)  # type: ignore[attr-defined]
        if self._start_rewards is not None and self._start_rewards.keys() != {prompt.id for prompt in prompts}:
            log.warning("the start was measured on other prompts: fresh samples are no longer compared with it")
            self._start_rewards = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(whole(module.policy))
            start = stack.enter_context(self._scorer(module))
            evaluation = evaluate_policy(
                policy=module.policy,
                start=start,
                tokenizer=module.bundle.tokenizer,
                engine=self.engine,
                prompts=prompts,
                sampling=self.sampling,
                reward=self.reward,
                start_rewards=self._start_rewards,
                rank=trainer.global_rank,
                world_size=trainer.world_size,
            )
        self._measured_step = step
        module.budget["tokens_measured"] += evaluation.tokens_generated
        module.publish({f"fresh/{name}": estimate.mean for name, estimate in evaluation.metrics.items()})
        if trainer.is_global_zero:
            record_evaluation(evaluation, self.folder, step=step, policy=f"step {step}")
            self._tables(trainer, evaluation)
        module.leave_out(time.perf_counter() - began)
        return evaluation

    @contextlib.contextmanager
    def _scorer(self, module: Any) -> Iterator[Scorer | None]:
        reference = module.bundle.reference
        scorer = None if reference is None else reference.scorer()
        if reference is not None and scorer is not None:
            with whole(reference.frozen) if reference.frozen is not None else contextlib.nullcontext():
                yield scorer
        elif self.start_model == "load":
            if self._start is None:
                self._start = module.bundle.load_start().to(module.device)
            yield self._start
        else:
            if self._measured_step < 0:
                log.info(
                    "KL to the start is left out: no reference of this run can score fresh samples "
                    "(callbacks.fresh_samples.start_model=load keeps a second copy of the start for it)"
                )
            yield None

    def _tables(self, trainer: pl.Trainer, evaluation: Evaluation) -> None:
        columns = ["step", "prompt", "completion", "reward", "log_ratio_nats"]
        rows = [
            [trainer.global_step, str(s.rollout.prompt), s.rollout.completion, s.reward, s.log_ratio_nats]
            for s in evaluation.samples[:_TABLE_ROWS]
        ]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("samples", columns=columns, data=rows, step=trainer.global_step)
