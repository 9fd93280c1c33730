"""The five kinds of record that any data set is brought into, and what makes one usable.

A record is validated when it is made; what is wrong is raised as :class:`RecordError`, which the
sources turn into a :class:`~alignment.utils.errors.DataError` with file and line, or count by reason.
This module imports neither torch nor ``datasets``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, ClassVar, TypedDict


class Message(TypedDict):
    """One turn of a chat: who speaks, and what."""

    role: str
    content: str


Messages = Sequence[Message]
PromptLike = str | Messages

ROLES = ("system", "user", "assistant", "tool")

STEP_END = "\n"
"""Ends each step of a judged solution; a step's value is read at the last token before it."""

TIE = 0.5
"""The probability of a preference whose sides are equally good."""


class RecordKind(StrEnum):
    """What a record offers."""

    DEMONSTRATION = "demonstration"
    PREFERENCE = "preference"
    BINARY = "binary"
    STEPWISE = "stepwise"
    PROMPT = "prompt"


class RecordError(ValueError):
    """A row that cannot become a record.

    Args:
        reason: A few words that many rows may share; dropped rows are counted by it.
        detail: What this row has, and what would do.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        super().__init__(f"{reason}: {detail}" if detail else reason)


class UnfitError(RecordError):
    """A sound row or record that cannot serve here: it is left out and counted, in a strict run too."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every record has.

    Attributes:
        id: Names the record in messages, caches and dumps; unique within a source.
        prompt: Text, or chat messages that end with another's turn than the assistant's.
        tokenizer_hash: The tokenizer that the ``*_ids`` fields were made with, if there are any.
        prompt_ids: The prompt as it was tokenised when a completion was generated from it.
        answer: Whatever a verifier needs to judge an answer to the prompt.
    """

    kind: ClassVar[RecordKind]

    id: str
    prompt: PromptLike
    tokenizer_hash: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    answer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text(self.id, "id")
        check_prompt(self.prompt)


@dataclass(frozen=True, kw_only=True)
class Demonstration(Record):
    """A prompt and what should follow it.

    ``completion`` is text, or, after a chat prompt, the turns from the assistant's first on: then
    every turn of the assistant is learnt from, not only the last.
    """

    kind = RecordKind.DEMONSTRATION
    completion: PromptLike
    completion_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.completion, str):
            check_completion(self.completion, "completion")
            return
        check_messages(self.completion, "completion")
        if isinstance(self.prompt, str):
            raise RecordError("completion is chat but prompt is text", "give both as messages or both as text")
        if self.completion[0]["role"] != "assistant" or self.completion[-1]["role"] != "assistant":
            raise RecordError(
                "the conversation does not end with the assistant", f"roles are {_roles(self.completion)}"
            )
        for message in self.completion:
            if message["role"] == "assistant":
                check_completion(message["content"], "completion")


@dataclass(frozen=True, kw_only=True)
class Preference(Record):
    """Two completions of one prompt, the first preferred.

    ``margin`` says by how much, and ``probability`` how likely it is that the first is the better, if known: from one
    half (a tie) to 1, which ``None`` stands for too.
    """

    kind = RecordKind.PREFERENCE
    chosen: str
    rejected: str
    margin: float | None = None
    probability: float | None = None
    chosen_ids: tuple[int, ...] | None = None
    rejected_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_completion(self.chosen, "chosen")
        check_completion(self.rejected, "rejected")
        if self.chosen == self.rejected:
            raise RecordError("chosen equals rejected", f"both are {_short(self.chosen)}")
        if self.margin is not None:
            check_finite(self.margin, "margin")
        if self.probability is not None and check_probability(self.probability) < TIE:
            raise RecordError("probability below one half", f"got {self.probability}: the other side is the chosen one")

    @property
    def is_tie(self) -> bool:
        """Whether neither side is the better."""
        return self.probability == TIE


@dataclass(frozen=True, kw_only=True)
class Binary(Record):
    """A completion with a thumbs up (True) or down."""

    kind = RecordKind.BINARY
    completion: str
    label: bool
    completion_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_completion(self.completion, "completion")
        if not isinstance(self.label, bool):
            hint = "use true or false, or say with data.train.label_values what your values mean"
            raise RecordError("label is not a boolean", f"got {self.label!r}; {hint}")


@dataclass(frozen=True, kw_only=True)
class Stepwise(Record):
    """A solution in steps, each with its quality in [0, 1], or ``None`` where nobody judged it."""

    kind = RecordKind.STEPWISE
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.steps) != len(self.labels):
            raise RecordError(
                "steps and labels differ in number", f"{len(self.steps)} steps, {len(self.labels)} labels"
            )
        for step in self.steps:
            check_completion(step, "step")
        for label in self.labels:
            if label is not None and not 0 <= check_finite(label, "label") <= 1:
                raise RecordError("step label outside [0, 1]", f"got {label!r}; use null for an unjudged step")
        if all(label is None for label in self.labels):
            raise RecordError("no step has a label")

    @property
    def lead(self) -> str:
        """What stands before the first step, so that a text prompt does not run into it."""
        runs_on = isinstance(self.prompt, str) and not self.prompt.endswith(("\n", " "))
        return STEP_END if runs_on else ""


@dataclass(frozen=True, kw_only=True)
class Prompt(Record):
    """A prompt to sample from."""

    kind = RecordKind.PROMPT


RECORD_TYPES: dict[RecordKind, type[Record]] = {
    RecordKind.DEMONSTRATION: Demonstration,
    RecordKind.PREFERENCE: Preference,
    RecordKind.BINARY: Binary,
    RecordKind.STEPWISE: Stepwise,
    RecordKind.PROMPT: Prompt,
}


def check_text(value: object, name: str) -> str:
    """Returns ``value`` if it is text that UTF-8 can hold.

    Raises:
        RecordError: It is not a string, or has lone surrogates (half of a character).
    """
    if not isinstance(value, str):
        raise RecordError(f"{name} is not text", f"got {type(value).__name__}: {_short(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError("lone surrogate", f"{name} holds {value[error.start]!r} at {error.start}") from error
    return value


def check_completion(value: object, name: str) -> str:
    """Returns ``value`` if it is text with something in it."""
    if not check_text(value, name).strip():
        raise RecordError(f"empty {name}", "nothing but white space")
    return value  # type: ignore[return-value]


def check_finite(value: object, name: str) -> float:
    """Returns ``value`` as a float if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"{name} is not a number", f"got {_short(value)}")
    if not math.isfinite(value):
        raise RecordError("NaN or Inf", f"{name} is {value}")
    return float(value)


