"""Choosing among several completions of a prompt: best of n by a scorer, and votes over final answers.

What is measured is the reward of the completion that would have been chosen from n samples, for several n at once and
from the same samples. Nothing here samples or judges: each sample brings its reward and its score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import groupby
from typing import Literal, Protocol

from alignment.evaluation.fresh import BOOTSTRAP_SEED, RESAMPLES, Sample
from alignment.evaluation.intervals import Estimate, bootstrap_ratio
from alignment.rewards.answer import FinalAnswer
from alignment.utils.errors import ConfigError, UserError


class Selection(Protocol):
    """A way to choose one of a prompt's samples."""

    @property
    def sizes(self) -> Sequence[int] | None:
        """From how many samples to choose; ``None`` for 1, 2, 4, ... and all."""
        ...

    def expected_reward(self, samples: Sequence[Sample], num: int) -> float:
        """Returns the mean reward of the one that is chosen from ``num`` of a prompt's samples, without bias."""
        ...

    def bound_nats(self, num: int) -> float | None:
        """Returns a bound on KL(chosen || policy) in nats, ``None`` where none is known."""
        ...


class BestOfN:
    """Takes the completion that the scorer likes best; the first of equal ones.

    Args:
        sizes: From how many samples to choose, each at most ``rollout.sampling.num_samples``; ``None`` for powers of
            two and all.
    """

    def __init__(self, *, sizes: list[int] | None) -> None:
        self.sizes = sizes

    def expected_reward(self, samples: Sequence[Sample], num: int) -> float:
        """Averages over every set of ``num`` samples; see :func:`best_of_subsets`."""
        return best_of_subsets(_rewards(samples), [_score(sample) for sample in samples], num)

    def bound_nats(self, num: int) -> float | None:
        """Returns log n - (n-1)/n; see :func:`best_of_n_bound`."""
        return best_of_n_bound(num)


class MajorityVote:
    """Takes the answer that most completions end with (self-consistency; Wang et al. 2022, arXiv 2203.11171).

    Of completions with the winning answer the first is taken; of answers with equal votes the one that came first. A
    completion without an answer has no vote. With weights the votes are the scorer's (Li et al. 2022, arXiv
    2206.02336).

    Args:
        sizes: As in :class:`BestOfN`.
        weights: What a vote counts: ``equal`` one, ``score`` the scorer's value, which must not be negative,
            ``sigmoid`` 1 / (1 + exp(-score)), for scores that may be.
        pattern: As in :class:`alignment.rewards.answer.FinalAnswer`.
        last_number: Likewise.
    """

    def __init__(
        self,
        *,
        sizes: list[int] | None,
        weights: Literal["equal", "score", "sigmoid"],
        pattern: str,
        last_number: bool,
    ) -> None:
        self.sizes = sizes
        self.weights = weights
        self.final_answer = FinalAnswer(key="selection.pattern", pattern=pattern, last_number=last_number)

    def expected_reward(self, samples: Sequence[Sample], num: int) -> float:
        """Averages over blocks of ``num`` samples that do not overlap; what is left over at the end is unused."""
        answers = [self.final_answer(sample.rollout.completion) for sample in samples]
        votes = [_WEIGHTS[self.weights](sample) for sample in samples]
        rewards = _rewards(samples)
        blocks = [slice(start, start + num) for start in range(0, len(samples) - num + 1, num)]
        return math.fsum(rewards[block][winner(answers[block], votes[block])] for block in blocks) / len(blocks)

    def bound_nats(self, num: int) -> float | None:
        """Returns nothing: no bound is known."""
        return None


def winner(answers: Sequence[Hashable], votes: Sequence[float]) -> int:
    """Returns the place of the first of the answers with the most votes; 0 where there is no answer at all.

    >>> winner(["7", None, "8", "8"], [1.0, 9.0, 1.0, 1.0]), winner(["7", "8", "8"], [3.0, 1.0, 2.0])
    (2, 0)
    """
    totals: dict[Hashable, float] = {}
    for answer, vote in zip(answers, votes, strict=True):
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + vote
    return answers.index(max(totals, key=totals.__getitem__)) if totals else 0


def best_of_subsets(rewards: Sequence[float], scores: Sequence[float], num: int) -> float:
    """Returns the mean reward of the highest-scored one over every subset of ``num`` samples.

    An unbiased estimate of best-of-n from N >= n samples: the one of rank i (from 0) is the best of C(N-1-i, n-1) of
    the C(N, n) subsets.

    Args:
        rewards: One a sample.
        scores: One a sample; of equal ones the first is better.
        num: n, from 1 to the number of samples.

    >>> best_of_subsets([0.0, 1.0, 0.0], [3.0, 2.0, 1.0], 2)  # {1, 2}, {1, 3} give 0, {2, 3} gives 1
    0.3333333333333333
    """
    total = len(rewards)
    shares = [math.comb(total - 1 - rank, num - 1) / math.comb(total, num) for rank in range(total)]
    return math.fsum(share * rewards[place] for share, place in zip(shares, _ranked(scores), strict=True))


