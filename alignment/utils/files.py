"""Writing files so that a reader finds the old content or the new, never half of either."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives an empty file to fill, which takes the place of another in one step, and durably, when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        fsync_folder(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Replaces a file's content in one step and makes it durable."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomic(path: Path, value: Any) -> None:
    """Writes a value as indented JSON; see :func:`write_text_atomic`."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def write_json_lines_atomic(path: Path, rows: Iterable[Any]) -> None:
    """Writes values as JSON, one a line, all of them or nothing; see :func:`write_text_atomic`."""
    write_text_atomic(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def append_json_line(path: Path, value: Any) -> None:
    """Adds one line of JSON to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def hash_file(path: Path) -> str:
    """Returns a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_tree(folder: Path) -> None:
    """Makes a folder durable, every file in it first."""
    for path in [*sorted(folder.rglob("*")), folder]:
        fsync_folder(path)


def fsync_folder(path: Path) -> None:
    """Makes a folder's list of names, or a file's content, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
