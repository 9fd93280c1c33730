"""Reward models as a reward: one, or an ensemble of several."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignment.data.records import Demonstration
from alignment.data.tokenizer import TokenizerOptions
from alignment.models.backbone import DType
from alignment.rewards.trained import JudgeOptions, Rendered, TrainedJudge
from alignment.types import Head, Rewards, Rollout
from alignment.utils.errors import ConfigError

log = logging.getLogger(__name__)

Aggregate = Literal["mean", "min", "mean_minus_variance"]


class ModelReward:
    """Scores a completion with sequence classifiers of one output, read at the last real token.

    Each member renders prompt and completion with its own tokenizer and chat template, and puts its end-of-sequence
    token behind them, as in training; a completion that was cut off is judged as if it ended there. An ensemble is
    put together as in Coste et al. 2023, arXiv 2310.02743, section 3: the mean, the minimum (worst-case
    optimisation), or mean - coefficient * variance over members (uncertainty-weighted optimisation).

    Components: ``prompt_cut`` (1 where a member could not read the whole prompt), and of an ensemble ``member_1``,
    ``member_2``, ... and their standard deviation ``spread``.

    Args:
        paths: Folders or hub names; several are an ensemble.
        revision: The hub's commit, branch or tag of the one model; ``None`` for the default branch.
        aggregate: How members' scores become one.
        variance_coefficient: For ``mean_minus_variance``, in 1 / unit of the scores; ``None`` for the others.
        dtype: Type of the weights in memory.
        device: Where the models are; ``cuda`` is the device that this process uses.
        batch_size: Sequences of a forward pass.
        max_length: The most tokens of prompt and completion together; ``None`` is as many as a model can read. A
            prompt that does not fit loses its beginning, a completion that does not fit is an error.
        tokenizer: What the members' tokenizers lack.
    """

    def __init__(
        self,
        *,
        paths: list[str],
        revision: str | None,
        aggregate: Aggregate,
        variance_coefficient: float | None,
        dtype: DType,
        device: Literal["cpu", "cuda"],
        batch_size: int,
        max_length: int | None,
        tokenizer: TokenizerOptions,
    ) -> None:
        _check(paths, revision=revision, aggregate=aggregate, coefficient=variance_coefficient)
        options = JudgeOptions(revision, dtype, device, batch_size, max_length, tokenizer)
        self.members = [TrainedJudge(path, key="reward.paths", head=Head.SCORE, options=options) for path in paths]
        self.aggregate: Aggregate = aggregate
        self.variance_coefficient = variance_coefficient

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Scores each completion, without a unit.

        Raises:
            UserError: A member cannot be loaded or is no reward model, or cannot read a completion.
        """
        if not rollouts:
            return Rewards(total=(), components={})
        scores: list[Tensor] = []
        cut = torch.zeros(len(rollouts), dtype=torch.bool)
        for member in self.members:
            rendered = _render(member, rollouts)
            scores.append(torch.stack(member.read(rendered)))
            was_cut = torch.tensor([item.prompt_cut for item in rendered])
            if was_cut.any():
                log.warning("%s: the beginning of %d prompts was cut off", member.path, was_cut.sum().item())
            cut |= was_cut
        table = torch.stack(scores).double()
        total = aggregated(table, aggregate=self.aggregate, coefficient=self.variance_coefficient)
        components = {"prompt_cut": tuple(cut.double().tolist())}
        if len(self.members) > 1:
            components |= {f"member_{number}": tuple(row.tolist()) for number, row in enumerate(table, start=1)}
            components["spread"] = tuple(table.std(0, correction=0).tolist())
        return Rewards(total=tuple(total.tolist()), components=components)


def aggregated(
    scores: Float[Tensor, "members rollouts"], *, aggregate: Aggregate, coefficient: float | None
) -> Float[Tensor, "rollouts"]:
    """Makes one score of the members' scores; see :class:`ModelReward`. The variance is over members, not unbiased.

    >>> scores = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> aggregated(scores, aggregate="mean_minus_variance", coefficient=0.5)
    tensor([1.5000, 0.0000])
    """
    if aggregate == "min":
        return scores.min(0).values
    if coefficient is None:
        return scores.mean(0)
    return scores.mean(0) - coefficient * scores.var(0, correction=0)


def _render(member: TrainedJudge, rollouts: Sequence[Rollout]) -> list[Rendered]:
    """Takes each completion for a demonstration; one of nothing but white space is the end-of-sequence token alone."""
    spoken = [place for place, rollout in enumerate(rollouts) if rollout.completion.strip()]
    records = [
        Demonstration(id=rollout.prompt_id, prompt=rollout.prompt, completion=rollout.completion)
        for rollout in (rollouts[place] for place in spoken)
    ]
    rendered = dict(zip(spoken, member.render(records), strict=True))
    for place, rollout in enumerate(rollouts):
        if place not in rendered:
            rendered[place] = member.render_empty(rollout.prompt, name=rollout.prompt_id)
    return [rendered[place] for place in range(len(rollouts))]


def _check(paths: list[str], *, revision: str | None, aggregate: Aggregate, coefficient: float | None) -> None:
    if not paths:
        raise ConfigError("reward.paths", got=paths, expected="at least one folder or hub name")
    if revision is not None and len(paths) > 1:
        raise ConfigError("reward.revision", got=revision, expected="null for an ensemble: a revision is of one model")
    if len(paths) == 1 and aggregate != "mean":
        raise ConfigError("reward.aggregate", got=aggregate, expected="mean, because there is one model only")
    needs = aggregate == "mean_minus_variance"
    if needs and (coefficient is None or not coefficient > 0):
        raise ConfigError(
            "reward.variance_coefficient",
            got=coefficient,
            expected="more than 0 for reward.aggregate=mean_minus_variance",
        )
    if not needs and coefficient is not None:
        raise ConfigError(
            "reward.variance_coefficient",
            got=coefficient,
            expected=f"null for reward.aggregate={aggregate}",
            hint="only mean_minus_variance uses it",
        )
