"""Seeing records of one kind as another: any data set meets any method that it can logically serve."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from alignment.data.records import (
    STEP_END,
    Binary,
    Demonstration,
    Preference,
    Prompt,
    Record,
    RecordKind,
    Stepwise,
    UnfitError,
)
from alignment.utils.errors import ConfigError

VIEWS: dict[RecordKind, tuple[RecordKind, ...]] = {
    RecordKind.PREFERENCE: (RecordKind.DEMONSTRATION, RecordKind.BINARY, RecordKind.PROMPT),
    RecordKind.DEMONSTRATION: (RecordKind.PROMPT,),
    RecordKind.BINARY: (RecordKind.DEMONSTRATION, RecordKind.PROMPT),
    RecordKind.STEPWISE: (RecordKind.DEMONSTRATION, RecordKind.BINARY, RecordKind.PROMPT),
    RecordKind.PROMPT: (),
}
"""What each kind can also be seen as."""

_SERVES: dict[RecordKind, str] = {
    RecordKind.DEMONSTRATION: "demonstrations (prompt, completion) for supervised fine-tuning",
    RecordKind.PREFERENCE: "preferences (prompt, chosen, rejected) for DPO and its kin and for reward models",
    RecordKind.BINARY: "labelled completions (prompt, completion, label) for KTO",
    RecordKind.STEPWISE: "judged steps (prompt, steps, labels) for process reward models",
    RecordKind.PROMPT: "prompts for evaluation and for methods that sample for themselves",
}


def check_view(have: RecordKind, want: RecordKind) -> None:
    """Refuses a view that the data cannot give.

    Raises:
        ConfigError: Names what the data offers and what that can serve.
    """
    if want != have and want not in VIEWS[have]:
        offers = "; ".join(_SERVES[kind] for kind in (have, *VIEWS[have]))
        hint = f"This data offers {offers}: choose another data set, or a method that one of these serves"
        if want is RecordKind.PREFERENCE and RecordKind.BINARY in (have, *VIEWS[have]):
            hint += ". data=pairs_from_labels makes preferences of labelled completions that share their prompts"
        raise ConfigError("data", got=f"{have} records", expected=_SERVES[want], hint=hint)


def view(record: Record, want: RecordKind, *, soft_labels: bool = False) -> tuple[Record, ...]:
    """A record as one or more of another kind.

    Args:
        record: Any record.
        want: What is asked for; a preference gives two labelled completions, else one gives one.
        soft_labels: Whether a tie may stay a preference.

    Raises:
        ConfigError: Records of this kind cannot be seen in that way.
        UnfitError: This one cannot: a tie, a bad completion as a demonstration, steps that nobody judged.
    """
    check_view(record.kind, want)
    if want is RecordKind.PROMPT:
        return prompt_of(record)
    if isinstance(record, Preference) and record.is_tie and not (soft_labels and want is RecordKind.PREFERENCE):
        raise UnfitError("tie")
    if want == record.kind:
        return (record,)
    if isinstance(record, Preference):
        return both_sides(record) if want is RecordKind.BINARY else (_demonstration(record),)
    labelled = whole_solution(record) if isinstance(record, Stepwise) else record
    assert isinstance(labelled, Binary)
    return (labelled,) if want is RecordKind.BINARY else (_imitated(labelled),)


def prompt_of(record: Record) -> tuple[Prompt]:
    """Any record's prompt, for measuring on, with its answer fields."""
    return (record if isinstance(record, Prompt) else Prompt(**_kept(record)),)


def both_sides(record: Preference) -> tuple[Binary, Binary]:
    """The chosen completion with a thumbs up, and the rejected one with a thumbs down."""
    chosen, rejected = (
        Binary(**_kept(record, id=f"{record.id}/{side}"), completion=text, label=side == "chosen", completion_ids=ids)
        for side, text, ids in (
            ("chosen", record.chosen, record.chosen_ids),
            ("rejected", record.rejected, record.rejected_ids),
        )
    )
    return chosen, rejected


def whole_solution(record: Stepwise) -> Binary:
    """A solution with a thumbs up if all its steps are right, and down if one is wrong.

    Raises:
        UnfitError: No step is known to be wrong, but not all are known to be right: nobody judged one, or its
            label is between 0 and 1.
    """
    if 0 not in record.labels and set(record.labels) != {1}:
        raise UnfitError("not known whether every step is right")
    text = record.lead + STEP_END.join(record.steps)
    return Binary(
        id=record.id, prompt=record.prompt, completion=text, label=0 not in record.labels, answer=record.answer
    )


def _demonstration(record: Preference) -> Demonstration:
    return Demonstration(**_kept(record), completion=record.chosen, completion_ids=record.chosen_ids)


def _imitated(record: Binary) -> Demonstration:
    """A good completion as something to imitate."""
    if not record.label:
        raise UnfitError("thumbs down")
    return Demonstration(**_kept(record), completion=record.completion, completion_ids=record.completion_ids)


def _kept(record: Record, **changes: Any) -> dict[str, Any]:
    """What every record has, and keeps however it is seen, but for the changes."""
    return {field.name: getattr(record, field.name) for field in fields(Record)} | changes
