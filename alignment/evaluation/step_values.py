"""How often going on from a step of a solution reaches the right answer: Monte-Carlo values of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from alignment.data.chat import prompt_text
from alignment.data.encoding import Encoder
from alignment.data.records import Demonstration, PromptLike, Record, RecordError, Stepwise
from alignment.data.steps import Step, steps_of
from alignment.rewards.base import Reward
from alignment.rewards.errors import checked_scores
from alignment.rollout.engine import EncodedPrompt
from alignment.types import Rollout
from alignment.utils.errors import DataError, UserError


@dataclass(frozen=True)
class Solution:
    """An answer in steps.

    Attributes:
        id: Of its record.
        prompt: Text or chat messages.
        steps: Their texts.
        text: The whole answer.
        ends: For each step where ``text`` goes on behind it and its separator.
        answer: What a verifier needs.
    """

    id: str
    prompt: PromptLike
    steps: tuple[str, ...]
    text: str
    ends: tuple[int, ...]
    answer: dict[str, Any]

    @property
    def prefixes(self) -> list[str]:
        """What has been written when each step but the last is done."""
        return [self.text[:end] for end in self.ends[:-1]]


def solution_of(record: Record, separator: str) -> Solution:
    """Takes a record apart: judged steps as they are, a demonstration's answer at the separator.

    Args:
        record: A solution in steps, whose labels are not looked at, or a demonstration.
        separator: What stands between steps.

    Raises:
        DataError: A demonstration whose completion is more than one turn.
    """
    if isinstance(record, Stepwise):
        text = record.lead + separator.join(record.steps)
        ends = accumulate((len(step) + len(separator) for step in record.steps), initial=len(record.lead))
        steps = [Step(step, end) for step, end in zip(record.steps, list(ends)[1:], strict=True)]
    else:
        text = _single_answer(record)
        steps = steps_of(text, separator)
    return Solution(
        id=record.id,
        prompt=record.prompt,
        steps=tuple(step.text for step in steps),
        text=text,
        ends=tuple(step.end for step in steps),
        answer=record.answer,
    )


def step_prompts(solution: Solution, encoder: Encoder) -> list[EncodedPrompt]:
    """Returns what the model goes on from: the prompt with the first step behind it, with the first two, and so on.

    There is none for the last step, behind which nothing is left to write.

    Raises:
        DataError: The chat template refuses the prompt, or there is no token to begin with.
    """
    try:
        start = prompt_text(encoder.tokenizer, solution.prompt)
        texts = [start + prefix for prefix in solution.prefixes]
        encoded = encoder.encode(texts)
        ids = [tuple(encoder.prompt(encoded[text])) for text in texts]
    except RecordError as error:
        raise DataError(solution.id, str(error)) from error
    names = [f"{solution.id}/step {number}" for number in range(1, len(texts) + 1)]
    return [EncodedPrompt(name, solution.prompt, tokens) for name, tokens in zip(names, ids, strict=True)]


def finished(solution: Solution, rollouts: Sequence[Rollout]) -> Iterator[Rollout]:
    """Returns what the verifier reads: each continuation behind the steps that it goes on from.

    Args:
        solution: Whose steps they are.
        rollouts: As many of each step but the last, step by step.
    """
    if rollouts:
        each = len(rollouts) // len(solution.prefixes)
        for place, rollout in enumerate(rollouts):
            text = solution.prefixes[place // each] + rollout.completion
            yield replace(rollout, completion=text, answer=solution.answer)


def whole(solution: Solution) -> Rollout:
    """Returns the solution itself as a verifier reads it."""
    return Rollout(solution.id, solution.prompt, (), (), solution.text, "stop", 0, solution.answer)


def verdicts(reward: Reward, rollouts: Sequence[Rollout]) -> list[bool]:
    """Asks a verifier which answers are right.

    Raises:
        UserError: It gives something else than 0 and 1.
    """
    totals = checked_scores(reward, rollouts).total if rollouts else ()
    for rollout, total in zip(rollouts, totals, strict=True):
        if total not in (0.0, 1.0):
            raise UserError(
                f"reward: {type(reward).__name__} gives {total:g} for prompt {rollout.prompt_id}, and a verifier gives "
                "1 for a right answer and 0 for a wrong one: use reward=answer, or a reward of your own that does"
            )
    return [total == 1.0 for total in totals]


def _single_answer(record: Record) -> str:
    assert isinstance(record, Demonstration)
    if isinstance(record.completion, str):
        return record.completion
    if len(record.completion) > 1:
        raise DataError(record.id, f"the completion has {len(record.completion)} turns, and a solution is one")
    return record.completion[0]["content"]
