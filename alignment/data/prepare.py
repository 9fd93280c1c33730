"""From sources to tables of tokens: read, split, seen as what the method eats, tokenised, reported."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from alignment.data.mismatch import Mismatch, partners
from alignment.data.records import PromptLike, Record, RecordKind
from alignment.data.sources import Source
from alignment.data.splits import RecordSet, cached_records, soft_labels, split_by_prompt
from alignment.data.statistics import token_statistics
from alignment.data.store import content_hash
from alignment.data.table import TokenTable
from alignment.data.tokenise import Tokeniser, tokenise
from alignment.data.truncation import Truncation
from alignment.data.views import check_view, prompt_of, view
from alignment.utils.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt for measuring on.

    Attributes:
        id: Of the record that it is from.
        prompt: Text or chat messages.
        prompt_ids: Its tokens, as the model sees it before it answers.
        answer: What a verifier needs.
    """

    id: str
    prompt: PromptLike
    prompt_ids: tuple[int, ...]
    answer: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """Tokenised records, by split: ``train``, and ``validation`` where anything is held out.

    Attributes:
        records: What they were made from.
        tables: Their tokens, without what was dropped.
        mismatches: Which completion stands behind which prompt, where the method needs that.
        statistics: What became of the records, for the log and the manifest.
        fingerprint: Names the data: sources, split, view, tokenizer, template and truncation.
    """

    records: dict[str, RecordSet]
    tables: dict[str, TokenTable]
    mismatches: dict[str, Mismatch]
    statistics: dict[str, Any]
    fingerprint: str


