"""What lies in the cache: found, told in words, chosen and removed."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from stat import S_ISREG
from typing import Any

from alignment.data.store import MARKER, is_complete, is_used, remove

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.\d+")
_SHARD = re.compile(r"tokens_\d+_of_(?P<total>\d+)\.arrow")
_SHOWN = 8
_MOST_WORDS = 120


class State(StrEnum):
    """What may become of an entry."""

    COMPLETE = "complete"
    UNFINISHED = "unfinished"
    IN_USE = "in use"


@dataclass(frozen=True)
class Entry:
    """Something in the cache.

    Attributes:
        kind: The name of the folder that holds all of this kind.
        key: Names its content.
        path: Where it lies.
        of: Where the finished entry lies: the same, unless this is what a killed process has left of it.
        made_of: What went into it, in words.
        num_bytes: Its size.
        last_used: Seconds since 1970.
        state: ``in use`` while a running process builds it or has opened it.
    """

    kind: str
    key: str
    path: Path
    of: Path
    made_of: str
    num_bytes: int
    last_used: float
    state: State

    @property
    def short_key(self) -> str:
        """The beginning of the key."""
        return self.key[:_SHOWN]


@dataclass(frozen=True)
class Selection:
    """Which entries to take: those that all of these say.

    Attributes:
        kind: Of this kind, or ``None`` for any.
        keys: With a key that begins with one of these; empty for any.
        unused_seconds: Not used for so long, or ``None`` for any.
        unfinished: Only what a killed process has left.
    """

    kind: str | None = None
    keys: tuple[str, ...] = ()
    unused_seconds: float | None = None
    unfinished: bool = False

    def takes(self, entry: Entry, now: float) -> bool:
        """Whether an entry is one of them.

        Args:
            entry: The entry.
            now: Seconds since 1970.
        """
        return (
            self.kind in (None, entry.kind)
            and (not self.keys or entry.key.startswith(self.keys))
            and (self.unused_seconds is None or now - entry.last_used > self.unused_seconds)
            and (not self.unfinished or entry.state is State.UNFINISHED)
        )


def find_entries(cache: Path) -> list[Entry]:
    """Returns what lies in a cache: by kind, what was used last first.

    Args:
        cache: The folder of all caches (``paths.cache``).
    """
    found = [entry for kind in KINDS for path in _children(cache / kind) if (entry := _entry(kind, path))]
    return sorted(found, key=lambda entry: (list(KINDS).index(entry.kind), -entry.last_used, entry.key))


def select(entries: Sequence[Entry], selection: Selection) -> list[Entry]:
    """Returns the entries that a selection takes, in their order."""
    now = time.time()
    return [entry for entry in entries if selection.takes(entry, now)]


def prune(entries: Sequence[Entry]) -> list[Entry]:
    """Removes entries, but none that a running process builds or has opened.

    Returns:
        The removed ones.

    Raises:
        OSError: An entry cannot be removed.
    """
    return [entry for entry in entries if remove(entry.path, of=entry.of)]


def _children(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock") if folder.is_dir() else []


def _entry(kind: str, path: Path) -> Entry | None:
    """Tells of one entry; ``None`` for what is none of ours, or has been removed meanwhile."""
    left = _LEFTOVER.fullmatch(path.name)
    if path.name.startswith(".") and left is None:
        return None
    of = path if left is None else path.with_name(left["name"])
    try:
        stats = [file.stat() for file in (path, *path.rglob("*"))]
        is_whole = left is None and _IS_WHOLE.get(kind, is_complete)(path)
        marker = path / MARKER
        last_used = marker.stat().st_mtime if is_whole and marker.is_file() else max(stat.st_mtime for stat in stats)
    except FileNotFoundError:
        return None
    return Entry(
        kind=kind,
        key=of.name.removesuffix(".jsonl"),
        path=path,
        of=of,
        made_of=_words(kind, path) if is_whole else "",
        num_bytes=sum(stat.st_size for stat in stats if S_ISREG(stat.st_mode)),
        last_used=last_used,
        state=State.IN_USE if is_used(of) else State.COMPLETE if is_whole else State.UNFINISHED,
    )


def _are_tokens_whole(folder: Path) -> bool:
    """Tables of tokens get their names when they are finished; several processes write one each."""
    shards = [shard for path in folder.iterdir() if (shard := _SHARD.fullmatch(path.name))]
    return (folder / "tokens.arrow").is_file() or (bool(shards) and len(shards) == int(shards[0]["total"]))


def _words(kind: str, path: Path) -> str:
    try:
        words = KINDS[kind](path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "cannot be read"
    printable = "".join(letter if letter.isprintable() else "?" for letter in words)
    return printable if len(printable) <= _MOST_WORDS else f"{printable[: _MOST_WORDS - 1]}…"


def _of_records(folder: Path) -> str:
    meta = _read_json(folder / "meta.json")
    return f"{meta['kind']}: {_told(*_rows([folder / 'records.arrow']))}"


def _of_tokens(folder: Path) -> str:
    return _told(*_rows(sorted(folder.glob("tokens*.arrow"))))


def _of_reference(folder: Path) -> str:
    meta, ids = _read_json(folder / "meta.json"), _read_json(folder / "records.json")
    model = f"model {meta['model_hash'][:_SHOWN]}, {meta['dtype'].removesuffix(', None')}"
    return f"{model}, {meta['truncation']['max_length']} tokens at most; {_told(len(ids), ids[0])}"


def _of_labels(file: Path) -> str:
    with file.open("rb") as lines:
        return f"counts of {_number(sum(1 for _ in lines), 'solution')}"


#: Each kind, and how what it was made of is told.
KINDS: dict[str, Callable[[Path], str]] = {
    "records": _of_records,
    "tokens": _of_tokens,
    "reference": _of_reference,
    "labels": _of_labels,
}
_IS_WHOLE: dict[str, Callable[[Path], bool]] = {"tokens": _are_tokens_whole, "labels": Path.is_file}


def _told(num_records: int, first_id: str) -> str:
    return f"{_number(num_records, 'record')}, the first {first_id}"


def _number(count: int, thing: str) -> str:
    return f"1 {thing}" if count == 1 else f"{count:,} {thing}s"


def _rows(tables: Sequence[Path]) -> tuple[int, str]:
    """Rows of tables on disk, and the first one's id."""
    import pyarrow as pa

    ids: list[Any] = []
    num_rows = 0
    for table in tables:
        with pa.memory_map(str(table)) as stream:
            for batch in pa.ipc.open_stream(stream):
                num_rows += batch.num_rows
                ids = ids or batch.column("id")[:1].to_pylist()
    return num_rows, ids[0]


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
