"""Records to token ids, once, into a table on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from alignment.data.chat import Piece, completion_pieces, prompt_text, require_template
from alignment.data.encoding import Encoder, tokenizer_hash
from alignment.data.features import TOKEN_FEATURES
from alignment.data.records import (
    STEP_END,
    Binary,
    Demonstration,
    Preference,
    Prompt,
    PromptLike,
    Record,
    RecordError,
    RecordKind,
    Stepwise,
    UnfitError,
)
from alignment.data.records import from_row as record_from_row
from alignment.data.store import MARKER, content_hash, hold
from alignment.data.truncation import Side, Truncation, truncate_completions, truncate_prompt
from alignment.utils.errors import DataError

TOKENISE_VERSION = 2
"""Part of every fingerprint: raise it when the same records would give other tokens."""

_MOST_PROCESSES = 8
_RECORDS_A_PROCESS = 5_000


class Tokeniser:
    """Turns rows of records into rows of token ids; what ``datasets.map`` calls.

    Args:
        tokenizer: Any tokenizer with an end-of-sequence token.
        have: The kind of the records.
        want: The kind that they are seen as.
        seen_as: Sees a record as records of that kind.
        truncation: Limits and what happens beyond them.
        on_bad_row: ``error`` stops at a record that the template or the tokenizer cannot do,
            ``drop`` counts it.
        soft_labels: Whether pairs keep how likely the chosen side is the better.
    """

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        have: RecordKind,
        want: RecordKind,
        seen_as: Callable[[Record], tuple[Record, ...]],
        truncation: Truncation,
        on_bad_row: Literal["error", "drop"],
        soft_labels: bool = False,
    ) -> None:
        self.seen_as = seen_as
        self.encoder = Encoder(tokenizer)
        self.hash = tokenizer_hash(tokenizer)
        self.have, self.want, self.truncation, self.on_bad_row = have, want, truncation, on_bad_row
        self.soft_labels = soft_labels

    @property
    def fingerprint(self) -> str:
        """Names everything here that shapes the tokens."""
        policy = self.truncation
        return content_hash(
            version=TOKENISE_VERSION,
            tokenizer=self.hash,
            template=self.encoder.tokenizer.chat_template,
            truncation=[policy.max_length, policy.max_prompt_length, policy.prompt, policy.completion],
            have=self.have,
            want=self.want,
            on_bad_row=self.on_bad_row,
            soft_labels=self.soft_labels,
        )

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenises a batch of columns; one row gives one row, or two if both sides are wanted."""
        names = list(batch)
        rows = [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        taken_apart = [item for row in rows for item in self._take_apart(record_from_row(self.have, row))]
        encoded = self.encoder.encode(
            text for _, parts in taken_apart if isinstance(parts, Parts) for text in parts.texts()
        )
        done = [self._row(record, parts, encoded) for record, parts in taken_apart]
        return {name: [row[name] for row in done] for name in TOKEN_FEATURES}

    def _take_apart(self, record: Record) -> list[tuple[Record, Parts | RecordError]]:
        """What the record is seen as; itself, with the reason, where it does not fit."""
        try:
            return [(seen, self._parts(seen)) for seen in self.seen_as(record)]
        except UnfitError as error:
            return [(record, error)]

    def _parts(self, record: Record) -> Parts | RecordError:
        try:
            return split_record(self.encoder.tokenizer, record, given=given_tokens(record, self.hash))
        except RecordError as error:
            return error

    def _row(self, record: Record, parts: Parts | RecordError, encoded: Mapping[str, list[int]]) -> dict[str, Any]:
        row = _empty_row(record, soft_labels=self.soft_labels)
        try:
            if isinstance(parts, RecordError):
                raise parts
            row |= self._tokens(record, parts, encoded)
        except UnfitError as error:
            row["dropped"] = error.reason
        except RecordError as error:
            if self.on_bad_row == "error":
                hint = "put the record right, or set data.on_bad_row=drop to count and skip such records"
                raise DataError(record.id, f"{error}. Next: {hint}") from error
            row["dropped"] = error.reason
        return row

    def _tokens(self, record: Record, parts: Parts, encoded: Mapping[str, list[int]]) -> dict[str, Any]:
        prompt_ids, sides, repaired = self._sides(parts, encoded)
        policy = self.truncation
        limit = policy.max_prompt_length or policy.max_length
        kept_prompt = truncate_prompt(prompt_ids, policy, limit=limit, bos_id=self.encoder.bos_id, name=record.id)
        room = policy.max_length - len(kept_prompt)
        kept = truncate_completions(sides, policy, room=room, name=record.id) if sides else []
        ids = [side.ids for side in kept] + [[], []]
        return {
            "truncated_prompt": len(kept_prompt) < len(prompt_ids),
            "truncated_completion": any(new.ids != old.ids for new, old in zip(kept, sides, strict=True)),
            "repaired_boundary": repaired,
            "given_tokens": parts.given,
            "prompt_ids": kept_prompt,
            "completion_ids": ids[0],
            "rejected_ids": ids[1],
            "scored": (kept[0].scored if kept else None) or [],
            "step_labels": (kept[0].labels if kept else None) or [],
        }

    def _sides(self, parts: Parts, encoded: Mapping[str, list[int]]) -> tuple[list[int], list[Side], bool]:
        if parts.prompt_ids is not None:
            return list(parts.prompt_ids), [Side(list(ids)) for ids in parts.side_ids], False
        before = encoded[parts.prompt]
        built = [self._side(before, parts.prompt, pieces, parts.labels, encoded) for pieces in parts.sides]
        return self.encoder.prompt(before), [side for side, _ in built], any(repaired for _, repaired in built)

    def _side(
        self,
        before: list[int],
        text: str,
        pieces: list[Piece],
        labels: tuple[float | None, ...] | None,
        encoded: Mapping[str, list[int]],
    ) -> tuple[Side, bool]:
        ids, repaired = list(before), False
        groups: list[tuple[list[int], bool]] = []
        for piece in pieces:
            text += piece.text
            new, fixed = self.encoder.continuation(ids, piece.text, encoded[text])
            ids += new
            repaired |= fixed
            groups.append((new, piece.scored))
        if labels is not None:
            return _judged_side(groups, labels), repaired
        return _answer_side(self.encoder, groups), repaired


@dataclass(frozen=True)
class Parts:
    """A record taken apart into what is encoded.

    Attributes:
        prompt: The prompt's text.
        sides: The pieces of each completion's text.
        labels: Of judged steps, one for each scored piece.
        given: ``used``, ``ignored`` or empty: what becomes of token ids that the record brought.
        prompt_ids: The prompt's ids, where given ones are used.
        side_ids: The completions' ids, where given ones are used.
    """

    prompt: str
    sides: list[list[Piece]]
    labels: tuple[float | None, ...] | None = None
    given: str = ""
    prompt_ids: tuple[int, ...] | None = None
    side_ids: tuple[tuple[int, ...], ...] = ()

    def texts(self) -> list[str]:
        """Every text that has to be encoded: the prompt, and it with more and more pieces behind it."""
        if self.prompt_ids is not None:
            return []
        chains = (accumulate((piece.text for piece in side), initial=self.prompt) for side in self.sides)
        return [self.prompt, *chain.from_iterable(chains)]


def given_tokens(record: Record, current_hash: str) -> str:
    """Whether ids that a record brings can be used: only if this very tokenizer made them."""
    if record.prompt_ids is None or any(ids is None for ids in _given_sides(record)):
        return ""
    return "used" if record.tokenizer_hash == current_hash else "ignored"


def split_record(tokenizer: PreTrainedTokenizerBase, record: Record, *, given: str) -> Parts:
    """Takes a record apart into prompt and completions, rendered by the chat template if it is chat.

    Raises:
        RecordError: The template cannot render it, or does not keep prefixes.
        ConfigError: The record is chat and there is no template.
    """
    if given == "used":
        return Parts("", [], given=given, prompt_ids=record.prompt_ids, side_ids=_given_sides(record))  # type: ignore[arg-type]
    if not isinstance(record.prompt, str):
        require_template(tokenizer)
    if isinstance(record, Stepwise):
        return _split_steps(tokenizer, record)
    answers = _answers(record)
    if not answers:
        return Parts(prompt_text(tokenizer, record.prompt), [], given=given)
    rendered = [completion_pieces(tokenizer, record.prompt, answer) for answer in answers]
    return Parts(rendered[0][0], [pieces for _, pieces in rendered], given=given)


def _answers(record: Record) -> list[PromptLike]:
    if isinstance(record, Preference):
        return [record.chosen, record.rejected]
    return [record.completion] if isinstance(record, Demonstration | Binary) else []


def _given_sides(record: Record) -> tuple[tuple[int, ...] | None, ...]:
    if isinstance(record, Preference):
        return record.chosen_ids, record.rejected_ids
    return (record.completion_ids,) if isinstance(record, Demonstration | Binary) else ()


def _split_steps(tokenizer: PreTrainedTokenizerBase, record: Stepwise) -> Parts:
    """Each step is a scored piece; what ends it is not."""
    joined = STEP_END.join(record.steps)
    start, pieces = completion_pieces(tokenizer, record.prompt, joined)
    if len(pieces) != 1 or joined not in pieces[0].text:
        raise RecordError("the chat template changes the steps", "it must give an answer's text as it is")
    opening, closing = pieces[0].text.split(joined, 1)
    marks = [Piece(STEP_END, scored=False)] * (len(record.steps) - 1) + [Piece(closing, scored=False)]
    steps = [Piece(step, scored=True) for step in record.steps]
    chained = chain.from_iterable(zip(steps, marks, strict=True))
    return Parts(start + record.lead + opening, [[piece for piece in chained if piece.text]], labels=record.labels)


def _judged_side(groups: list[tuple[list[int], bool]], labels: tuple[float | None, ...]) -> Side:
    """Scores the last token of each step that has a label."""
    ids: list[int] = []
    scored: list[bool] = []
    remaining = iter(labels)
    for new, is_step in groups:
        ids += new
        flags = [False] * len(new)
        if is_step:
            if not new:
                raise RecordError("a step has no token of its own")
            flags[-1] = next(remaining) is not None
        scored += flags
    return Side(ids, scored, [label for label in labels if label is not None])


def _answer_side(encoder: Encoder, groups: list[tuple[list[int], bool]]) -> Side:
    """Scores the answers; the last ends with exactly one end-of-sequence token."""
    ids: list[int] = []
    scored: list[bool] = []
    for new, is_answer in groups:
        end = encoder.answer_length(new) if is_answer else 0
        ids += new
        scored += [True] * end + [False] * (len(new) - end)
    length = max((place + 1 for place, flag in enumerate(scored) if flag), default=0)
    if length == 0:
        raise RecordError("the completion has no tokens")
    ids, scored = ids[:length], scored[:length]
    while ids[-2:] == [encoder.eos_id] * 2:
        ids, scored = ids[:-1], scored[:-1]
    if ids[-1] != encoder.eos_id:
        ids, scored = [*ids, encoder.eos_id], [*scored, True]
    return Side(ids, None if all(scored) else scored)


def _cores() -> int:
    """Of this machine that this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _empty_row(record: Record, *, soft_labels: bool) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(TOKEN_FEATURES)
    lists = ("prompt_ids", "completion_ids", "rejected_ids", "scored", "step_labels")
    row |= {name: [] for name in lists}
    row |= {"id": record.id, "dropped": "", "given_tokens": ""}
    row |= dict.fromkeys(("truncated_prompt", "truncated_completion", "repaired_boundary"), False)
    if isinstance(record, Preference):
        row["margin"] = record.margin
        if soft_labels:
            row["probability"] = 1.0 if record.probability is None else record.probability
    if isinstance(record, Binary):
        row["label"] = record.label
    row["prompt"] = json.dumps(record.prompt, ensure_ascii=False) if isinstance(record, Prompt) else ""
    row["answer"] = json.dumps(record.answer, ensure_ascii=False) if isinstance(record, Prompt) else ""
    return row


def processes_for(num_records: int, *, cores: int) -> int | None:
    """Returns how many processes tokenise so many records; ``None`` is this one alone.

    A fast tokenizer has threads of its own, so that on two cores a second process gains nothing; the rest, half of the
    time, is templates and borders. A process is worth its start from some thousand records on.

    >>> processes_for(100_000, cores=2), processes_for(100_000, cores=16), processes_for(1_000, cores=16)
    (None, 8, None)
    """
    processes = min(cores // 2, _MOST_PROCESSES, num_records // _RECORDS_A_PROCESS)
    return processes if processes > 1 else None


def tokenise(
    records: Dataset, tokeniser: Tokeniser, *, fingerprint: str, cache_dir: Path, num_proc: int | None, description: str
) -> Dataset:
    """Tokenises all records, or finds what an earlier start made of them.

    Args:
        records: A table of records of the kind that ``tokeniser`` reads.
        tokeniser: Does the work.
        fingerprint: Names the records' content.
        cache_dir: Where the result is kept.
        num_proc: Processes to work in; ``None`` asks :func:`processes_for`.
        description: Of the progress bar.

    Returns:
        A memory-mapped table with the columns of ``TOKEN_FEATURES``, dropped rows included.
    """
    name = content_hash(records=fingerprint, tokeniser=tokeniser.fingerprint)
    folder = cache_dir / "tokens" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        rows = records.map(
            tokeniser,
            batched=True,
            batch_size=256,
            remove_columns=records.column_names,
            features=TOKEN_FEATURES,
            num_proc=num_proc or processes_for(len(records), cores=_cores()),
            cache_file_name=str(folder / "tokens.arrow"),
            load_from_cache_file=True,
            new_fingerprint=name,
            desc=description,
        )
        (folder / MARKER).touch()
        hold(folder)
    return rows
