"""Per-token log-probs of the reference model, computed once and read from disk ever after.

A folder named by a hash of everything that the numbers depend on::

    logps.bin      float32, all records' sequences one after the other
    offsets.npy    where each sequence begins, and where the last one ends
    records.json   ids, in order
    meta.json      what the hash was made of, in words
    COMPLETE       written last; held while a process uses the cache, so that it is not removed meanwhile
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np

from alignment.data.store import build_once, content_hash, hold
from alignment.utils.errors import DataError

CACHE_VERSION = 1
"""Of the file format."""


def cache_key(
    *,
    model_hash: str,
    dtype: str,
    tokenizer_hash: str,
    template: str | None,
    truncation: Mapping[str, Any],
    data_fingerprint: str,
    logprob_version: int,
) -> str:
    """Names a cache by everything that its numbers depend on.

    Args:
        model_hash: Of the reference's weights and configuration (adapters included).
        dtype: In which it is computed.
        tokenizer_hash: Of the tokenizer.
        template: The chat template.
        truncation: Limits and policies.
        data_fingerprint: Of the records, their split and their view.
        logprob_version: Of the code of the log-prob path.
    """
    return content_hash(
        cache_version=CACHE_VERSION,
        model_hash=model_hash,
        dtype=dtype,
        tokenizer_hash=tokenizer_hash,
        template=template,
        truncation=dict(truncation),
        data_fingerprint=data_fingerprint,
        logprob_version=logprob_version,
    )


class ReferenceCache:
    """Reads a cache; made by :meth:`open`.

    Attributes:
        path: The folder.
        meta: What the cache's name was made of.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.meta: dict[str, Any] = json.loads((path / "meta.json").read_text("utf-8"))
        ids = json.loads((path / "records.json").read_text("utf-8"))
        self._offsets = np.load(path / "offsets.npy", allow_pickle=False)
        self._logps = np.memmap(path / "logps.bin", dtype=np.float32, mode="r")
        self._places = {name: place for place, name in enumerate(ids)}
        self._per_record = (len(self._offsets) - 1) // max(len(ids), 1)
        if int(self._offsets[-1]) != len(self._logps):
            raise DataError(str(path), "the reference cache is damaged: delete the folder, and it is computed again")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a finished cache.

        Raises:
            DataError: There is none, or it was not finished.
        """
        if not hold(path):
            raise DataError(str(path), "there is no finished reference cache here")
        return cls(path)

    @classmethod
    def exists(cls, path: Path) -> bool:
        """Whether a finished cache is there; if so it stays until this process has ended."""
        return hold(path)

    @classmethod
    def write(cls, path: Path, *, meta: Mapping[str, Any], records: Iterable[tuple[str, Sequence[np.ndarray]]]) -> Self:
        """Writes a cache, whole or not at all, and opens it.

        Args:
            path: ``<cache>/reference/<key>``.
            meta: What the key was made of, in words.
            records: Each record's id, and the token log-probs of each of its sequences (chosen,
                rejected); read once, in a stream.
        """

        def build(folder: Path) -> None:
            ids: list[str] = []
            lengths: list[int] = []
            with (folder / "logps.bin").open("wb") as stream:
                for name, sequences in records:
                    ids.append(name)
                    for values in sequences:
                        stream.write(np.asarray(values, dtype=np.float32).tobytes())
                        lengths.append(len(values))
            np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64))
            (folder / "records.json").write_text(json.dumps(ids), "utf-8")
            (folder / "meta.json").write_text(json.dumps(dict(meta), indent=2, sort_keys=True), "utf-8")

        return cls(build_once(path, build))

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process goes the path, not the numbers."""
        return type(self), (self.path,)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, record_id: object) -> bool:
        return record_id in self._places

    def records(self) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Yields each record's id, and the token log-probs of each of its sequences."""
        for name in self._places:
            yield name, self.read(name)

    def read(self, record_id: str) -> list[np.ndarray]:
        """The token log-probs of each of a record's sequences, in nats.

        Raises:
            DataError: The record is not in the cache. It is not computed here: the policy has moved
                on from what the reference was.
        """
        if record_id not in self._places:
            raise DataError(
                str(self.path),
                f"the reference cache has no record {record_id!r}: it was made from other data. Delete the folder, or "
                "use reference=frozen_copy",
            )
        first = self._places[record_id] * self._per_record
        bounds = self._offsets[first : first + self._per_record + 1]
        return [np.asarray(self._logps[start:end]) for start, end in pairwise(bounds)]
