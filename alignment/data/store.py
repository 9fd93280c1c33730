"""Folders that are built once, whole or not at all, and found again by a hash of what made them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

MARKER = "COMPLETE"
"""Written last: a folder without it does not count."""


def content_hash(**parts: Any) -> str:
    """A hash of named plain values; any change to any of them changes it.

    >>> content_hash(a=1, b="x") == content_hash(b="x", a=1) != content_hash(a=1, b="y")
    True
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def is_complete(folder: Path) -> bool:
    """Whether a folder was built to its end."""
    return (folder / MARKER).is_file()


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Builds ``folder`` unless it is complete; several processes may ask at once.

    ``build`` fills a temporary folder beside it, which then gets its marker and its name in one
    step: whoever is killed on the way leaves nothing that could be mistaken for a result.

    Args:
        folder: Where the result belongs.
        build: Writes files into the folder that it is given.

    Returns:
        ``folder``, complete.
    """
    if is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if is_complete(folder):
            return folder
        with _temporary(folder) as temporary:
            build(temporary)
            _commit(temporary, folder)
    return folder


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _commit(temporary: Path, folder: Path) -> None:
    for path in sorted(item for item in temporary.rglob("*") if item.is_file()):
        _sync(path)
    marker = temporary / MARKER
    marker.touch()
    _sync(marker)
    _sync(temporary)
    if folder.exists():  # what an interrupted writer without a marker left behind
        shutil.rmtree(folder)
    temporary.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
