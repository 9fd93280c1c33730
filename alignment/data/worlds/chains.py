"""A world of chains of sums, whose every step is known to be right or wrong.

A prompt gives a number and a few operations on it; a solution writes one line for each operation and the answer
in the last. The solver that this module plays often forgets the carry (or the borrow) where a sum crosses a ten,
and seldom slips anywhere else; what it wrote, right or wrong, is what it goes on with. Because the
forgotten carry is the same mistake every time, many solutions of one prompt agree on the same wrong answer.

A step is right if it follows from the text so far: it does the operation that the prompt asks for at this place,
on the number that the line before ends with, and the equation holds. So a step that goes on correctly from a
wrong number is right, and the wrong one is the one that made the number. The line with the answer is a step too:
it is right if it repeats the number of the line before.

Everything here is a pure function of its arguments: there is no state and no hidden randomness.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from alignment.data.records import PromptLike

CHAINS_VERSION = 1
"""Part of every fingerprint: raised when the texts or the solver change."""

Split = Literal["train", "held_out"]

VALUES = range(10, 90)
"""Where a chain begins, and where its true numbers stay; wrong ones may leave it."""
OPERANDS = (3, 4, 6, 7)
SLIPS = (-10, -2, -1, 1, 2, 10)
"""By how much a number is off where the solver slips."""

_WORDS = {"Add": "+", "Subtract": "-"}
_OPERATION = r"(Add|Subtract) (\d+)\."
_PROMPT = re.compile(rf"Start with (\d+)\.((?: {_OPERATION})+)")
_STEP = re.compile(r"(-?\d+) ([+-]) (\d+) = (-?\d+)")
_ANSWER = re.compile(r"Answer: (-?\d+)")


@dataclass(frozen=True)
class Operation:
    """Adds a number, or subtracts it."""

    sign: Literal["+", "-"]
    operand: int

    def __call__(self, value: int) -> int:
        """Does it."""
        return value + self.operand if self.sign == "+" else value - self.operand


@dataclass(frozen=True)
class Chain:
    """What a prompt asks for: a number, and what is done to it."""

    start: int
    operations: tuple[Operation, ...]

    @property
    def answer(self) -> int:
        """The number at the end."""
        value = self.start
        for operation in self.operations:
            value = operation(value)
        return value


@dataclass(frozen=True)
class Solver:
    """How often the solver of this world errs.

    Attributes:
        forget: Probability that a carry or a borrow is forgotten, where a sum crosses a ten.
        slip: Probability that the number of any other line, the answer's too, is off by one, two or ten.
    """

    forget: float
    slip: float


def sample_chain(split: Split, *, num_operations: tuple[int, int], random: Random) -> Chain:
    """Draws a chain; one in five is held out, and never drawn for training.

    Args:
        split: A chain is held out if its start and its operands add up to a multiple of five.
        num_operations: The fewest and the most.
        random: Draws.
    """
    while True:
        value = start = random.choice(VALUES)
        operations: list[Operation] = []
        for _ in range(random.randint(*num_operations)):
            choices = [op for op in _OPERATIONS if op(value) in VALUES]
            operations.append(random.choice(choices))
            value = operations[-1](value)
        chain = Chain(start, tuple(operations))
        if is_held_out(chain) == (split == "held_out"):
            return chain


def is_held_out(chain: Chain) -> bool:
    """Says whether a chain is kept from training.

    >>> is_held_out(Chain(12, (Operation("+", 8),))), is_held_out(Chain(13, (Operation("+", 8),)))
    (True, False)
    """
    return (chain.start + sum(operation.operand for operation in chain.operations)) % 5 == 0


def prompt_text(chain: Chain) -> str:
    """Writes the prompt of a chain.

    >>> prompt_text(Chain(27, (Operation("+", 5), Operation("-", 3))))
    'Start with 27. Add 5. Subtract 3.'
    """
    words = {sign: word for word, sign in _WORDS.items()}
    operations = "".join(f" {words[operation.sign]} {operation.operand}." for operation in chain.operations)
    return f"Start with {chain.start}.{operations}"


def parse_prompt(prompt: PromptLike) -> Chain:
    """Reads the chain from a prompt, or from its last message.

    Raises:
        ValueError: The prompt is not one of this world.
    """
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    found = _PROMPT.fullmatch(text)
    if found is None:
        raise ValueError(f"not a prompt of the chains world: {text[:80]!r}")
    operations = tuple(Operation(_WORDS[word], int(operand)) for word, operand in re.findall(_OPERATION, found[2]))  # type: ignore[arg-type]
    return Chain(int(found[1]), operations)


def sample_solution(chain: Chain, *, solver: Solver, random: Random) -> tuple[str, ...]:
    """Writes a solution as the solver does, mistakes included: its lines, the answer in the last.

    Every number that is written is what the next line goes on with.
    """
    lines: list[str] = []
    value = chain.start
    for operation in chain.operations:
        result = _solved(value, operation, solver=solver, random=random)
        lines.append(f"{value} {operation.sign} {operation.operand} = {result}")
        value = result
    return (*lines, f"Answer: {_slipped(value, solver=solver, random=random)}")


def judge(chain: Chain, lines: Sequence[str]) -> tuple[bool, ...]:
    """Says of each line of any text whether it is right, given the lines before it.

    A line that is no step at all is wrong; a step behind one goes on from the last number that was written.

    >>> chain = Chain(27, (Operation("+", 5), Operation("-", 3)))
    >>> judge(chain, ["27 + 5 = 22", "22 - 3 = 19", "Answer: 19"])
    (False, True, True)
    """
    verdicts: list[bool] = []
    value = chain.start
    for place, line in enumerate(lines):
        if place < len(chain.operations):
            step, operation = _STEP.fullmatch(line), chain.operations[place]
            asked = (str(value), operation.sign, str(operation.operand), str(operation(value)))
            verdicts.append(step is not None and step.groups() == asked)
            value = int(step[4]) if step else value
        else:
            verdicts.append(place == len(chain.operations) and line == f"Answer: {value}")
    return tuple(verdicts)


def is_solved(chain: Chain, lines: Sequence[str]) -> bool:
    """Says whether the last line gives the right answer, however it was come by."""
    found = _ANSWER.fullmatch(lines[-1]) if lines else None
    return found is not None and int(found[1]) == chain.answer


def _solved(value: int, operation: Operation, *, solver: Solver, random: Random) -> int:
    units = operation(value % 10)
    if value >= 0 and not 0 <= units < 10:
        return value - value % 10 + units % 10 if random.random() < solver.forget else operation(value)
    return _slipped(operation(value), solver=solver, random=random)


def _slipped(value: int, *, solver: Solver, random: Random) -> int:
    return value + random.choice(SLIPS) if random.random() < solver.slip else value


_OPERATIONS = tuple(Operation(sign, operand) for sign in ("+", "-") for operand in OPERANDS)
