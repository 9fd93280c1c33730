"""Errors whose reader is the person who typed the command.

They are printed as one message, without a traceback, and end the process with exit code 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from typing import Any


class UserError(ValueError):
    """Something that the user can put right: a configuration, a file, a model path."""


class ConfigError(UserError):
    """A configuration key with a value that cannot work.

    Args:
        key: The full dotted key, for example ``method.beta``.
        got: The offending value, shown with ``repr``.
        expected: What would have been accepted.
        hint: What to do about it.
    """

    def __init__(self, key: str, *, got: object, expected: str, hint: str = "") -> None:
        self.key, self.got, self.expected, self.hint = key, got, expected, hint
        message = f"{key}: got {got!r}, expected {expected}"
        super().__init__(f"{message}. {hint}" if hint else message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes whole to another process, as exceptions with named arguments by themselves do not."""
        return partial(type(self), self.key, got=self.got, expected=self.expected, hint=self.hint), ()


class DataError(UserError):
    """A record that cannot be used, with the place where it stands.

    Args:
        where: File and line, ``path/to/file.jsonl:17``, or the dataset's name and row.
        message: What is wrong with it and what to do.
    """

    def __init__(self, where: str, message: str) -> None:
        self.where, self.message = where, message
        super().__init__(f"{where}: {message}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Goes whole to another process."""
        return type(self), (self.where, self.message)


class BrokenJudgeError(UserError):
    """A reward's judge cannot work at all: no fault of a completion, so that it is never turned into a score."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``"did you mean 'x'?"`` for the nearest known name, or an empty string.

    >>> nearest("bta", ["beta", "label_smoothing"])
    "did you mean 'beta'?"
    >>> nearest("zzz", ["beta"])
    ''
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean '{found[0]}'?" if found else ""