def check_probability(value: object) -> float:
    """Returns ``value`` if it is a number in [0, 1]."""
    if not 0 <= check_finite(value, "probability") <= 1:
        raise RecordError("probability outside [0, 1]", f"got {value}")
    return value  # type: ignore[return-value]


def check_messages(value: object, name: str) -> Messages:
    """Returns ``value`` if it is a list of messages with a known role and text each."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise RecordError(f"{name} has no messages", f"got {_short(value)}")
    for message in value:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise RecordError(
                f"{name} holds something that is no message", f"got {_short(message)}; need role, content"
            )
        if message["role"] not in ROLES:
            raise RecordError("unknown role", f"got {message['role']!r}, expected one of {', '.join(ROLES)}")
        check_text(message["content"], f"{name}'s content")
    return value


def check_prompt(value: object) -> PromptLike:
    """Returns ``value`` if it is text, or messages after which it is the assistant's turn."""
    if isinstance(value, str):
        return check_text(value, "prompt")
    messages = check_messages(value, "prompt")
    if messages[-1]["role"] == "assistant":
        raise RecordError("the prompt ends with the assistant's turn", f"roles are {_roles(messages)}")
    return messages


def to_row(record: Record) -> dict[str, Any]:
    """Flattens a record into the columns of its kind (see ``features.py``)."""
    row = {item.name: getattr(record, item.name) for item in fields(record)}
    row["prompt"], row["messages"] = _text_or_messages(record.prompt)
    if isinstance(record, Demonstration):
        row["completion"], row["turns"] = _text_or_messages(record.completion)
    row["answer"] = json.dumps(record.answer, ensure_ascii=False, allow_nan=False)
    return row


def from_row(kind: RecordKind, row: Mapping[str, Any]) -> Record:
    """The inverse of :func:`to_row`."""
    values = dict(row)
    messages = values.pop("messages")
    values["prompt"] = values["prompt"] if messages is None else messages
    if kind is RecordKind.DEMONSTRATION:
        turns = values.pop("turns")
        values["completion"] = values["completion"] if turns is None else turns
    values["answer"] = json.loads(values["answer"])
    for name, value in values.items():
        if name in _TUPLES and value is not None:
            values[name] = tuple(value)
    return RECORD_TYPES[kind](**values)


_TUPLES = frozenset({"prompt_ids", "completion_ids", "chosen_ids", "rejected_ids", "steps", "labels"})


def _text_or_messages(value: PromptLike) -> tuple[str | None, list[Message] | None]:
    if isinstance(value, str):
        return value, None
    return None, [{"role": message["role"], "content": message["content"]} for message in value]


def _roles(messages: Messages) -> str:
    return ", ".join(message["role"] for message in messages)


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