@dataclass(frozen=True)
class Preparation:
    """How records become tables of tokens; the fields are those of the data module.

    Attributes:
        train: Where the records come from.
        validation: Where held-out records come from; ``None`` splits them off ``train``.
        validation_size: How many to split off.
        limit: Use only the first so many training records, or ``None``.
        truncation: Limits and what happens beyond them.
        on_bad_row: What to do with a record that the template or the tokenizer cannot do.
        num_proc: Processes that tokenise; ``None`` is one for every second core where records are many.
        tokenizer: Of the trained model.
        cache_dir: Where parsed and tokenised records are kept.
        mismatched: Whether to pair prompts with completions of other prompts.
        score_prompt: Whether prompts are scored too, of pairs before the chosen completion.
        soft_labels: Whether preferences keep how likely the chosen side is the better.
    """

    train: Source
    validation: Source | None
    validation_size: int | float
    limit: int | None
    truncation: Truncation
    on_bad_row: Literal["error", "drop"]
    num_proc: int | None
    tokenizer: PreTrainedTokenizerBase
    cache_dir: Path
    mismatched: bool
    score_prompt: bool
    soft_labels: bool

    def run(self, want: RecordKind) -> Prepared:
        """Reads or finds the records, and tokenises them or finds their tokens.

        Args:
            want: The kind that they are to be seen as.

        Raises:
            DataError: A record is bad and ``on_bad_row`` is ``error``, or none is left.
            ConfigError: The data cannot be seen as ``want``.
        """
        records = self._split()
        for part in records.values():
            check_view(part.kind, want)
        seen_as = partial(view, want=want, soft_labels=self.soft_labels)
        tokenisers = {split: self._tokeniser(part, want, seen_as) for split, part in records.items()}
        tables: dict[str, TokenTable] = {}
        mismatches: dict[str, Mismatch] = {}
        statistics: dict[str, Any] = {}
        for split, part in records.items():
            rows = self._tokens(part, tokenisers[split], split)
            taken = frozenset(tables["train"].ids if split == "validation" else ())
            table = TokenTable(rows, prefix="validation/", taken=taken, score_prompt=self.score_prompt)
            if not len(table):
                reasons = ", ".join(sorted(set(rows["dropped"])))
                raise DataError(f"{split} data", f"no record is left, all were dropped: {reasons}")
            if self.mismatched:
                found = partners(table.prompts(), where=f"{split} data")
                mismatches[split] = Mismatch(found, self.truncation.max_length)
            tables[split] = table
            read_as_hard = 0 if self.soft_labels or want is RecordKind.PROMPT else soft_labels(part)
            statistics[split] = {
                "source": part.report,
                **token_statistics(rows, table),
                "soft_labels_read_as_hard": read_as_hard,
            }
            _report(split, statistics[split])
        parts = {split: part.fingerprint for split, part in records.items()}
        fingerprint = content_hash(parts=parts, tokeniser=tokenisers["train"].fingerprint)
        return Prepared(records, tables, mismatches, statistics, fingerprint)

    def held_out_prompts(self, records: RecordSet, limit: int | None) -> list[HeldOutPrompt]:
        """The prompts of held-out records, each once, in a fixed order.

        Args:
            records: Of the split ``validation``.
            limit: The most to give, or ``None`` for all.
        """
        rows = self._tokens(records, self._tokeniser(records, RecordKind.PROMPT, prompt_of), "held-out prompts")
        unique: dict[str, HeldOutPrompt] = {}
        row: dict[str, Any]
        for row in rows:  # type: ignore[assignment]
            if len(unique) == limit:
                break
            if not row["dropped"]:
                unique.setdefault(row["prompt"], _held_out(row))
        return list(unique.values())

    def _split(self) -> dict[str, RecordSet]:
        records = cached_records(self.train, self.cache_dir)
        if self.validation is not None:
            parts = {"train": records, "validation": cached_records(self.validation, self.cache_dir)}
        else:
            rows, held_out = split_by_prompt(records, self.validation_size)
            parts = {"train": _part(records, rows, f"train/{self.validation_size}")}
            if len(held_out):
                parts["validation"] = _part(records, held_out, f"validation/{self.validation_size}")
        if self.limit is not None:
            first = np.arange(min(self.limit, len(parts["train"].rows)))
            parts["train"] = _part(parts["train"], first, f"limit/{self.limit}")
        return parts

    def _tokeniser(
        self, records: RecordSet, want: RecordKind, seen_as: Callable[[Record], tuple[Record, ...]]
    ) -> Tokeniser:
        return Tokeniser(
            tokenizer=self.tokenizer,
            have=records.kind,
            want=want,
            seen_as=seen_as,
            truncation=self.truncation,
            on_bad_row=self.on_bad_row,
            soft_labels=self.soft_labels,
        )

    def _tokens(self, records: RecordSet, tokeniser: Tokeniser, name: str) -> Dataset:
        return tokenise(
            records.rows,
            tokeniser,
            fingerprint=records.fingerprint,
            cache_dir=self.cache_dir,
            num_proc=self.num_proc,
            description=f"Tokenising {name}",
        )


def _part(records: RecordSet, rows: np.ndarray, name: str) -> RecordSet:
    """Some of the records, named by what was taken of which."""
    return replace(records, rows=records.rows.select(rows), fingerprint=content_hash(of=records.fingerprint, part=name))


def _held_out(row: dict[str, Any]) -> HeldOutPrompt:
    return HeldOutPrompt(row["id"], json.loads(row["prompt"]), tuple(row["prompt_ids"]), json.loads(row["answer"]))


def _report(split: str, statistics: dict[str, Any]) -> None:
    """Says once what became of the records."""
    for reason, count in statistics["dropped"].items():
        logger.warning("%s: dropped %d records: %s", split, count, reason)
    if statistics["given_tokens"]["ignored"]:
        logger.warning(
            "%s: %d records bring token ids of another tokenizer; their text was tokenised anew",
            split,
            statistics["given_tokens"]["ignored"],
        )
    if statistics["soft_labels_read_as_hard"]:
        logger.warning(
            "%s: %d preferences are not certain (a probability, or divided votes); this method takes the likelier side "
            "for the better one. A reward model (method=reward_model) learns from the probabilities",
            split,
            statistics["soft_labels_read_as_hard"],
        )
    logger.info("%s: %d records, %d scored tokens", split, statistics["records"], statistics["scored_tokens"])
