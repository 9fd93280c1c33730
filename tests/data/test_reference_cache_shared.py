"""Several runs and one reference cache: it is filled once, by whoever lives, and pruned under nobody's feet."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alignment.data.reference_cache import ReferenceCache
from alignment.data.store import is_used, leftovers, remove

FORK = multiprocessing.get_context("fork")
LONG_SECONDS = 60
META = {"model_hash": "m", "dtype": "float32", "truncation": {"max_length": 8}}
NAMES = [f"data/{number}" for number in range(20)]


def logps(name: str) -> list[np.ndarray]:
    number = int(name.rpartition("/")[2])
    return [np.full(number + 1, -float(number)), np.full(3, -0.5 * number)]


def check(cache: ReferenceCache) -> None:
    assert len(cache) == len(NAMES)
    for name in NAMES:
        for found, expected in zip(cache.read(name), logps(name), strict=True):
            np.testing.assert_array_equal(found, expected.astype(np.float32))


class Run:
    """A run that asks for the cache in a process of its own, and counts the records that it scores.

    Args:
        path: The cache.
        pauses: Whether scoring stops half-way until ``go_on`` is set.
    """

    def __init__(self, path: Path, *, pauses: bool = False) -> None:
        self.path, self.pauses = path, pauses
        self.scored = FORK.Value("i", 0)
        self.half_way, self.go_on = FORK.Event(), FORK.Event()
        self.process = FORK.Process(target=self._run)
        self.process.start()

    def _run(self) -> None:
        check(ReferenceCache.write(self.path, meta=META, records=self._records()))

    def _records(self) -> Iterator[Any]:
        for name in NAMES:
            if self.pauses and self.scored.value == len(NAMES) // 2:
                self.half_way.set()
                self.go_on.wait(LONG_SECONDS)
            time.sleep(0.005)
            self.scored.value += 1
            yield name, logps(name)

    def end(self) -> int:
        """Waits for the run and returns how many records it scored."""
        self.process.join(LONG_SECONDS)
        assert self.process.exitcode == 0
        return self.scored.value


def test_runs_of_a_sweep_fill_it_once_and_share_it(tmp_path: Path) -> None:
    runs = [Run(tmp_path / "key") for _ in range(5)]
    assert sorted(run.end() for run in runs) == [0, 0, 0, 0, len(NAMES)]
    assert Run(tmp_path / "key").end() == 0, "the next one finds it"


def test_a_killed_filler_leaves_nothing_that_is_taken_for_complete(tmp_path: Path) -> None:
    path = tmp_path / "key"
    filler = Run(path, pauses=True)
    assert filler.half_way.wait(LONG_SECONDS)
    waiting = Run(path)
    time.sleep(0.3)
    assert waiting.process.is_alive()
    assert waiting.scored.value == 0, "it waits for the filler"
    assert not ReferenceCache.exists(path)
    os.kill(filler.process.pid or 0, signal.SIGKILL)
    filler.process.join()
    assert waiting.end() == len(NAMES), "who waited takes over, from the beginning"
    check(ReferenceCache.open(path))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["key", "key.lock"], "the killed one's half is gone"


def test_a_killed_fillers_half_is_found_and_pruned(tmp_path: Path) -> None:
    path = tmp_path / "key"
    filler = Run(path, pauses=True)
    assert filler.half_way.wait(LONG_SECONDS)
    os.kill(filler.process.pid or 0, signal.SIGKILL)
    filler.process.join()
    assert not ReferenceCache.exists(path)
    assert [half.name for half in leftovers(path)] == [f".key.{filler.process.pid}"]
    assert all(remove(half, of=path) for half in leftovers(path))
    assert [item.name for item in tmp_path.iterdir()] == ["key.lock"]
    assert Run(path).end() == len(NAMES)


def test_pruning_beside_a_filler_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "key"
    filler = Run(path, pauses=True)
    assert filler.half_way.wait(LONG_SECONDS)
    assert is_used(path)
    assert len(leftovers(path)) == 1
    assert not remove(path, of=path)
    assert not remove(leftovers(path)[0], of=path)
    assert len(leftovers(path)) == 1
    filler.go_on.set()
    assert filler.end() == len(NAMES)
    check(ReferenceCache.open(path))


def test_an_open_cache_is_there_for_workers_that_open_it_again(tmp_path: Path) -> None:
    path = tmp_path / "key"
    Run(path).end()
    cache = ReferenceCache.open(path)
    assert not remove(path, of=path)
    worker = "import pickle, sys; print(len(pickle.load(sys.stdin.buffer).read('data/7')[0]))"
    done = subprocess.run([sys.executable, "-c", worker], input=pickle.dumps(cache), capture_output=True, check=True)
    assert done.stdout == b"8\n"


def test_a_cache_that_was_seen_stays(tmp_path: Path) -> None:
    """A resumed run looks whether it is there, and would fill it from a policy that has moved on if it were gone."""
    path = tmp_path / "key"
    Run(path).end()
    assert not is_used(path)
    assert ReferenceCache.exists(path)
    assert not remove(path, of=path)
