"""What is built once is removed only while nobody builds or holds it."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data import store
from alignment.data.store import MARKER, build_once, hold, is_complete, is_used, leftovers, remove

FORK = multiprocessing.get_context("fork")
LONG_SECONDS = 60


def made(folder: Path) -> Path:
    """A finished folder that no process holds: a child has built it."""

    def build(temporary: Path) -> None:
        (temporary / "content").write_text("whole")

    child = FORK.Process(target=build_once, args=(folder, build))
    child.start()
    child.join()
    assert is_complete(folder)
    return folder


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG_SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def _hold_until(folder: Path, begun: Any, end: Any) -> None:
    assert hold(folder)
    begun.set()
    end.wait(LONG_SECONDS)


def test_a_folder_that_is_not_complete_is_not_held(tmp_path: Path) -> None:
    assert not hold(tmp_path / "nothing")
    (tmp_path / "half").mkdir()
    assert not hold(tmp_path / "half")
    (tmp_path / "file").touch()
    assert not hold(tmp_path / "file")


def test_using_it_changes_the_marker_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "key")
    for name in ("content", MARKER):
        os.utime(folder / name, (1000, 1000))
    assert hold(folder)
    assert time.time() - (folder / MARKER).stat().st_mtime < LONG_SECONDS
    assert (folder / "content").stat().st_mtime == 1000


def test_finding_it_built_is_a_use(tmp_path: Path) -> None:
    folder = made(tmp_path / "key")
    os.utime(folder / MARKER, (1000, 1000))
    build_once(folder, lambda _: pytest.fail("it was built again"))
    assert (folder / MARKER).stat().st_mtime > 1000


@pytest.mark.parametrize("call", ["utime", "flock"])
def test_a_cache_that_can_only_be_read_or_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder = made(tmp_path / "key")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS if call == "utime" else errno.ENOLCK, "not here")

    monkeypatch.setattr(os if call == "utime" else fcntl, call, refuse)
    assert hold(folder)
    assert build_once(folder, lambda _: pytest.fail("it was built again")) == folder


def test_removed_when_nobody_holds_it(tmp_path: Path) -> None:
    folder = made(tmp_path / "key")
    assert not is_used(folder)
    assert remove(folder, of=folder)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
    assert remove(folder, of=folder), "what is gone is gone"


def test_not_removed_while_a_process_holds_it(tmp_path: Path) -> None:
    folder = made(tmp_path / "key")
    begun, end = (FORK.Event(), FORK.Event()), FORK.Event()
    holders = [FORK.Process(target=_hold_until, args=(folder, event, end)) for event in begun]
    for holder, event in zip(holders, begun, strict=True):
        holder.start()
        event.wait(LONG_SECONDS)
    assert is_used(folder)
    assert not remove(folder, of=folder)
    assert (folder / "content").read_text() == "whole"
    end.set()
    for holder in holders:
        holder.join()
        assert holder.exitcode == 0
    assert not is_used(folder)
    assert remove(folder, of=folder)


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    folder = made(tmp_path / "key")
    begun = FORK.Event()
    holder = FORK.Process(target=_hold_until, args=(folder, begun, FORK.Event()))
    holder.start()
    begun.wait(LONG_SECONDS)
    os.kill(holder.pid or 0, signal.SIGKILL)
    holder.join()
    assert remove(folder, of=folder)


def _hold_in_a_worker(folder: Path, begun: Any, end: Any) -> None:
    assert hold(folder)
    if os.fork():
        os.kill(os.getpid(), signal.SIGKILL)
    begun.set()
    end.wait(LONG_SECONDS)
    os._exit(0)


def test_workers_hold_what_their_parent_held(tmp_path: Path) -> None:
    folder = made(tmp_path / "key")
    begun, end = FORK.Event(), FORK.Event()
    parent = FORK.Process(target=_hold_in_a_worker, args=(folder, begun, end))
    parent.start()
    parent.join()
    begun.wait(LONG_SECONDS)
    assert parent.exitcode == -signal.SIGKILL
    assert not remove(folder, of=folder)
    end.set()
    until(lambda: not is_used(folder))
    assert remove(folder, of=folder)


def test_who_comes_while_it_is_removed_finds_nothing(tmp_path: Path) -> None:
    """The marker was opened before the folder lost its name: holding that file would hold nothing."""
    folder = made(tmp_path / "key")
    marker = os.open(folder / MARKER, os.O_RDONLY)
    fcntl.flock(marker, fcntl.LOCK_EX)
    found = FORK.Value("i", -1)

    def come() -> None:
        found.value = hold(folder)

    comer = FORK.Process(target=come)
    comer.start()
    until(lambda: _times_open(folder / MARKER, comer.pid) == 2)
    assert found.value == -1
    shutil.rmtree(folder)
    # The child has a copy of the descriptor: closing this one would not give the lock back.
    fcntl.flock(marker, fcntl.LOCK_UN)
    os.close(marker)
    comer.join()
    assert found.value == 0


def _times_open(file: Path, process: int | None) -> int:
    links = Path(f"/proc/{process}/fd").iterdir()
    return sum(link.is_symlink() and os.path.realpath(link) == str(file) for link in links)


def test_an_interrupted_removal_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = made(tmp_path / "key")

    def stop(path: Path, **_: object) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            remove(folder, of=folder)
    assert not folder.exists()
    assert [path.name for path in leftovers(folder)] == [f".key.{os.getpid()}"]
    build_once(folder, lambda temporary: (temporary / "content").write_text("again") and None)
    assert (folder / "content").read_text() == "again"
    assert leftovers(folder) == []


def test_what_a_killed_builder_left_goes_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "key")
    left = tmp_path / ".key.1234"
    left.mkdir()
    assert leftovers(folder) == [left]
    assert remove(left, of=folder)
    assert is_complete(folder)
    assert leftovers(folder) == []


def test_a_file_can_be_removed_too(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}")
    assert remove(tmp_path / "x.jsonl", of=tmp_path / "x.jsonl")
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_process_that_goes_through_many_keeps_few_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(2 * store._MOST_HELD):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / MARKER).touch()
        assert hold(folder)
        assert hold(folder)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + store._MOST_HELD
    assert is_used(folder)
    assert not is_used(tmp_path / "0")


def _use_again_and_again(folder: Path, stop: Any, uses: Any) -> None:
    """Each use in a process of its own, as runs are."""

    def use() -> None:
        build_once(folder, lambda temporary: (temporary / "content").write_text("whole") and None)
        time.sleep(0.002)
        assert (folder / "content").read_text() == "whole"

    while not stop.is_set():
        child = FORK.Process(target=use)
        child.start()
        child.join()
        assert child.exitcode == 0
        with uses.get_lock():
            uses.value += 1


def test_removing_again_and_again_harms_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    stop, uses, removed = FORK.Event(), FORK.Value("i", 0), 0
    users = [FORK.Process(target=_use_again_and_again, args=(folder, stop, uses)) for _ in range(3)]
    for user in users:
        user.start()
    end = time.monotonic() + LONG_SECONDS
    while (uses.value < 60 or removed < 5) and time.monotonic() < end:
        removed += folder.exists() and remove(folder, of=folder)
    stop.set()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0, 0, 0]
    assert uses.value >= 60
    assert removed >= 5
