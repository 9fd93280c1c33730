"""Seeing records of one kind as another: any data set meets any method that it can logically serve."""

from __future__ import annotations

from alignment.data.records import Binary, Demonstration, Preference, Prompt, Record, RecordKind
from alignment.utils.errors import ConfigError

VIEWS: dict[RecordKind, tuple[RecordKind, ...]] = {
    RecordKind.PREFERENCE: (RecordKind.DEMONSTRATION, RecordKind.BINARY, RecordKind.PROMPT),
    RecordKind.DEMONSTRATION: (RecordKind.PROMPT,),
    RecordKind.BINARY: (),
    RecordKind.STEPWISE: (),
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
        raise ConfigError(
            "data",
            got=f"{have} records",
            expected=_SERVES[want],
            hint=f"This data offers {offers}: choose another data set, or a method that one of these serves",
        )


def view(record: Record, want: RecordKind) -> tuple[Record, ...]:
    """A record as one or more of another kind.

    Args:
        record: Any record.
        want: What is asked for; a preference gives two labelled completions, else one gives one.

    Raises:
        ConfigError: The record cannot be seen in that way.
    """
    check_view(record.kind, want)
    if want == record.kind:
        return (record,)
    if want is RecordKind.PROMPT:
        return prompt_of(record)
    assert isinstance(record, Preference)
    if want is RecordKind.DEMONSTRATION:
        return (_demonstration(record),)
    return _both_sides(record)


def prompt_of(record: Record) -> tuple[Prompt]:
    """Any record's prompt, for measuring on; a prompt's own record keeps its answer fields."""
    if isinstance(record, Prompt):
        return (record,)
    prompt = Prompt(
        id=record.id, prompt=record.prompt, prompt_ids=record.prompt_ids, tokenizer_hash=record.tokenizer_hash
    )
    return (prompt,)


def _demonstration(record: Preference) -> Demonstration:
    return Demonstration(
        id=record.id,
        prompt=record.prompt,
        completion=record.chosen,
        prompt_ids=record.prompt_ids,
        completion_ids=record.chosen_ids,
        tokenizer_hash=record.tokenizer_hash,
    )


def _both_sides(record: Preference) -> tuple[Binary, Binary]:
    chosen, rejected = (
        Binary(
            id=f"{record.id}/{side}",
            prompt=record.prompt,
            completion=text,
            label=side == "chosen",
            prompt_ids=record.prompt_ids,
            completion_ids=ids,
            tokenizer_hash=record.tokenizer_hash,
        )
        for side, text, ids in (
            ("chosen", record.chosen, record.chosen_ids),
            ("rejected", record.rejected, record.rejected_ids),
        )
    )
    return chosen, rejected
