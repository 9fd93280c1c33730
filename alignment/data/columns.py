"""Rows under other names: which column is which field, and what the values of a label mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alignment.data.records import RecordError, UnfitError
from alignment.data.schema import Row, require, show_fields
from alignment.utils.errors import ConfigError, nearest

_COLUMN_NAMES = (
    *("prompt", "chosen", "rejected", "margin", "probability", "votes"),
    *("completion", "label", "messages", "conversations"),
    *("completions", "labels", "text", "id", "answer", "tokenizer_hash"),
    *("prompt_ids", "completion_ids", "chosen_ids", "rejected_ids"),
)


class ColumnMapping:
    """Gives a row the field names and label values that formats are recognised by.

    Args:
        columns: Our name -> the column's name; empty or ``None`` leaves rows as they are.
        label_values: What the values of ``label`` mean: good (true), bad (false) or neither (null).

    Raises:
        ConfigError: A name that is none of ours, or a meaning that is no boolean.
    """

    def __init__(self, columns: Mapping[str, str] | None, label_values: Mapping[Any, bool | None] | None) -> None:
        self.columns = dict(columns or {})
        self.label_values = {str(value): meaning for value, meaning in (label_values or {}).items()}
        for name in self.columns:
            if name not in _COLUMN_NAMES:
                hint = nearest(name, _COLUMN_NAMES)
                raise ConfigError("data.train.columns", got=name, expected=", ".join(_COLUMN_NAMES), hint=hint)
        for value, meaning in self.label_values.items():
            if meaning is not None and not isinstance(meaning, bool):
                expected = "true (good), false (bad) or null (neither)"
                raise ConfigError(f"data.train.label_values.{value}", got=meaning, expected=expected)

    def __call__(self, row: Row) -> Row:
        """The row under our names.

        Raises:
            RecordError: A column is missing, or a label has a value that is not listed.
            UnfitError: The label's value counts as neither good nor bad.
        """
        named = self._renamed(row) if self.columns else row
        return {**named, "label": self._label(named)} if self.label_values else named

    def _renamed(self, row: Row) -> Row:
        missing = [theirs for theirs in self.columns.values() if theirs not in row]
        if missing:
            have = f"data.train.columns asks for it; the row has {show_fields(row)}"
            raise RecordError(f"missing field {missing[0]!r}", f"{have} {nearest(missing[0], row)}".strip())
        mapped = {ours: row[theirs] for ours, theirs in self.columns.items()}
        if set(mapped) <= {"prompt", "id"}:  # prompts keep the rest of the row for whoever judges the answers
            taken = self.columns.values()
            mapped["answer"] = {name: value for name, value in row.items() if name not in taken}
        return mapped

    def _label(self, row: Row) -> bool:
        value = str(require(row, "label"))
        if value not in self.label_values:
            known = ", ".join(self.label_values)
            raise RecordError("unknown label", f"got {value!r}, data.train.label_values has {known}")
        meaning = self.label_values[value]
        if meaning is None:
            raise UnfitError("label counts as neither", f"{value!r} is null in data.train.label_values")
        return meaning
