"""A reward for the right final answer, compared as numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from alignment.rewards.reading import answer_text, compiled, no_answer
from alignment.types import Rewards, Rollout

MOST_DIGITS = 100
"""A number with more digits is no answer."""

_NUMBER = re.compile(r"(?<![\w.])([-+]?)(\d[\d,]*(?:\.\d+)?|\.\d+)(?:/(\d+))?")
_SEPARATED = re.compile(r"\d{1,3}(,\d{3})+(\.\d+)?")
_FRACTION = re.compile(r"(?<!\d)\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_REMOVED = str.maketrans({"−": "-", "$": None, "€": None, "£": None})


class AnswerReward:
    """1 where the completion's final answer equals the prompt's, 0 where it does not or where there is none.

    Both are found by :class:`FinalAnswer`, so that a solution with ``#### 42`` will do as the prompt's answer (GSM8K;
    Cobbe et al. 2021, arXiv 2110.14168). The component ``found`` is 1 where the completion has an answer at all.

    Args:
        field: The field of the record's answer that holds it.
        pattern: As in :class:`FinalAnswer`.
        last_number: As in :class:`FinalAnswer`.
    """

    def __init__(self, *, field: str, pattern: str, last_number: bool) -> None:
        self.field = field
        self.given = FinalAnswer(key="reward.pattern", pattern=pattern, last_number=last_number)
        # The record's own answer is often the number alone.
        self.wanted = FinalAnswer(key="reward.pattern", pattern=pattern, last_number=True)

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Judges each completion.

        Raises:
            BlamedError: A prompt's record has no answer, or one without a number.
        """
        given = [self.given(rollout.completion) for rollout in rollouts]
        right = [self._right(rollout) for rollout in rollouts]
        return Rewards(
            total=tuple(float(mine == answer) for mine, answer in zip(given, right, strict=True)),
            components={"found": tuple(float(mine is not None) for mine in given)},
        )

    def _right(self, rollout: Rollout) -> Fraction:
        text = answer_text(rollout, self.field, reward="answer")
        answer = self.wanted(text)
        if answer is None:
            why = f"{self.field} is {text!r}, without a number"
            raise no_answer(rollout, self.field, reward="answer", why=why)
        return answer


class FinalAnswer:
    r"""Finds the number that a text ends up with.

    What ``pattern`` captures the last time that it matches is searched for its first number. A text in which it never
    matches has the last of all its numbers for an answer, if ``last_number`` says so, else none. Thousands separators,
    signs, decimals, fractions and currency signs are understood; nothing is ever evaluated.

    Args:
        key: The configuration key of the pattern, for messages.
        pattern: A regular expression with one group.
        last_number: Whether a text without a match still has an answer.

    >>> answer = FinalAnswer(key="pattern", pattern=r"Answer:([^\n]*)", last_number=True)
    >>> answer("5 + 7 = 12. Answer: $1,012.50."), answer("So it is 3/4"), answer("2 + 2. Answer: unknown")
    (Fraction(2025, 2), Fraction(3, 4), None)
    """

    def __init__(self, *, key: str, pattern: str, last_number: bool) -> None:
        self.pattern = compiled(pattern, key=key, group="the answer")
        self.last_number = last_number

    def __call__(self, text: str) -> Fraction | None:
        """Returns the number, or ``None``."""
        matches = self.pattern.findall(text)
        if matches:
            return next(iter(numbers(matches[-1])), None)
        return next(reversed(numbers(text)), None) if self.last_number else None


def numbers(text: str) -> list[Fraction]:
    r"""Returns the numbers of a text, in their order.

    >>> [str(number) for number in numbers("-1,000 and 2.50, then 7-5 and \\frac{1}{2}")]
    ['-1000', '5/2', '7', '5', '1/2']
    """
    plain = _FRACTION.sub(r"\1/\2", text.translate(_REMOVED))
    return [number for found in _NUMBER.finditer(plain) for number in _read(*found.groups(default=""))]


def _read(sign: str, digits: str, denominator: str) -> list[Fraction]:
    """Reads one number; commas that separate no thousands make several of it."""
    parts = [digits.replace(",", "")] if _SEPARATED.fullmatch(digits) else [part for part in digits.split(",") if part]
    if max(map(len, [*parts, denominator])) > MOST_DIGITS or (denominator and not int(denominator)):
        return []
    values = [Fraction(part) for part in parts]
    values[0] *= -1 if sign == "-" else 1
    values[-1] /= int(denominator or 1)
    return values