def best_of_n_bound(num: int) -> float:
    """Returns log n - (n-1)/n, in nats: at most so far is the best of n samples from the model that drew them.

    The usual formula is the KL where all scores differ, and an upper bound elsewhere (Beirami et al. 2024, arXiv
    2401.01879).

    >>> best_of_n_bound(1), round(best_of_n_bound(4), 4)
    (0.0, 0.6363)
    """
    return math.log(num) - (num - 1) / num


def selection_sizes(selection: Selection, num_samples: int) -> list[int]:
    """Returns the numbers of samples to choose from, in ascending order.

    Args:
        selection: Names them, or leaves it to 1, 2, 4, ... and all.
        num_samples: How many samples a prompt has.

    Raises:
        ConfigError: One of them is not from 1 to ``num_samples``, or there is none.
    """
    sizes = selection.sizes
    if sizes is None:
        sizes = [2**power for power in range(num_samples.bit_length())] + [num_samples]
    if not sizes or not all(1 <= size <= num_samples for size in sizes):
        raise ConfigError(
            "selection.sizes",
            got=list(sizes),
            expected=f"numbers from 1 to rollout.sampling.num_samples ({num_samples}), or null",
        )
    return sorted(set(sizes))


def summarize_selection(
    samples: Sequence[Sample], selection: Selection, *, sizes: Sequence[int]
) -> dict[str, Estimate]:
    """Measures a way to choose.

    Args:
        samples: Prompt by prompt, equally many of each, with a reward and, where the selection asks one, a score.
        selection: How to choose.
        sizes: From how many; see :func:`selection_sizes`.

    Returns:
        ``selection/reward_at_N`` of the chosen one and ``selection/oracle_at_N`` of the one with the highest reward,
        for each size; without ``_at_N`` for the largest. ``selection/mean_reward`` over all samples. Where it is
        known, ``kl/best_of_n_bound_nats`` for the same sizes. Intervals are over prompts.
    """
    groups = [list(group) for _, group in groupby(samples, key=lambda sample: sample.rollout.prompt_id)]
    num = len(samples)
    metrics = {"selection/mean_reward": _estimate([math.fsum(_rewards(group)) / len(group) for group in groups], num)}
    for size in sorted(sizes):
        chosen = [selection.expected_reward(group, size) for group in groups]
        best = [best_of_subsets(_rewards(group), _rewards(group), size) for group in groups]
        found = {"selection/reward": _estimate(chosen, num), "selection/oracle": _estimate(best, num)}
        bound = selection.bound_nats(size)
        if bound is not None:
            found["kl/best_of_n_bound_nats"] = Estimate(bound, bound, bound, num)
        metrics |= found | {f"{name}_at_{size}": estimate for name, estimate in found.items()}
    return metrics


def _ranked(scores: Sequence[float]) -> list[int]:
    """Returns the places of the scores, the highest first; equal ones stay in their order."""
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def _rewards(samples: Sequence[Sample]) -> list[float]:
    rewards = [sample.reward for sample in samples if sample.reward is not None]
    assert len(rewards) == len(samples), "a selection is measured by a reward"
    return rewards


def _score(sample: Sample) -> float:
    assert sample.score is not None, "this selection needs a scorer"
    return sample.score


def _positive(sample: Sample) -> float:
    score = _score(sample)
    if score < 0:
        raise UserError(
            f"selection.weights=score: the scorer gave {score:g}, and a vote cannot count less than nothing. "
            "Use selection.weights=sigmoid, or a scorer whose values are at least 0"
        )
    return score


def _sigmoid(sample: Sample) -> float:
    # Unlike exp, tanh does not overflow.
    return 0.5 * (1.0 + math.tanh(0.5 * _score(sample)))


_WEIGHTS: dict[str, Callable[[Sample], float]] = {
    "equal": lambda _: 1.0,
    "score": _positive,
    "sigmoid": _sigmoid,
}


def _estimate(values: Sequence[float], num: int) -> Estimate:
    ones = [1.0] * len(values)
    return Estimate(*bootstrap_ratio(values, ones, resamples=RESAMPLES, seed=BOOTSTRAP_SEED), num)
