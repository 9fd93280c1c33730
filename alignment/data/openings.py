"""Prompts that are the first words of texts: for a model that continues stories."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from alignment.data.features import RECORD_FEATURES
from alignment.data.records import Demonstration, Prompt, RecordKind, from_row, to_row
from alignment.data.sources import Source
from alignment.data.store import content_hash
from alignment.utils.errors import ConfigError


class Openings:
    """The beginnings of plain texts, as prompts.

    Args:
        source: Texts: demonstrations whose prompt is empty, such as ``{"text": ...}`` rows give.
        num_words: Words of each text to keep; shorter texts are left out.
    """

    kind = RecordKind.PROMPT

    def __init__(self, *, source: Source, num_words: int) -> None:
        if num_words < 1:
            raise ConfigError("data.train.num_words", got=num_words, expected="at least 1")
        self.source, self.num_words = source, num_words

    @property
    def fingerprint(self) -> str:
        """The texts' fingerprint and the number of words."""
        return content_hash(openings=self.source.fingerprint, num_words=self.num_words)

    def load(self) -> Dataset:
        """The openings, in the order of the texts.

        Raises:
            ConfigError: The source gives something else than texts, or no text is long enough.
        """
        if self.source.kind is not RecordKind.DEMONSTRATION:
            raise ConfigError("data.train.source", got=f"{self.source.kind} records", expected="plain texts")
        rows = [row for text in self.source.load() for row in self._opening(text)]
        if not rows:
            raise ConfigError(
                "data.train.num_words", got=self.num_words, expected="fewer words than the longest text has"
            )
        return Dataset.from_list(rows, features=RECORD_FEATURES[self.kind])

    def _opening(self, row: Any) -> list[dict[str, Any]]:
        record = from_row(RecordKind.DEMONSTRATION, row)
        assert isinstance(record, Demonstration)
        if record.prompt or not isinstance(record.completion, str):
            raise ConfigError("data.train.source", got=f"record {record.id} with a prompt", expected="plain texts")
        words = record.completion.split()
        if len(words) <= self.num_words:
            return []
        return [to_row(Prompt(id=record.id, prompt=" ".join(words[: self.num_words])))]
