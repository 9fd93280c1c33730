"""Preferences from labelled completions: a good and a bad answer to one prompt make a pair."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pyarrow as pa
from datasets import Dataset

from alignment.data.features import RECORD_FEATURES
from alignment.data.records import Binary, Preference, RecordKind, UnfitError, from_row, to_row
from alignment.data.sources import RowSource, Source
from alignment.data.store import content_hash
from alignment.data.views import check_view, view
from alignment.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

PAIRS_VERSION = 1
"""Part of the fingerprint: raise it when the same records would give other pairs."""


@dataclass
class _Answers:
    """The different completions of one prompt, by text."""

    good: dict[str, Binary] = field(default_factory=dict)
    bad: dict[str, Binary] = field(default_factory=dict)

    def add(self, record: Binary) -> None:
        (self.good if record.label else self.bad).setdefault(record.completion, record)

    def agreed(self) -> tuple[list[Binary], list[Binary]]:
        """Good and bad ones, without completions that were labelled both ways."""
        good = [record for text, record in self.good.items() if text not in self.bad]
        return good, [record for text, record in self.bad.items() if text not in self.good]


class PairsFromLabels:
    """Preferences made of labelled completions, so that thumbs can train a reward model or DPO.

    Every good completion of a prompt is set against every bad one of it, up to a maximum. Completions without a
    prompt count as answers to one and the same (empty) prompt. As long as the maximum is not above the number of the
    rarer label no completion stands in two pairs of a prompt.

    Args:
        source: Labelled completions, or records that can be seen as such.
        max_pairs_per_prompt: The most pairs of one prompt.
        seed: Of the choice of pairs where a prompt has more.

    Attributes:
        kind: Preferences.
    """

    kind = RecordKind.PREFERENCE

    def __init__(self, *, source: Source, max_pairs_per_prompt: int, seed: int) -> None:
        if max_pairs_per_prompt < 1:
            raise ConfigError("data.train.max_pairs_per_prompt", got=max_pairs_per_prompt, expected="at least 1")
        self.source = source
        self.max_pairs_per_prompt = max_pairs_per_prompt
        self.seed = seed

    @property
    def fingerprint(self) -> str:
        """The labelled completions, and how pairs are made of them."""
        settings = {"max_pairs_per_prompt": self.max_pairs_per_prompt, "seed": self.seed, "version": PAIRS_VERSION}
        return content_hash(source="pairs_from_labels", of=self.source.fingerprint, **settings)

    def load(self) -> Dataset:
        """Makes the pairs, prompt by prompt in the order of the source.

        Raises:
            ConfigError: The source's records have no labels.
            DataError: No prompt has both a good and a bad completion.
        """
        check_view(self.source.kind, RecordKind.BINARY)
        by_prompt = self._by_prompt()
        groups = [(key, *answers.agreed()) for key, answers in by_prompt.items()]
        usable = [(key, good, bad) for key, good, bad in groups if good and bad]
        if not usable:
            raise DataError(self._source_name, _nothing_to_pair(groups))
        rows = [to_row(pair) for answers in usable for pair in self._pairs(*answers)]
        logger.info(
            "%s: %d preferences from the %d of %d prompts that have completions of both labels",
            self._source_name,
            len(rows),
            len(usable),
            len(groups),
        )
        table = pa.Table.from_pylist(rows, schema=RECORD_FEATURES[self.kind].arrow_schema)
        return Dataset(table, fingerprint=self.fingerprint)

    @property
    def _source_name(self) -> str:
        return self.source.name if isinstance(self.source, RowSource) else type(self.source).__name__

    def _by_prompt(self) -> dict[str, _Answers]:
        found: dict[str, _Answers] = {}
        left_out: Counter[str] = Counter()
        row: dict[str, Any]
        for row in self.source.load():  # type: ignore[assignment]
            try:
                labelled = view(from_row(self.source.kind, row), RecordKind.BINARY)
            except UnfitError as error:
                left_out[error.reason] += 1
                continue
            for record in labelled:
                assert isinstance(record, Binary)
                found.setdefault(json.dumps(record.prompt, sort_keys=True), _Answers()).add(record)
        for reason, number in left_out.items():
            logger.warning("%s: %d records left out: %s", self._source_name, number, reason)
        return found

    def _pairs(self, key: str, good: list[Binary], bad: list[Binary]) -> Iterator[Preference]:
        """Some of all pairs, or all: each completion once before any stands in a second pair."""
        random = Random(f"{self.seed}/{key}")  # noqa: S311
        for answers in (good, bad):
            random.shuffle(answers)
        few, many = sorted((good, bad), key=len)
        for number in range(min(len(few) * len(many), self.max_pairs_per_prompt)):
            turn, place = divmod(number, len(many))
            one, other = few[(place + turn) % len(few)], many[place]
            yield _preference(one, other) if one.label else _preference(other, one)


def _preference(good: Binary, bad: Binary) -> Preference:
    same_tokens = good.tokenizer_hash == bad.tokenizer_hash and good.prompt_ids == bad.prompt_ids
    given: dict[str, Any] = {}
    if same_tokens:
        given = {"tokenizer_hash": good.tokenizer_hash, "prompt_ids": good.prompt_ids}
        given |= {"chosen_ids": good.completion_ids, "rejected_ids": bad.completion_ids}
    return Preference(
        id=f"{good.id} > {bad.id}",
        prompt=good.prompt,
        chosen=good.completion,
        rejected=bad.completion,
        answer=good.answer,
        **given,
    )


def _nothing_to_pair(groups: list[tuple[str, list[Binary], list[Binary]]]) -> str:
    good, bad = (sum(map(len, side)) for side in ([g for _, g, _ in groups], [b for _, _, b in groups]))
    return (
        f"no prompt has both a good and a bad completion: {len(groups)} prompts with {good} good and {bad} bad ones. "
        "Pairs need several answers to one prompt; as they are, labelled completions train KTO (method=kto)"
    )
