"""The ranks of a run fill the reference cache together."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignment.data.datamodule import DataModule
from alignment.data.reference_cache import ReferenceCache
from alignment.models.references import fill_cache
from alignment.types import TokenBatch, TokenLogps

FORK = multiprocessing.get_context("fork")
LONG_SECONDS = 60
CPU = torch.device("cpu")
NUM_RECORDS, NUM_BATCHES = 22, 11


def score(tokens: TokenBatch) -> TokenLogps:
    width = tokens.input_ids.shape[1]
    values = tokens.targets.float() + 1000.0 * (tokens.predictor_index % width)
    return TokenLogps(values, tokens.sequence_index, tokens.num_sequences)


class Rank:
    """A rank that fills the cache in a process of its own, and counts the batches that it scores.

    Args:
        meet: A barrier where the ranks meet once they have begun with their parts.
        dies: Whether it is killed when it has scored its first batch.
    """

    def __init__(
        self, data: DataModule, path: Path, rank: int, world_size: int, *, meet: Any = None, dies: bool = False
    ) -> None:
        self.scored = FORK.Value("i", 0)
        self._arguments = (data, path, rank, world_size, meet, dies)
        self.process = FORK.Process(target=self._run)
        self.process.start()

    def _run(self) -> None:
        data, path, rank, world_size, meet, dies = self._arguments

        def counted(part: int, parts: int) -> Iterator[Any]:
            if meet is not None and part == rank:
                meet.wait(LONG_SECONDS)
            for batch in data.reference_batches(part, parts):
                self.scored.value += 1
                yield batch
                if dies:
                    os.kill(os.getpid(), signal.SIGKILL)

        fill_cache(path, meta={}, batches=counted, score=score, device=CPU, rank=rank, world_size=world_size)

    def end(self) -> int:
        self.process.join(LONG_SECONDS)
        assert self.process.exitcode == 0
        return self.scored.value


@pytest.fixture
def data(make_module: Callable[..., DataModule], preference_rows: Callable[[int], Any]) -> DataModule:
    data = make_module(preference_rows(NUM_RECORDS), validation_size=6)
    data.setup()
    return data


def check(path: Path, data: DataModule) -> None:
    """The cache holds what one process alone puts into its own, and no part is left."""

    def alone(part: int, parts: int) -> Iterable[Any]:
        return data.reference_batches(part, parts)

    expected = fill_cache(path.with_name("alone"), meta={}, batches=alone, score=score, device=CPU)
    found = ReferenceCache.open(path)
    assert len(found) == len(expected) == NUM_RECORDS
    for name, sequences in expected.records():
        assert len(sequences) == 2
        for values, others in zip(found.read(name), sequences, strict=True):
            np.testing.assert_array_equal(values, others)
    assert {item.name for item in path.parent.iterdir() if item.is_dir()} == {path.name, "alone"}


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_rank_scores_its_part(data: DataModule, tmp_path: Path, world_size: int) -> None:
    path = tmp_path / "reference" / "key"
    meet = FORK.Barrier(world_size)
    ranks = [Rank(data, path, rank, world_size, meet=meet) for rank in range(world_size)]
    assert [rank.end() for rank in ranks] == {2: [6, 5], 3: [4, 4, 3]}[world_size], "8 and 3 batches, dealt out"
    check(path, data)
    assert [Rank(data, path, rank, world_size).end() for rank in range(world_size)] == [0] * world_size


def test_two_runs_of_two_ranks_share_the_parts(data: DataModule, tmp_path: Path) -> None:
    path = tmp_path / "reference" / "key"
    ranks = [Rank(data, path, rank, 2) for rank in (0, 1, 0, 1)]
    assert sum(rank.end() for rank in ranks) == NUM_BATCHES
    check(path, data)


def test_a_dead_ranks_part_is_computed_by_another(data: DataModule, tmp_path: Path) -> None:
    path = tmp_path / "reference" / "key"
    dead = Rank(data, path, 1, 2, dies=True)
    dead.process.join(LONG_SECONDS)
    assert dead.process.exitcode == -signal.SIGKILL
    assert Rank(data, path, 0, 2).end() == NUM_BATCHES
    check(path, data)


def test_a_part_is_not_computed_when_another_run_was_done_meanwhile(
    data: DataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is not there when a rank begins, and is when it has got the lock of its part."""
    path = tmp_path / "reference" / "key"
    for rank in range(2):
        Rank(data, path, rank, 2).end()
    answers = iter([False, True])
    monkeypatch.setattr(ReferenceCache, "exists", lambda _: next(answers))

    def none(part: int, parts: int) -> Iterable[Any]:
        raise AssertionError(f"part {part} of {parts} is scored again")

    cache = fill_cache(path, meta={}, batches=none, score=score, device=CPU, rank=1, world_size=2)
    assert len(cache) == NUM_RECORDS
    check(path, data)
