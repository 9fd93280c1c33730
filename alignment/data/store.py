"""Folders that are built once, whole or not at all, and found again by a hash of what made them.

Beside each folder lies a lock that is held while it is built. Whoever uses a finished one holds its marker, shared with
all others who do, and stamps it with the time; only what nobody builds or holds is removed. The locks are ``flock``'s:
the system takes them back from a process that dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

MARKER = "COMPLETE"
"""Written last: a folder without it does not count. It was changed when the folder was last used."""

_MOST_HELD = 64  # of one process: it does not run out of file descriptors when it goes through many
_held: dict[Path, int] = {}


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
        ``folder``, complete, and held by this process; see :func:`hold`.
    """
    if hold(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_file(folder)):
        if hold(folder):
            return folder
        with _temporary(folder) as temporary:
            build(temporary)
            _commit(temporary, folder)
        hold(folder)
    return folder


def hold(folder: Path) -> bool:
    """Notes that a folder is used now, and keeps it from :func:`remove` until this process has ended.

    Processes that are forked later hold it too. In a cache that can only be read nothing is noted; on a file system
    without locks nothing is held.

    Returns:
        Whether the folder is complete; if it is not, nothing has happened.
    """
    marker = folder / MARKER
    try:
        descriptor = os.open(marker, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    if not _leads_to(marker, descriptor):  # it was removed between the two, and may have been built again
        os.close(descriptor)
        return hold(folder)
    with suppress(OSError):
        os.utime(descriptor)
    earlier = _held.pop(folder, None)
    if earlier is None and len(_held) == _MOST_HELD:
        earlier = _held.pop(next(iter(_held)))
    if earlier is not None:
        os.close(earlier)
    _held[folder] = descriptor
    return True


def release(folder: Path) -> None:
    """Takes back :func:`hold`: others may remove the folder."""
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        os.close(descriptor)


def is_used(folder: Path) -> bool:
    """Whether a process builds a folder or holds it; asks without waiting, and writes nothing."""
    with _alone(Path(_lock_file(folder))) as not_built, _alone(folder / MARKER) as not_held:
        return not (not_built and not_held)


def remove(path: Path, *, of: Path) -> bool:
    """Removes a result, or what a killed builder of it has left; not while a process builds or holds it.

    A folder loses its name before its content goes: nobody finds half of it. The lock file stays, because processes
    that wait for it and processes that come later must wait for the same one.

    Args:
        path: What goes, a folder or a file: the result itself, or one of its :func:`leftovers`.
        of: The result's own path.

    Returns:
        Whether it is gone.

    Raises:
        OSError: The cache can only be read.
    """
    with suppress(Timeout), FileLock(_lock_file(of), timeout=0), _alone(path / MARKER) as is_free:
        if is_free:
            _discard(path, of)
            return True
    return False


def leftovers(folder: Path) -> list[Path]:
    """What builders of a folder are writing, or had written when they were killed."""
    return sorted(folder.parent.glob(f".{folder.name}.*"))


def _lock_file(folder: Path) -> str:
    return f"{folder}.lock"


def _temporary_name(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}")


def _discard(path: Path, of: Path) -> None:
    if not path.exists():  # another process was faster
        return
    if path not in leftovers(of):
        gone = _temporary_name(of)
        shutil.rmtree(gone, ignore_errors=True)
        path = path.rename(gone)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _alone(file: Path) -> Iterator[bool]:
    """Keeps all others from locking a file; gives False at once where one of them has it locked."""
    try:
        # Over a network only what is open for writing can be locked against everybody.
        descriptor = os.open(file, os.O_RDWR if os.access(file, os.W_OK) else os.O_RDONLY)
    except OSError:  # not there, or not ours to read
        yield True
        return
    try:
        yield _lock_alone(descriptor)
    finally:
        os.close(descriptor)


def _lock_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _leads_to(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """An empty folder beside another, whose lock is held: what lies there already is of builders that were killed."""
    for dead in leftovers(folder):
        shutil.rmtree(dead, ignore_errors=True)
    temporary = _temporary_name(folder)
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
