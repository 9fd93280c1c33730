"""A reward by comparison: how often a judge finds a completion better than the others of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from alignment.rewards.base import Reward
from alignment.rewards.composite import CompositeReward
from alignment.rewards.errors import BlamedError, BrokenRewardError, place, places_by_prompt, reason, shown
from alignment.types import Rewards, Rollout
from alignment.utils.errors import BrokenJudgeError, ConfigError


@dataclass(frozen=True)
class Comparison:
    """Two completions of a prompt, in the order in which a judge sees them.

    Attributes:
        prompt: Text, or chat messages.
        first: A completion's text.
        second: Another one's.
    """

    prompt: Any
    first: str
    second: str


@runtime_checkable
class Judge(Protocol):
    """Says which of two completions is better: a language model, a person's record, a rule."""

    def compare(self, comparisons: Sequence[Comparison]) -> Sequence[float]:
        """Returns for each comparison the probability that the first completion is the better one; .5 is a tie.

        Raises:
            BrokenJudgeError: It cannot work at all, whatever it is asked.
        """
        ...


class JudgeReward:
    """The share of a prompt's other completions that a completion beats, in a judge's eyes.

    Every two completions of a prompt are shown in both orders, and a beats b with probability
    (P(a is better | a, b) + 1 - P(b is better | b, a)) / 2, so that a judge's liking for a place cancels. The total is
    the mean over the prompt's other completions, in [0, 1]; over a prompt it is .5 on average, whatever was written.
    Equal texts tie, and nobody is asked about them. All questions of a batch are asked at once.

    Components: ``position_flips``, the share of those comparisons in which the same place won in both orders.

    Args:
        judge: Compares.

    Raises:
        ConfigError: It has no method ``compare``.
    """

    def __init__(self, *, judge: Judge) -> None:
        if not isinstance(judge, Judge):  # a configuration may build anything
            expected = "an object with compare(comparisons) -> probabilities"
            raise ConfigError("reward.judge", got=type(judge).__name__, expected=expected)
        self.judge = judge

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Compares the completions of each prompt with one another.

        Raises:
            BlamedError: A prompt has a single completion, or the judge raised or gave something else than one
                probability for each comparison.
            BrokenJudgeError: The judge cannot work.
        """
        groups = [[rollouts[place] for place in places] for places in places_by_prompt(rollouts)]
        for group in groups:
            _check_not_alone(group)
        # Equal texts are asked about once, however often they were written.
        questions = {
            (first.prompt_id, first.completion, second.completion): (first, second)
            for group in groups
            for first in group
            for second in group
            if first.completion != second.completion
        }
        answers = dict(zip(questions, self._ask(list(questions.values())), strict=True))
        totals, flips = torch.zeros(2, len(rollouts), dtype=torch.float64)
        for group, places in zip(groups, places_by_prompt(rollouts), strict=True):
            table = [[answers.get((a.prompt_id, a.completion, b.completion), 0.5) for b in group] for a in group]
            first_wins = torch.tensor(table, dtype=torch.float64)
            totals[places] = win_rates(first_wins)
            flips[places] = position_flips(first_wins)
        return Rewards(total=tuple(totals.tolist()), components={"position_flips": tuple(flips.tolist())})

    def _ask(self, questions: Sequence[tuple[Rollout, Rollout]]) -> list[float]:
        """Asks all at once; where that fails one by one, to find the comparison to blame."""
        if not questions:
            return []
        try:
            answers = self.judge.compare([Comparison(a.prompt, a.completion, b.completion) for a, b in questions])
            if len(answers) != len(questions):
                raise BrokenRewardError(f"the judge gave {len(answers)} answers to {len(questions)} comparisons")
        except (ConfigError, BrokenJudgeError):
            raise
        except Exception as error:
            if len(questions) == 1:
                raise _blamed(questions[0], reason(error)) from error
            for question in questions:
                self._ask([question])
            why = f"fails on {len(questions)} comparisons together and on none alone: {reason(error)}"
            raise _blamed(questions[0], why) from error
        for question, answer in zip(questions, answers, strict=True):
            if not (isinstance(answer, Real) and 0 <= answer <= 1):
                raise _blamed(question, f"the judge gave {answer!r}, not a probability in [0, 1]")
        return [float(answer) for answer in answers]


def win_rates(first_wins: Float[Tensor, "n n"]) -> Float[Tensor, "n"]:
    """Returns the mean probability of each completion to beat the others, over both orders.

    Args:
        first_wins: P(row is better than column | row was shown first); the diagonal does not count.

    >>> win_rates(torch.tensor([[0.5, 0.9], [0.3, 0.5]]))  # the first wins with (0.9 + 0.7) / 2
    tensor([0.8000, 0.2000])
    """
    # As a difference: a judge that always says the same leaves exactly .5.
    return 0.5 + (first_wins - first_wins.T).sum(1) / (2 * (len(first_wins) - 1))


def position_flips(first_wins: Float[Tensor, "n n"]) -> Float[Tensor, "n"]:
    """Returns for each completion the share of the others against which the place that won was the same in both orders.

    Args:
        first_wins: As in :func:`win_rates`, with .5 on the diagonal.

    >>> position_flips(torch.tensor([[0.5, 0.9, 0.9], [0.8, 0.5, 0.5], [0.3, 0.5, 0.5]]))
    tensor([0.5000, 0.5000, 0.0000])
    """
    lean = first_wins - 0.5
    return (lean * lean.T > 0).to(first_wins.dtype).fill_diagonal_(0).sum(1) / (len(first_wins) - 1)


def is_relative(reward: Reward) -> bool:
    """Whether a reward, or a part of it, says only how a completion stands among the others of its prompt.

    Such values compare completions of one prompt and one policy; they say nothing of two steps, or of two policies.
    """
    parts = [part for part, _ in reward.parts.values()] if isinstance(reward, CompositeReward) else []
    return isinstance(reward, JudgeReward) or any(map(is_relative, parts))


def _check_not_alone(group: Sequence[Rollout]) -> None:
    if len(group) == 1:
        raise BlamedError(
            f"reward=judge, {place(group[0])}: the only completion of its prompt, and a judge needs two to compare. "
            "Set method.rollouts.group_size to 2 or more, or where no method trains rollout.sampling.num_samples; "
            "fresh samples take another reward, +reward@callbacks.fresh_samples.reward=NAME"
        )


def _blamed(question: tuple[Rollout, Rollout], why: str) -> BlamedError:
    first, second = question
    return BlamedError(f"reward=judge, {place(first)} against {shown(second.completion)}: {why}")
