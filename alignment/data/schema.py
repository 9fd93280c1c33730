"""What a schema is, and the small readers that schemas share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.data.records import RecordError, RecordKind

Row = Mapping[str, Any]
Fields = dict[str, Any]


@dataclass(frozen=True)
class Schema:
    """A recognised format.

    Attributes:
        name: How messages call it.
        kind: The record kind that its rows become.
        fields: The fields that its rows have, for messages.
        claims: Whether a row is of this format.
        parse: A row's records, each as the keyword arguments of its kind without ``id``.
    """

    name: str
    kind: RecordKind
    fields: tuple[str, ...]
    claims: Callable[[Row], bool]
    parse: Callable[[Row], list[Fields]]


def require(row: Row, name: str) -> Any:
    """Returns a field that must be there.

    Raises:
        RecordError: It is missing or null; the message names the fields that the row has.
    """
    value = row.get(name)
    if value is None:
        state = "is null" if name in row else "is missing"
        raise RecordError(f"missing field {name!r}", f"it {state}; the row has {show_fields(row)}")
    return value


def show_fields(row: Row) -> str:
    """The row's field names, for a message."""
    return ", ".join(map(repr, row)) or "no fields"


def is_messages(value: object) -> bool:
    """Whether a value looks like a list of chat messages."""
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and isinstance(value[0], Mapping)


def has(row: Row, *names: str) -> bool:
    """Whether the row has all of these fields, none of them null."""
    return all(row.get(name) is not None for name in names)


def has_any(row: Row, *names: str) -> bool:
    """Whether the row has any of these fields, null or not."""
    return any(name in row for name in names)


def optional(row: Row, *names: str) -> Fields:
    """Those of the named fields that the row has."""
    return {name: row[name] for name in names if row.get(name) is not None}


def token_fields(row: Row, *names: str) -> Fields:
    """Token ids as they were generated, with the hash of the tokenizer that made them.

    Raises:
        RecordError: Something else than a list of whole numbers.
    """
    found = {name: row[name] for name in names if row.get(name) is not None}
    for name, ids in found.items():
        if not isinstance(ids, Sequence) or not all(type(item) is int and 0 <= item < 2**31 for item in ids):
            raise RecordError(f"{name} is not a list of token ids")
        found[name] = tuple(ids)
    return {**found, **optional(row, "tokenizer_hash")} if found else {}
