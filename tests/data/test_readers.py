"""What a file may hold, and what is refused with file and line."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data.readers import MAX_NESTING, check_nesting, list_files, parse_json, read_rows
from alignment.data.records import RecordError
from alignment.data.sources import FileSource
from alignment.utils.errors import DataError

ROWS = [{"prompt": "Q", "chosen": "yes", "rejected": "no"}, {"prompt": "Ü 😀", "chosen": "a", "rejected": "b"}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    if path.name.endswith(".jsonl"):
        path.write_text(lines, "utf-8")
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(rows), "utf-8")
    elif path.name.endswith(".json.gz"):
        path.write_bytes(gzip.compress(json.dumps({"data": rows}).encode()))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "json.gz", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows.{suffix}", ROWS)
    rows = list(read_rows(path))
    assert [row.value for row in rows] == ROWS
    assert [row.line for row in rows] == [1, 2]
    assert all(str(path) in row.where for row in rows)


def test_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", ROWS[1:])
    write(tmp_path / "a.parquet", ROWS[:1])
    (tmp_path / "README.md").write_text("no data")
    assert [path.name for path in list_files(tmp_path)] == ["a.parquet", "b.jsonl"]
    assert FileSource(path=str(tmp_path)).load()["prompt"][:] == ["Q", "Ü 😀"]


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    (inside / "link.jsonl").symlink_to(write(tmp_path / "outside.jsonl", ROWS))
    with pytest.raises(DataError, match=r"link\.jsonl: leads out of the folder"):
        list_files(inside)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path / "nothing.jsonl", "no such file"),
        (lambda path: path, "holds no file"),
        (lambda path: write(path / "x.csv.parquet", ROWS).rename(path / "x.csv"), "unknown kind of file"),
    ],
)
def test_missing_empty_unknown(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_files(make(tmp_path))


GOOD = '{"prompt": "Q", "chosen": "a", "rejected": "b"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "Q", ', "malformed JSON"),
        ('["not", "an", "object"]', "not a JSON object: got list"),
        ('{"prompt": "Q", "chosen": "a"}', "missing field 'rejected'.*the row has 'prompt', 'chosen'"),
        ('{"prompt": "Q", "chosen": null, "rejected": "b"}', "missing field 'chosen': it is null"),
        ('{"prompt": "Q", "chosen": "a", "rejected": "a"}', "chosen equals rejected"),
        ('{"prompt": "Q", "chosen": " ", "rejected": "b"}', "empty chosen"),
        ('{"prompt": "Q", "chosen": 3, "rejected": "b"}', "chosen is not text"),
        ('{"prompt": "Q", "chosen": "a", "rejected": "b", "margin": NaN}', "NaN or Inf"),
        ('{"prompt": "Q", "chosen": "a", "rejected": "b", "margin": -Infinity}', "NaN or Inf"),
        ('{"prompt": "Q", "chosen": "a", "rejected": "b", "margin": 1e999}', "NaN or Inf"),
        ('{"prompt": "Q", "chosen": "a", "rejected": "b", "unused": NaN}', "NaN or Inf: found NaN"),
        ('{"prompt": "Q", "chosen": "a", "rejected": "b", "unused": -1e999}', "NaN or Inf: -1e999 overflows"),
        ('{"prompt": "Q", "chosen": "a\\ud800", "rejected": "b"}', "lone surrogate"),
        ('{"prompt": "Q\\udfff", "chosen": "a", "rejected": "b"}', "lone surrogate"),
        ('{"prompt": "Q", "chosen": "a", "rejected": "b", "x": ' + "[" * 40 + "]" * 40 + "}", "nested too deeply"),
        ('{"prompt": "Q", "x": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_line_is_named(write_jsonl: Callable[..., Path], line: str, message: str) -> None:
    path = write_jsonl([GOOD, line, GOOD])
    with pytest.raises(DataError, match=message) as caught:
        FileSource(path=str(path)).load()
    assert caught.value.where == f"{path}:2"
    rows, report = FileSource(path=str(path), on_bad_row="drop").read()
    assert len(rows) == 2
    assert report.dropped.total() == 1
    assert list(report.examples.values()) == [[f"{path}:2"]]


def test_over_long_line(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text(f"{GOOD}\n" + "x" * 2000 + "\n")
    with pytest.raises(DataError, match=rf"{path}:2: the line is longer than 1000 bytes"):
        list(read_rows(path, max_line_bytes=1000))


def test_not_utf8_and_damaged_files(tmp_path: Path) -> None:
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"prompt": "é"}\n'.encode("latin-1"))
    (row,) = read_rows(latin)
    assert isinstance(row.value, RecordError)
    assert row.value.reason == "not UTF-8"
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b"{}\n" * 1000)[:-10])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: damaged gzip"):
        list(read_rows(cut))
    for name, message in (("x.parquet", "not a Parquet file"), ("x.json", "malformed JSON")):
        (tmp_path / name).write_text("{nothing")
        with pytest.raises(DataError, match=message):
            list(read_rows(tmp_path / name))


def test_byte_order_mark_blank_lines_and_last_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\n\n  \n{GOOD}".encode())
    assert [row.line for row in read_rows(path)] == [1, 4]


def test_brackets_in_strings_do_not_nest() -> None:
    check_nesting(json.dumps({"a": "[" * 1000, "b": '\\"' + "{" * 1000}).encode())
    assert parse_json(json.dumps({"a": '[" ' * 100}).encode()) == {"a": '[" ' * 100}


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_nesting_agrees_with_a_count(value: Any) -> None:
    def depth(item: Any) -> int:
        inside = item.values() if isinstance(item, dict) else item if isinstance(item, list) else None
        return 0 if inside is None else 1 + max(map(depth, inside), default=0)

    raw = json.dumps(value).encode()
    check_nesting(raw, limit=depth(value))
    deep = json.dumps([value] * 50).encode()  # enough brackets for the count to be looked at
    if 0 < depth(value) < MAX_NESTING:
        with pytest.raises(RecordError):
            check_nesting(deep, limit=depth(value))
