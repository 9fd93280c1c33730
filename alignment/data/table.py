"""A table of tokenised records, and quick access to its rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

_EMPTY = np.zeros(0, dtype=np.int64)  # a table may have no chunk at all


class TokenTable:
    """Tokenised records that can be used; rows that were dropped are left out.

    Args:
        rows: With the columns of ``TOKEN_FEATURES``.
        prefix: Put before every id if any is in ``taken``.
        taken: Ids that another table has.

    Attributes:
        ids: The records' ids, in order.
        prompt_lengths: Tokens of each prompt.
        completion_lengths: Tokens of each completion (the chosen one of a pair), 0 for a prompt alone.
        rejected_lengths: Tokens of each rejected completion, 0 where there is none.
        completion_scored: Scored tokens of each completion (the chosen one of a pair).
    """

    def __init__(self, rows: Dataset, *, prefix: str = "", taken: frozenset[str] = frozenset()) -> None:
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
        self.completion_scored = np.where(
            _lengths(table["scored"]) > 0, _true_counts(table["scored"]), self.completion_lengths
        )

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

    @property
    def scored(self) -> np.ndarray:
        """Scored tokens of all sequences of each record."""
        return self.completion_scored + self.rejected_lengths

    def counted(self) -> dict[str, np.ndarray]:
        """What each record adds to the denominators of its optimiser step."""
        counted = {"tokens": self.scored, "real_tokens": self.real_tokens}
        if self.rejected_lengths.any():
            counted["chosen_tokens"] = self.completion_scored
        return counted

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
    flags = np.concatenate([_EMPTY, *(_values(chunk) for chunk in column.chunks)])
    sums = np.concatenate([[0], np.cumsum(flags)])
    ends = np.cumsum(lengths)
    return sums[ends] - sums[ends - lengths]


def _arrays(column: pa.ChunkedArray) -> list[np.ndarray]:
    values = np.concatenate([_values(chunk) for chunk in column.chunks])
    return np.split(values, np.cumsum(_lengths(column))[:-1])


def _values(chunk: pa.ListArray) -> np.ndarray:
    return chunk.flatten().to_numpy(zero_copy_only=False)
