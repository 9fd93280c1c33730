"""IFEval: the share of verifiable instructions that a completion follows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from alignment.rewards.ifeval_checks import CHECKS, Check
from alignment.rewards.reading import field_names, record_error
from alignment.types import Rewards, Rollout
from alignment.utils.errors import BrokenJudgeError, UserError, nearest

IDS, ARGUMENTS = "instruction_id_list", "kwargs"
"""The fields of a record, as in the published data."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a prompt: its name and the check with its arguments."""

    name: str
    check: Check


class IFEvalReward:
    """How many of its prompt's instructions a completion follows (Zhou et al. 2023, arXiv 2311.07911).

    The record brings ``instruction_id_list`` and ``kwargs``, a mapping of arguments for each instruction, of which
    those that are null are left out. An empty completion follows no instruction.

    Components: ``followed``, the share of instructions; ``all_followed``, 1 where it is all of them.

    Args:
        total: ``share`` pays for each instruction, ``all`` only for all of them (the paper's prompt-level accuracy).
        mode: ``strict`` checks the completion as it is. ``loose`` is the paper's second accuracy: an instruction is
            followed if it is by any of eight texts, without the first line, the last line, both or neither, each with
            and without its asterisks.
    """

    def __init__(self, *, total: Literal["share", "all"], mode: Literal["strict", "loose"]) -> None:
        self.total = total
        self.mode = mode

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Checks each completion.

        Raises:
            BlamedError: A record without instructions, an instruction that is unknown or lacks an argument, or a
                language to check without the package for it.
        """
        shares = tuple(self._share(rollout) for rollout in rollouts)
        complete = tuple(float(share == 1.0) for share in shares)
        total = shares if self.total == "share" else complete
        return Rewards(total=total, components={"followed": shares, "all_followed": complete})

    def _share(self, rollout: Rollout) -> float:
        texts = loose_texts(rollout.completion) if self.mode == "loose" else [rollout.completion]
        spoken = [text for text in texts if text.strip()]
        instructions = read_instructions(rollout)
        followed = 0
        for instruction in instructions:
            try:
                followed += any(map(instruction.check, spoken))
            except BrokenJudgeError:
                raise
            except (UserError, TypeError, ValueError, AttributeError) as error:
                raise record_error(rollout, reward="ifeval", message=str(error), part=instruction.name) from error
        return followed / len(instructions)


def loose_texts(text: str) -> list[str]:
    r"""Returns the eight texts of the loose accuracy.

    >>> loose_texts("Sure!\n*Yes*\nBye")[:4]
    ['Sure!\n*Yes*\nBye', '*Yes*\nBye', 'Sure!\n*Yes*', '*Yes*']
    >>> loose_texts("Sure!\n*Yes*\nBye")[7]
    'Yes'
    """
    lines = text.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [variant.replace("*", "") if bare else variant for bare in (False, True) for variant in (text, *cut)]


def read_instructions(rollout: Rollout) -> list[Instruction]:
    """Returns the instructions that a prompt's record brings.

    Raises:
        BlamedError: There are none, or one is unknown or has the wrong arguments.
    """
    ids, arguments = rollout.answer.get(IDS), rollout.answer.get(ARGUMENTS)
    if not isinstance(ids, list) or not isinstance(arguments, list) or len(ids) != len(arguments) or not ids:
        raise record_error(
            rollout,
            reward="ifeval",
            message=f"its record needs '{IDS}' and '{ARGUMENTS}', two lists of one length (it has "
            f"{field_names(rollout)}). Use prompts in the format of IFEval, or another reward",
        )
    return [_instruction(rollout, name, given or {}) for name, given in zip(ids, arguments, strict=True)]


def _instruction(rollout: Rollout, name: object, given: Mapping[str, Any]) -> Instruction:
    if not isinstance(name, str) or name not in CHECKS:
        known = f"{', '.join(CHECKS)}. {nearest(str(name), CHECKS)}".strip()
        message = f"unknown instruction {name!r}, expected one of {known}"
        raise record_error(rollout, reward="ifeval", message=message)
    arguments = {key: value for key, value in given.items() if value is not None}
    try:
        inspect.signature(CHECKS[name]).bind("", **arguments)
    except TypeError as error:
        message = f"{error} in its {ARGUMENTS}: {arguments}"
        raise record_error(rollout, reward="ifeval", message=message, part=name) from error
    return Instruction(name, partial(CHECKS[name], **arguments))
