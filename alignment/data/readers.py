"""Rows out of files, one at a time, with the place of each; what a hostile file may hold is refused.

Caps: bytes of a line and nesting of a value. NaN, Inf, lone surrogates, bytes that are not UTF-8 and
links that lead out of a folder are refused. Nothing is executed or unpickled.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from alignment.data.records import RecordError
from alignment.utils.errors import DataError

MAX_LINE_BYTES = 16 * 2**20
"""A longer line (or a longer element of a JSON array) is refused: it is not one record of text."""

MAX_JSON_BYTES = 2 * 2**30
"""A .json file is read whole; anything bigger belongs into .jsonl or Parquet."""

MAX_NESTING = 32
"""A deeper value is refused before it is parsed."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


# a string without its end runs to the end of the line: one pass, whatever a hostile line holds
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")


@dataclass(frozen=True)
class RawRow:
    """One row before it is understood.

    Attributes:
        file: The file's name, without folders: ids are made of it.
        line: The line, or the number of the row where there are no lines; counts from 1.
        where: Path and line, for messages.
        value: The row's fields, or the reason why it could not be read.
    """

    file: str
    line: int
    where: str
    value: Mapping[str, Any] | RecordError


def list_files(path: Path) -> list[Path]:
    """The data files at ``path``: itself, or those in the folder, sorted by name.

    Raises:
        DataError: Nothing is there, the suffix is unknown, or a link leads out of the folder.
    """
    if not path.exists():
        raise DataError(str(path), f"no such file or folder (looked in {Path.cwd()}): check data.train.path")
    if not path.is_dir():
        if not path.name.endswith(SUFFIXES):
            raise DataError(str(path), f"unknown kind of file; known are {', '.join(SUFFIXES)}")
        return [path]
    found = sorted(item for item in path.rglob("*") if item.name.endswith(SUFFIXES) and item.is_file())
    if not found:
        raise DataError(str(path), f"the folder holds no file that ends with {', '.join(SUFFIXES)}")
    for item in found:
        if not item.resolve().is_relative_to(path.resolve()):
            raise DataError(str(item), f"leads out of the folder {path} to {item.resolve()}: give that path itself")
    return found


def read_rows(path: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[RawRow]:
    """Yields a file's rows in order.

    Raises:
        DataError: The file as a whole cannot be read.
    """
    if path.name.endswith(".parquet"):
        yield from _read_parquet(path)
    elif path.name.endswith((".json", ".json.gz")):
        yield from _read_json(path)
    else:
        yield from _read_lines(path, max_line_bytes)


def parse_json(raw: bytes) -> Any:
    """Parses JSON from a source that is not trusted.

    Raises:
        RecordError: Malformed, too deep, not UTF-8, or with NaN, Inf or lone surrogates.
    """
    check_nesting(raw)
    try:
        text = raw.decode("utf-8")
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise RecordError("not UTF-8", f"byte {error.start} is 0x{raw[error.start]:02x}") from error
    except json.JSONDecodeError as error:
        raise RecordError("malformed JSON", f"{error.msg} at column {error.colno}") from error


def check_nesting(raw: bytes, limit: int = MAX_NESTING) -> None:
    """Refuses JSON that is nested more deeply than ``limit``, before a parser recurses into it."""
    if raw.count(b"[") + raw.count(b"{") <= limit:
        return
    brackets = _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS)
    steps = np.where(np.isin(np.frombuffer(brackets, np.uint8), list(b"[{")), 1, -1)
    if steps.size and steps.cumsum().max() > limit:
        raise RecordError("nested too deeply", f"more than {limit} levels")


def _refuse_constant(name: str) -> float:
    raise RecordError("NaN or Inf", f"found {name}, which is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RecordError("NaN or Inf", f"{text} overflows to {value}")
    return value


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _read_lines(path: Path, max_line_bytes: int) -> Iterator[RawRow]:
    try:
        with _open(path) as stream:
            for number in itertools.count(1):
                raw = stream.readline(max_line_bytes + 1)
                if not raw:
                    return
                where = f"{path}:{number}"
                if len(raw) > max_line_bytes:
                    raise DataError(where, f"the line is longer than {max_line_bytes} bytes")
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if raw.strip():
                    yield RawRow(path.name, number, where, _parse_row(raw))
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(str(path), f"damaged gzip file: {error}") from error


def _parse_row(raw: bytes) -> Mapping[str, Any] | RecordError:
    try:
        value = parse_json(raw)
    except RecordError as error:
        return error
    return _as_row(value)


def _as_row(value: Any) -> Mapping[str, Any] | RecordError:
    if isinstance(value, Mapping):
        return value
    return RecordError("not a JSON object", f"got {type(value).__name__}; a row is an object with named fields")


def _read_json(path: Path) -> Iterator[RawRow]:
    with _open(path) as stream:
        raw = stream.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise DataError(str(path), f"bigger than {MAX_JSON_BYTES} bytes: use .jsonl or .parquet")
    try:
        value = parse_json(raw.removeprefix(b"\xef\xbb\xbf"))
    except RecordError as error:
        raise DataError(str(path), str(error)) from error
    rows = value.get("data") if isinstance(value, Mapping) else value
    if not isinstance(rows, list):
        raise DataError(str(path), "expected a list of rows (or an object with such a list under 'data')")
    yield from _numbered(path, rows)


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=1024))
            yield from _numbered(path, itertools.chain.from_iterable(batches))
    except pyarrow.ArrowInvalid as error:
        raise DataError(str(path), f"not a Parquet file: {error}") from error


def _numbered(path: Path, rows: Iterable[Any]) -> Iterator[RawRow]:
    for number, value in enumerate(rows, start=1):
        yield RawRow(path.name, number, f"{path}: row {number}", _as_row(value))
