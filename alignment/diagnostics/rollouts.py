"""What is said and kept of completions that a policy wrote to learn from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import lightning.pytorch as pl
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from alignment.advantages.grpo import has_spread
from alignment.diagnostics.rollout_picks import pick_rollouts
from alignment.rollout.experience import Experience
from alignment.rollout.replay import LEFT_OUT
from alignment.utils.files import replacing


class RolloutObserver(Callback):
    """A callback that is shown each experience before it is trained on."""

    def on_rollouts(self, trainer: pl.Trainer, experience: Experience, number: int) -> None:
        """Is called on every rank, with all ranks' completions.

        Args:
            trainer: The run's.
            experience: With its advantages.
            number: Counts from 0.
        """

    def on_left_out(self, trainer: pl.Trainer, experience: Experience, number: int) -> None:
        """Is called before that, where some of what was written is not trained on.

        Args:
            trainer: The run's.
            experience: These groups, without advantages.
            number: Of the experience that they are not part of.
        """


class WriteRollouts(RolloutObserver):
    """Keeps every completion that was trained on, a Parquet file an experience: ``rollouts/000000.parquet``.

    Groups that were written and left out are in ``rollouts/left_out/``, under the same name.

    A row is a completion: prompt, tokens, log-probs under the sampler, rewards with their components, and advantages.
    Where W&B listens it is shown the best and the worst of some prompts, at the beginning, in the middle and at the
    end.

    Args:
        folder: The run's folder.
    """

    def __init__(self, *, folder: Path) -> None:
        self.folder = folder / "rollouts"
        self._next_table = 0.0
        self._unshown: list[list[Any]] = []

    def on_rollouts(self, trainer: pl.Trainer, experience: Experience, number: int) -> None:
        """Writes the file, whole or not at all."""
        if not trainer.is_global_zero:
            return
        rows = rollout_rows(experience, step=trainer.global_step)
        _write(rows, self.folder / f"{number:06d}.parquet")
        self._unshown = rollout_table(rows)
        if trainer.global_step >= self._next_table:
            self._show(trainer)
            half = float(trainer.estimated_stepping_batches) / 2
            self._next_table = half if trainer.global_step < half else math.inf

    def on_left_out(self, trainer: pl.Trainer, experience: Experience, number: int) -> None:
        """Writes the file of those, whole or not at all."""
        if trainer.is_global_zero:
            rows = rollout_rows(experience, step=trainer.global_step)
            _write(rows, self.folder / LEFT_OUT / f"{number:06d}.parquet")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows what was written last."""
        self._show(trainer)

    def _show(self, trainer: pl.Trainer) -> None:
        table, self._unshown = self._unshown, []
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and table:
                logger.log_table("rollouts", columns=list(TABLE), data=table, step=table[0][0])


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    with replacing(path) as file:
        parquet.write_table(pa.Table.from_pylist(rows), file)


#: Columns of the table of picked completions.
TABLE = ("step", "pick", "prompt", "completion", "reward", "components", "advantage", "finish_reason")


def rollout_table(rows: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """Returns the best and the worst completion of some prompts, a line of :data:`TABLE` each.

    Args:
        rows: Of an experience, as :func:`rollout_rows` makes them.
    """
    lines = []
    for pick in pick_rollouts(rows):
        sides = {"": pick.best} if pick.worst is None else {", best": pick.best, ", worst": pick.worst}
        for side, place in sides.items():
            row = rows[place]
            advantage = fmean(row["advantages"]) if row["advantages"] else None
            told = [row[name] for name in ("prompt", "completion", "reward", "components")]
            lines.append([row["step"], pick.why + side, *told, advantage, row["finish_reason"]])
    return lines


def rollout_rows(experience: Experience, *, step: int) -> list[dict[str, Any]]:
    """Turns an experience into one mapping a completion.

    Args:
        experience: With its advantages.
        step: Optimiser steps that the policy had made.
    """
    lengths = experience.lengths.tolist()
    advantages = [] if experience.advantages is None else experience.advantages.split(lengths)
    rows = []
    for place, rollout in enumerate(experience.rollouts):
        rows.append(
            {
                "step": step,
                "prompt_id": rollout.prompt_id,
                "prompt": json.dumps(rollout.prompt, ensure_ascii=False),
                "answer": json.dumps(rollout.answer, ensure_ascii=False),
                "sample": rollout.sample,
                "seed": rollout.seed,
                "completion": rollout.completion,
                "finish_reason": rollout.finish_reason,
                "prompt_ids": list(rollout.prompt_ids),
                "completion_ids": list(rollout.completion_ids),
                "token_logps": list(rollout.token_logps),
                "reward": experience.raw_rewards[place].item(),
                "shaped_reward": experience.rewards[place].item(),
                "components": json.dumps({name: v[place].item() for name, v in experience.components.items()}),
                "weight": experience.weights[place].item(),
                "advantages": advantages[place].tolist() if advantages else None,
            }
        )
    return rows


def rollout_metrics(experience: Experience) -> dict[str, Float[Tensor, "items"]]:
    """Returns what is logged about completions: values whose mean is taken, one a completion or a group."""
    metrics = {
        "reward/total": experience.raw_rewards,
        "reward/shaped": experience.rewards,
        "length/completion_tokens": experience.lengths.float(),
        "length/truncated_share": experience.truncated.float(),
    }
    metrics |= {f"reward/{name}": values for name, values in experience.components.items()}
    if experience.group_size > 1:
        metrics["reward/group_std"] = experience.grouped(experience.raw_rewards).std(1)
        metrics["advantage/zero_std_groups"] = ~has_spread(rewards=experience.grouped(experience.rewards))
    if experience.reference_logps is not None:
        metrics["kl/policy_reference_nats"] = experience.sums(experience.log_ratios)
    return {name: values.to(torch.float32) for name, values in metrics.items()}


def value_metrics(experience: Experience) -> dict[str, Float[Tensor, "1"]]:
    """Returns how well the critic foresaw what came: 1 perfectly, 0 no better than a constant; nothing without one."""
    if experience.values is None or experience.returns is None:
        return {}
    learnt = experience.per_token(experience.weights) > 0
    values, returns = experience.values[learnt], experience.returns[learnt]
    if not len(values):
        return {}
    explained = 1 - (returns - values).var(correction=0) / returns.var(correction=0).clamp_min(1e-12)
    return {"value/explained_variance": explained.view(1), "value/mean": values.mean().view(1)}
