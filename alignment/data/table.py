"""A table of tokenised records, and quick access to its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from alignment.types import Layout

_EMPTY = np.zeros(0, dtype=np.int64)  # a table may have no chunk at all


class TokenTable:
    """Tokenised records that can be used; rows that were dropped are left out.

    Args:
        rows: With the columns of ``TOKEN_FEATURES``.
        prefix: Put before every id if any is in ``taken``.
        taken: Ids that another table has.
        score_prompt: Whether the prompts' tokens are scored too; of pairs those before the chosen completions.

    Attributes:
        score_prompt: The same.
        ids: The records' ids, in order.
        prompt_lengths: Tokens of each prompt.
        completion_lengths: Tokens of each completion (the chosen one of a pair), 0 for a prompt alone.
        rejected_lengths: Tokens of each rejected completion, 0 where there is none.
        completion_scored: Scored tokens of each completion (the chosen one of a pair).
    """

    def __init__(
        self, rows: Dataset, *, prefix: str = "", taken: frozenset[str] = frozenset(), score_prompt: bool = False
    ) -> None:
        self.score_prompt = score_prompt
        usable = np.flatnonzero([not reason for reason in rows["dropped"]])
        self.rows = rows if len(usable) == len(rows) else rows.select(usable)
        self.rows = self.rows.with_format("arrow")
        columns = ("id", "prompt_ids", "completion_ids", "rejected_ids", "scored")
        table: pa.Table = self.rows.select_columns(list(columns))[:]
        ids: list[str] = table["id"].to_pylist()
        self._prefix = "" if taken.isdisjoint(ids) else prefix
        self.ids: tuple[str, ...] = tuple(self._prefix + name for name in ids)
        self.prompt_lengths = _lengths(table["prompt_ids"])
        self.completion_lengths = _lengths(table["completion_ids"])
        self.rejected_lengths = _lengths(table["rejected_ids"])
        some_scored = _lengths(table["scored"]) > 0
        self.completion_scored = np.where(some_scored, _true_counts(table["scored"]), self.completion_lengths)
        self._last_scored = np.where(some_scored, _last_true(table["scored"]), self.completion_lengths)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of the longest sequence of each record."""
        return self.prompt_lengths + np.maximum(self.completion_lengths, self.rejected_lengths)

    @property
    def real_tokens(self) -> np.ndarray:
        """Tokens of all sequences of each record, prompts included."""
        pairs = self.rejected_lengths > 0
        return self.prompt_lengths * np.where(pairs, 2, 1) + self.completion_lengths + self.rejected_lengths

    def row_tokens(self, layout: Layout) -> np.ndarray:
        """Tokens that each record adds to the rows of a micro-batch, before any padding."""
        if layout is Layout.PADDED:
            return self.lengths
        shared = self.prompt_lengths if layout is Layout.PREFIX_SHARED else 0
        return self.real_tokens - np.where(self.rejected_lengths > 0, shared, 0)

    @property
    def completion_tokens(self) -> np.ndarray:
        """Scored tokens of all completions of each record."""
        return self.completion_scored + self.rejected_lengths

    @property
    def first_scored(self) -> np.ndarray:
        """Scored tokens of each record's first sequence (the chosen one of a pair), the prompt's where they count."""
        return self.prompt_lengths - 1 + self._last_scored if self.score_prompt else self.completion_scored

    @property
    def scored(self) -> np.ndarray:
        """Scored tokens of all sequences of each record."""
        return self.first_scored + self.rejected_lengths

    def counted(self) -> dict[str, np.ndarray]:
        """What each record adds to the denominators of its optimiser step."""
        counted = {
            "tokens": self.scored,
            "completion_tokens": self.completion_tokens,
            "real_tokens": self.real_tokens,
        }
        if self.rejected_lengths.any():
            counted["chosen_tokens"] = self.first_scored
        return counted

    def prompts(self) -> np.ndarray:
        """A number for each record, equal where the tokens of the prompts are."""
        numbers: dict[bytes, int] = {}
        column = self.rows.select_columns(["prompt_ids"])[:]["prompt_ids"]
        return np.array([numbers.setdefault(ids.tobytes(), len(numbers)) for ids in _arrays(column)])

    def labels(self) -> np.ndarray:
        """True for each record with a thumbs up; for records that are labelled."""
        return np.array(self.rows.select_columns(["label"])[:]["label"].to_pylist(), dtype=bool)

    def read(self, indices: Sequence[int]) -> dict[str, list[Any]]:
        """The rows at ``indices``: id lists as numpy arrays, the rest as Python values."""
        table: pa.Table = self.rows[list(indices)]
        columns: dict[str, list[Any]] = {
            name: _arrays(column) if pa.types.is_list(column.type) else column.to_pylist()
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
        columns["id"] = [self._prefix + name for name in columns["id"]]
        return columns


def _lengths(column: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([_EMPTY, *(np.asarray(chunk.value_lengths()) for chunk in column.chunks)])


def _true_counts(column: pa.ChunkedArray) -> np.ndarray:
    lengths = _lengths(column)
    sums = np.concatenate([[0], np.cumsum(_flat(column))])
    ends = np.cumsum(lengths)
    return sums[ends] - sums[ends - lengths]


def _last_true(column: pa.ChunkedArray) -> np.ndarray:
    """How far each list goes up to its last true value, that one included; every list that is not empty has one."""
    lengths, flags = _lengths(column), _flat(column)
    ends = np.cumsum(lengths)
    last = np.maximum.accumulate(np.concatenate([[0], np.where(flags, np.arange(1, len(flags) + 1), 0)]))
    return np.where(lengths > 0, last[ends] - (ends - lengths), 0)


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return np.concatenate([_EMPTY, *(_values(chunk) for chunk in column.chunks)])


def _arrays(column: pa.ChunkedArray) -> list[np.ndarray]:
    values = np.concatenate([_values(chunk) for chunk in column.chunks])
    return np.split(values, np.cumsum(_lengths(column))[:-1])


def _values(chunk: pa.ListArray) -> np.ndarray:
    return chunk.flatten().to_numpy(zero_copy_only=False)
