"""Solutions as text, taken apart into steps."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step of a solution.

    Attributes:
        text: The step, without white space around it.
        end: Where the solution's text goes on behind the step and its separator.
    """

    text: str
    end: int


def steps_of(solution: str, separator: str) -> list[Step]:
    r"""Takes a solution apart at a separator; what holds nothing but white space is no step.

    A solution in which the separator never occurs is one step.

    >>> [step.text for step in steps_of("7 + 5 = 12\n\nAnswer: 12\n", "\n")]
    ['7 + 5 = 12', 'Answer: 12']
    """
    ends = [found.end() for found in re.finditer(re.escape(separator), solution)]
    starts = [0, *ends]
    steps = [
        Step(solution[start:end].removesuffix(separator).strip(), end)
        for start, end in zip(starts, [*ends, len(solution)], strict=True)
    ]
    return [step for step in steps if step.text]
