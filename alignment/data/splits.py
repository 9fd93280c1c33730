"""Parsed records on disk, and the part of them that is held out."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from alignment.data.features import RECORDS_VERSION
from alignment.data.records import TIE, RecordKind
from alignment.data.sources import RowSource, Source
from alignment.data.store import build_once
from alignment.utils.errors import ConfigError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordSet:
    """The records of a source.

    Attributes:
        rows: With the columns of ``kind``.
        kind: What they offer.
        fingerprint: Names their content.
        report: How many rows were read, and what was dropped why.
    """

    rows: Dataset
    kind: RecordKind
    fingerprint: str
    report: dict[str, Any]


def cached_records(source: Source, cache_dir: Path) -> RecordSet:
    """A source's records, parsed now or by an earlier start.

    Args:
        source: Where they come from.
        cache_dir: Where they are kept.
    """
    kept = cache_dir / "records" / f"{source.fingerprint}-{RECORDS_VERSION}"
    found = (kept / "meta.json").is_file()

    def build(folder: Path) -> None:
        rows, report = _load(source)
        with pa.ipc.new_stream(folder / "records.arrow", rows.data.schema) as writer:
            writer.write_table(rows.data.table, max_chunksize=1000)
        (folder / "meta.json").write_text(json.dumps({"kind": source.kind, "report": report}), "utf-8")

    folder = build_once(kept, build)
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    if found and meta["report"].get("dropped"):
        logger.warning("%s rows were dropped when the data were read: %s", *_drops(meta["report"]["dropped"]))
    rows = Dataset.from_file(str(folder / "records.arrow"))
    return RecordSet(rows, RecordKind(meta["kind"]), source.fingerprint, meta["report"])


def split_by_prompt(records: RecordSet, size: int | float) -> tuple[np.ndarray, np.ndarray]:
    """Which rows to train on and which to hold out, by a hash of the prompt.

    Records of one prompt stay together, so nothing held out was seen in training, and the same
    prompts are held out whatever the order of the rows.

    Args:
        records: All of them.
        size: How many rows to hold out at least: a number, or a share below 1.

    Returns:
        Row numbers of both parts, ascending.

    Raises:
        ConfigError: ``size`` leaves nothing on one side.
    """
    total = len(records.rows)
    wanted = round(size * total) if size < 1 else int(size)
    everything = np.arange(total)
    if size == 0:
        return everything, everything[:0]
    groups: dict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(_prompt_keys(records)):
        groups[key].append(place)
    held_out: list[int] = []
    for key in sorted(groups):
        if len(held_out) >= wanted:
            break
        held_out += groups[key]
    if not 0 < len(held_out) < total:
        raise ConfigError(
            "data.validation_size",
            got=size,
            expected=f"a number that leaves some of the {total} records ({len(groups)} prompts) on either side",
        )
    chosen = np.zeros(total, dtype=bool)
    chosen[held_out] = True
    return everything[~chosen], everything[chosen]


def soft_labels(records: RecordSet) -> int:
    """How many preferences have one side that is likelier the better, but not for certain; 0 for other records."""
    if records.kind is not RecordKind.PREFERENCE:
        return 0
    column = records.rows.with_format("arrow").select_columns(["probability"])[:]["probability"]
    probabilities = column.to_numpy()
    return int(np.sum((probabilities > TIE) & (probabilities < 1)))


def _load(source: Source) -> tuple[Dataset, dict[str, Any]]:
    if isinstance(source, RowSource):
        rows, report = source.read()
        return rows, {**vars(report), "dropped": dict(report.dropped)}
    rows = source.load()
    return rows, {"rows": len(rows), "records": len(rows), "dropped": {}, "examples": {}}


def _prompt_keys(records: RecordSet) -> list[str]:
    """A hash of each record's prompt; of the whole record where it is a text without a prompt."""
    texts = ("prompt", "messages", "completion", "chosen", "rejected")
    names = [name for name in texts if name in records.rows.column_names]
    keys = []
    row: dict[str, Any]
    for row in records.rows.select_columns(names):  # type: ignore[assignment]
        prompt = row["messages"] if row["prompt"] is None else row["prompt"]
        text = json.dumps(prompt or row, sort_keys=True, ensure_ascii=False)
        keys.append(hashlib.sha256(text.encode()).hexdigest())
    return keys


def _drops(dropped: dict[str, int]) -> tuple[int, str]:
    return sum(dropped.values()), ", ".join(f"{count} x {reason}" for reason, count in dropped.items())
