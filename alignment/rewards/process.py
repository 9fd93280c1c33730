"""A process reward model as a reward: how likely each step of a solution is to be right."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignment.data.records import Stepwise
from alignment.data.steps import steps_of
from alignment.data.tokenizer import TokenizerOptions
from alignment.models.backbone import DType
from alignment.rewards.trained import JudgeOptions, TrainedJudge
from alignment.types import Head, Rewards, Rollout
from alignment.utils.errors import ConfigError

log = logging.getLogger(__name__)

RIGHT = 1
"""Which of the two outputs says that a step is right."""

_AGGREGATES: dict[str, Callable[[Float[Tensor, "steps"]], Float[Tensor, ""]]] = {
    "min": torch.min,
    "product": torch.prod,
    "mean": torch.mean,
    "last": lambda steps: steps[-1],
}


class ProcessReward:
    """Scores a solution by the probabilities of its steps to be right, read at each step's last token.

    The tokens are those of training (Lightman et al. 2023, arXiv 2305.20050, who take the product; the minimum is that
    of Wang et al. 2023, arXiv 2312.08935): white space around a step is left out, steps are joined by a line break.

    Components: the other aggregates; ``steps``, how many there are; ``first_error_step``, the number of the first step
    that is more likely wrong than right, counted from 0, or -1; ``prompt_cut``, 1 where the prompt's beginning did not
    fit. An empty solution has no steps and scores 0.

    Args:
        path: A folder that ``method=prm`` exported, or a hub name.
        revision: The hub's commit, branch or tag; ``None`` for the default branch.
        aggregate: How the steps' probabilities become one score in [0, 1].
        separator: What ends a step in a completion.
        dtype: Type of the weights in memory.
        device: Where the model is; ``cuda`` is the device that this process uses.
        batch_size: Solutions of a forward pass.
        max_length: The most tokens of prompt and solution together; ``None`` is as many as the model can read. A
            prompt that does not fit loses its beginning, a solution that does not fit is an error.
        tokenizer: What the judge's tokenizer lacks.
    """

    def __init__(
        self,
        *,
        path: str,
        revision: str | None,
        aggregate: Literal["min", "product", "mean", "last"],
        separator: str,
        dtype: DType,
        device: Literal["cpu", "cuda"],
        batch_size: int,
        max_length: int | None,
        tokenizer: TokenizerOptions,
    ) -> None:
        if not separator:
            raise ConfigError("reward.separator", got=separator, expected="a text that ends each step")
        options = JudgeOptions(revision, dtype, device, batch_size, max_length, tokenizer)
        self.judge = TrainedJudge(path, key="reward.path", head=Head.STEPS, options=options)
        self.aggregate = aggregate
        self.separator = separator
        self._separator_was_seen = False

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Scores each completion.

        Raises:
            ConfigError: The separator has occurred in no completion yet: they are not what this model judges. Once it
                has, a policy that trains may also write solutions of one step.
            UserError: The model cannot be loaded or is no process reward model, or cannot read a completion.
        """
        if not rollouts:
            return Rewards(total=(), components={})
        self._check_separator(rollouts)
        steps = [tuple(step.text for step in steps_of(rollout.completion, self.separator)) for rollout in rollouts]
        records = [
            Stepwise(id=rollout.prompt_id, prompt=rollout.prompt, steps=texts, labels=(0.0,) * len(texts))
            for rollout, texts in zip(rollouts, steps, strict=True)
            if texts
        ]
        rendered = self.judge.render(records)
        if cut := sum(item.prompt_cut for item in rendered):
            log.warning("%s: the beginning of %d prompts was cut off", self.judge.path, cut)
        judged = iter(zip(rendered, self.judge.read(rendered), strict=True))
        rows = []
        for texts in steps:
            if not texts:
                rows.append(_row(torch.zeros(0), prompt_cut=False))
                continue
            item, logits = next(judged)
            rows.append(_row(logits.double().softmax(-1)[:, RIGHT], prompt_cut=item.prompt_cut))
        columns = {name: tuple(row[name] for row in rows) for name in rows[0]}
        return Rewards(total=columns.pop(self.aggregate), components=columns)

    def _check_separator(self, rollouts: Sequence[Rollout]) -> None:
        self._separator_was_seen |= any(self.separator in rollout.completion for rollout in rollouts)
        if not self._separator_was_seen:
            raise ConfigError(
                "reward.separator",
                got=self.separator,
                expected=f"what ends a step: it occurs in none of {len(rollouts)} completions, the first of which "
                f"begins with {rollouts[0].completion[:40]!r}",
                hint="Set it, or judge answers as a whole with reward=model",
            )


def _row(probabilities: Float[Tensor, "steps"], *, prompt_cut: bool) -> dict[str, float]:
    """Returns every aggregate and component of one solution."""
    count = len(probabilities)
    wrong = (probabilities < 0.5).nonzero()
    return {
        **{name: make(probabilities).item() if count else 0.0 for name, make in _AGGREGATES.items()},
        "steps": float(count),
        "first_error_step": float(wrong[0]) if len(wrong) else -1.0,
        "prompt_cut": float(prompt_cut),
    }
