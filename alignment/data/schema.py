"""What a schema is, and the small readers that schemas share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.data.records import TIE, RecordError, RecordKind, check_finite, check_probability

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


def user(text: str) -> list[Fields]:
    """A request as one message of the user."""
    return [{"role": "user", "content": text}]


def instruction(row: Row) -> list[Fields]:
    """Alpaca's instruction with its optional input, as one message of the user."""
    return user("\n\n".join(filter(None, [require(row, "instruction"), row.get("input")])))


def boolean(value: object) -> object:
    """0 and 1 as booleans; anything else is left for the record's own check to refuse."""
    return bool(value) if value in (0, 1) else value


def pair_schema(
    name: str, fields: tuple[str, ...], claims: Callable[[Row], bool], parse: Callable[[Row], Fields]
) -> Schema:
    """A format of preferences; each of its rows may also say how sure the label is.

    Args:
        name: As in :class:`Schema`.
        fields: As in :class:`Schema`.
        claims: As in :class:`Schema`.
        parse: The fields of a row's preference. Where it gives a ``probability`` below one half the sides are swapped.
    """
    return Schema(
        name, RecordKind.PREFERENCE, fields, claims, lambda row: [likelier_first({**parse(row), **_judgement(row)})]
    )


def likelier_first(fields: Fields) -> Fields:
    """A preference's fields with the sides swapped where the second is more likely the better.

    Raises:
        RecordError: ``probability`` is no number in [0, 1].
    """
    probability = fields.get("probability")
    if probability is None or check_probability(probability) >= TIE:
        return fields
    swapped = {**fields, "probability": 1 - probability}
    for one, other in (("chosen", "rejected"), ("chosen_ids", "rejected_ids")):
        for name, source in ((one, other), (other, one)):
            if source in fields:
                swapped[name] = fields[source]
    if "margin" in fields:
        swapped["margin"] = -check_finite(fields["margin"], "margin")
    return swapped


def share(votes: object) -> float:
    """The first side's share of the votes for either side, or of their scores.

    Raises:
        RecordError: These are not two numbers, none below 0 and not both 0.
    """
    given = list(votes) if isinstance(votes, Sequence) and not isinstance(votes, str) else []
    numbers = [check_finite(number, "vote") for number in given]
    if len(numbers) != 2 or min(numbers) < 0 or sum(numbers) == 0:
        raise RecordError("votes are not two numbers", f"got {votes!r}; need [for chosen, for rejected], not both 0")
    return numbers[0] / sum(numbers)


def _judgement(row: Row) -> Fields:
    """By how much and how surely the first side is the better, where the row says so."""
    found = optional(row, "margin", "probability")
    if row.get("votes") is None:
        return found
    if "probability" in found:
        raise RecordError("both votes and a probability", "give one of the two")
    return {**found, "probability": share(row["votes"])}


def answer_fields(row: Row, name: str = "answer") -> Fields:
    """What a verifier needs: a mapping as it is, any other value under ``answer``; nothing where the row has none."""
    value = row.get(name)
    if value is None:
        return {}
    return {"answer": dict(value) if isinstance(value, Mapping) else {"answer": value}}


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
