"""T37: the key covers every input; a hole raises; half a cache does not exist."""

from __future__ import annotations

import json
import multiprocessing
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.data.reference_cache import ReferenceCache, cache_key
from alignment.data.store import MARKER, build_once, content_hash
from alignment.utils.errors import DataError

INPUTS: dict[str, Any] = {
    "model_hash": "m",
    "dtype": "float32",
    "tokenizer_hash": "t",
    "template": None,
    "truncation": {"max_length": 8, "prompt": "keep_end"},
    "data_fingerprint": "d",
    "logprob_version": 1,
}
RECORDS = [("a", [np.array([-1.0, -2.0]), np.array([-3.0])]), ("b", [np.array([-4.0]), np.array([-5.0, -6.0, -7.0])])]


@pytest.mark.parametrize(
    "change",
    [
        {"model_hash": "n"},
        {"dtype": "bfloat16"},
        {"tokenizer_hash": "u"},
        {"template": "{{ messages }}"},
        {"truncation": {"max_length": 9, "prompt": "keep_end"}},
        {"truncation": {"max_length": 8, "prompt": "keep_start"}},
        {"data_fingerprint": "e"},
        {"logprob_version": 2},
    ],
    ids=str,
)
def test_key_covers(change: dict[str, Any]) -> None:
    assert cache_key(**INPUTS) == cache_key(**INPUTS)
    assert cache_key(**(INPUTS | change)) != cache_key(**INPUTS)


def test_key_is_a_safe_name() -> None:
    assert cache_key(**INPUTS).isalnum()


def test_write_and_read(tmp_path: Path) -> None:
    cache = ReferenceCache.write(tmp_path / "key", meta=INPUTS, records=iter(RECORDS))
    again = ReferenceCache.open(tmp_path / "key")
    assert len(again) == 2
    assert "a" in again
    assert "c" not in again
    assert again.meta == json.loads(json.dumps(INPUTS)) == cache.meta
    for name, sequences in RECORDS:
        for found, expected in zip(again.read(name), sequences, strict=True):
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, expected)


def test_travels_to_other_processes_by_path(tmp_path: Path) -> None:
    cache = ReferenceCache.write(tmp_path / "key", meta={}, records=[("a", [np.zeros(100_000)])])
    data = pickle.dumps(cache)
    assert len(data) < 1000
    assert len(pickle.loads(data).read("a")[0]) == 100_000


def test_hole_raises(tmp_path: Path) -> None:
    cache = ReferenceCache.write(tmp_path / "key", meta={}, records=RECORDS)
    with pytest.raises(DataError, match="no record 'c'"):
        cache.read("c")


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Any]:
        yield RECORDS[0]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        ReferenceCache.write(tmp_path / "key", meta={}, records=broken())
    assert not ReferenceCache.exists(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
    with pytest.raises(DataError, match="no finished reference cache"):
        ReferenceCache.open(tmp_path / "key")
    assert len(ReferenceCache.write(tmp_path / "key", meta={}, records=RECORDS)) == 2


def test_folder_without_marker_is_made_again(tmp_path: Path) -> None:
    ReferenceCache.write(tmp_path / "key", meta={}, records=RECORDS[:1])
    (tmp_path / "key" / MARKER).unlink()
    assert len(ReferenceCache.write(tmp_path / "key", meta={}, records=RECORDS)) == 2


def test_damaged_file(tmp_path: Path) -> None:
    ReferenceCache.write(tmp_path / "key", meta={}, records=RECORDS)
    path = tmp_path / "key" / "logps.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="damaged"):
        ReferenceCache.open(tmp_path / "key")


def _build(path: Path, made: Any) -> None:
    def build(folder: Path) -> None:
        with made.get_lock():
            made.value += 1
        (folder / "x").write_text("content")

    build_once(path, build)


def test_several_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    made = context.Value("i", 0)
    workers = [context.Process(target=_build, args=(tmp_path / "folder", made)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert made.value == 1
    assert (tmp_path / "folder" / "x").read_text() == "content"


def test_content_hash_is_stable() -> None:
    assert content_hash(b=[1, None], a="ä") == content_hash(a="ä", b=[1, None])
    assert content_hash(a=1) != content_hash(a="1")
