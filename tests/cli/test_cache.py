"""``align cache`` as it is typed: what is listed, what goes, what stays."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from alignment.cli.cache import seconds
from alignment.data.reference_cache import ReferenceCache
from alignment.data.store import MARKER, build_once
from alignment.pipeline.cache import State, find_entries

Align = Callable[..., int]
FORK = multiprocessing.get_context("fork")
DAY = 86400
MODEL = "3fa9c2d1" + "0" * 24


def table(path: Path, *ids: str) -> None:
    rows = pa.table({"id": list(ids)})
    with pa.ipc.new_stream(path, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=2)


def records(cache: Path, key: str, *ids: str) -> Path:
    def build(folder: Path) -> None:
        table(folder / "records.arrow", *ids)
        (folder / "meta.json").write_text(json.dumps({"kind": "preference", "report": {"records": len(ids)}}))

    return build_once(cache / "records" / key, build)


def tokens(cache: Path, key: str, *ids: str) -> Path:
    folder = cache / "tokens" / key
    folder.mkdir(parents=True)
    table(folder / "tokens.arrow", *ids)
    return folder


def reference(cache: Path, key: str, *ids: str) -> Path:
    meta = {"model_hash": MODEL, "dtype": "float32, 32-true, sdpa, None", "truncation": {"max_length": 512}}
    written = [(name, [np.zeros(100), np.zeros(50)]) for name in ids]
    return ReferenceCache.write(cache / "reference" / key, meta=meta, records=written).path


def used(path: Path, days_ago: float) -> None:
    then = time.time() - days_ago * DAY
    for file in (path, *path.rglob("*")):
        os.utime(file, (then, then))


def _fill(cache: Path) -> None:
    used(records(cache, "aaaa1111-3", "my.jsonl:1", "my.jsonl:2", "my.jsonl:3"), 1)
    used(tokens(cache, "bbbb2222", "my.jsonl:1", "my.jsonl:2"), 40)
    used(reference(cache, "cccc3333dddd", "my.jsonl:1"), 2)
    used(reference(cache, "cccc4444dddd", "my.jsonl:1", "my.jsonl:2"), 50)
    (cache / "labels").mkdir()
    (cache / "labels" / "eeee5555.jsonl").write_text("{}\n{}\n")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with an entry of each kind and one more, which no process holds."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ALIGNMENT_CACHE", str(folder))
    child = FORK.Process(target=_fill, args=(folder,))
    child.start()
    child.join()
    assert child.exitcode == 0
    return folder


def keys(cache: Path) -> set[str]:
    return {entry.key[:4] for entry in find_entries(cache)}


EVERY = {"aaaa", "bbbb", "cccc", "eeee"}


@pytest.fixture
def said(align: Align, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs ``align cache`` and returns the lines that it prints."""

    def run(*arguments: str, code: int = 0) -> list[str]:
        assert align("cache", *arguments) == code
        out, err = capsys.readouterr()
        assert (out, err)[code == 0] == ""
        return (out + err).splitlines()

    return run


Said = Callable[..., list[str]]


@pytest.mark.parametrize("arguments", [(), ("list",)])
def test_list(cache: Path, said: Said, arguments: tuple[str, ...]) -> None:
    header, *rows, total = said(*arguments)
    assert re.split(r" {2,}", header) == ["kind", "key", "size", "last used", "state", "made of"]
    shown = [re.split(r" {2,}", re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "WHEN", row)) for row in rows]
    words = "model 3fa9c2d1, float32, 32-true, sdpa, 512 tokens at most"
    sizes = [row.pop(2) for row in shown]
    assert shown == [
        ["records", "aaaa1111", "WHEN", "complete", "preference: 3 records, the first my.jsonl:1"],
        ["tokens", "bbbb2222", "WHEN", "complete", "2 records, the first my.jsonl:1"],
        ["reference", "cccc3333", "WHEN", "complete", f"{words}; 1 record, the first my.jsonl:1"],
        ["reference", "cccc4444", "WHEN", "complete", f"{words}; 2 records, the first my.jsonl:1"],
        ["labels", "eeee5555", "WHEN", "complete", "counts of 2 solutions"],
    ]
    # 600 bytes of log-probs a record, offsets of 3 or 5 numbers behind a header of 128 bytes, ids and meta.
    meta = json.loads((cache / "reference" / "cccc3333dddd" / "meta.json").read_text())
    others = len(json.dumps(meta, indent=2, sort_keys=True)) + len('["my.jsonl:1"]')
    assert sizes[2] == f"{600 + 128 + 3 * 8 + others} B"
    whole = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    assert total == f"5 entries, {whole / 1000:.1f} kB in {cache}"


def test_last_used_is_the_last_opening(cache: Path, said: Said) -> None:
    old = time.strftime("%Y-%m-%d", time.localtime(time.time() - 50 * DAY))
    assert old in said()[4]
    process = FORK.Process(target=ReferenceCache.open, args=(cache / "reference" / "cccc4444dddd",))
    process.start()
    process.join()
    assert old not in "".join(said())
    assert said()[3].split()[1] == "cccc4444", "what was used last stands first"


def test_listing_is_no_use(cache: Path, said: Said) -> None:
    before = [(entry.key, entry.last_used) for entry in find_entries(cache)]
    said()
    said("prune", "--all")
    assert [(entry.key, entry.last_used) for entry in find_entries(cache)] == before


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (["--all"], {"aaaa1111-3", "bbbb2222", "cccc3333dddd", "cccc4444dddd", "eeee5555"}),
        (["--kind", "reference"], {"cccc3333dddd", "cccc4444dddd"}),
        (["--kind", "labels"], {"eeee5555"}),
        (["--older-than", "30d"], {"bbbb2222", "cccc4444dddd"}),
        (["--older-than", "6w"], {"cccc4444dddd"}),
        (["--older-than", "36h", "--kind", "reference"], {"cccc3333dddd", "cccc4444dddd"}),
        (["cccc4"], {"cccc4444dddd"}),
        (["cccc"], {"cccc3333dddd", "cccc4444dddd"}),
        (["aaaa1111-3", "bbbb"], {"aaaa1111-3", "bbbb2222"}),
        (["cccc", "--older-than", "30d"], {"cccc4444dddd"}),
        (["--unfinished"], set()),
    ],
    ids=lambda value: " ".join(sorted(value) if isinstance(value, set) else value),
)
def test_prune(cache: Path, said: Said, arguments: list[str], gone: set[str]) -> None:
    before = {entry.key: entry for entry in find_entries(cache)}
    lines = said("prune", *arguments)
    assert {line.split()[1] for line in lines[1 : len(gone) + 1]} == {key[:8] for key in gone}
    num_bytes = sum(before[key].num_bytes for key in gone)
    size = f"{num_bytes / 1000:.1f} kB" if num_bytes >= 1000 else f"{num_bytes} B"
    count = "1 entry" if len(gone) == 1 else f"{len(gone)} entries"
    assert f"{count}, {size} of {cache} would be removed" in lines
    assert ("nothing is removed yet: add --yes" in lines) == bool(gone)
    assert {entry.key for entry in find_entries(cache)} == set(before)
    assert said("prune", *arguments, "--yes") == [f"{count}, {size} of {cache} removed"]
    assert {entry.key for entry in find_entries(cache)} == set(before) - gone


def test_a_warning_before_reference_caches_go(cache: Path, said: Said) -> None:
    assert any("cannot be resumed" in line for line in said("prune", "cccc"))
    assert not any("cannot be resumed" in line for line in said("prune", "aaaa"))


def test_unfinished(cache: Path, said: Said) -> None:
    (cache / "reference" / ".ffff6666.1234").mkdir()
    (cache / "reference" / ".ffff6666.1234" / "logps.bin").write_bytes(b"1234")
    (cache / "reference" / "cccc3333dddd" / MARKER).unlink()
    (cache / "tokens" / "abab").mkdir()
    (cache / "tokens" / "abab" / "tmpx").write_bytes(b"12345678")
    (cache / "tokens" / "cdcd").mkdir()
    table(cache / "tokens" / "cdcd" / "tokens_00000_of_00002.arrow", "a")
    (cache / "reference" / "README").mkdir()  # nothing of ours, without a marker: not told from the rest
    states = {entry.key: entry.state for entry in find_entries(cache)}
    unfinished = {"ffff6666", "cccc3333dddd", "abab", "cdcd", "README"}
    assert {key for key, state in states.items() if state is State.UNFINISHED} == unfinished
    assert sum(line.endswith("unfinished") for line in said()[:-1]) == 5
    said("prune", "--unfinished", "--yes")
    assert {entry.key for entry in find_entries(cache)} == set(states) - unfinished
    assert not (cache / "reference" / ".ffff6666.1234").exists()


def test_tables_of_several_processes_are_one_entry(cache: Path) -> None:
    folder = tokens(cache, "abab", "a", "b", "c")
    (folder / "tokens.arrow").rename(folder / "tokens_00000_of_00002.arrow")
    table(folder / "tokens_00001_of_00002.arrow", "d")
    (entry,) = (entry for entry in find_entries(cache) if entry.key == "abab")
    assert entry.state is State.COMPLETE
    assert entry.made_of == "4 records, the first a"


@pytest.mark.parametrize("file", ["meta.json", "records.json"])
def test_a_damaged_entry_is_listed_and_can_go(cache: Path, said: Said, file: str) -> None:
    (cache / "reference" / "cccc3333dddd" / file).write_text("{")
    assert said()[3].endswith("complete    cannot be read")
    said("prune", "cccc3", "--yes")
    assert "cccc3333dddd" not in {entry.key for entry in find_entries(cache)}


def test_ids_cannot_write_on_the_terminal(cache: Path, said: Said) -> None:
    child = FORK.Process(target=records, args=(cache, "ffff", "\x1b[2Jgone" + "x" * 500))
    child.start()
    child.join()
    (line,) = (line for line in said() if "ffff" in line)
    assert "\x1b" not in line
    assert len(line) < 200
    assert line.endswith("x…")


def _use(path: Path, begun: Any, end: Any) -> None:
    cache = ReferenceCache.open(path)
    begun.set()
    assert end.wait(60)
    assert len(ReferenceCache(path).read("my.jsonl:1")[0]) == len(cache.read("my.jsonl:1")[0]) == 100


def _build(path: Path, begun: Any, end: Any) -> None:
    def scored() -> Iterator[Any]:
        yield "a", [np.zeros(3)]
        begun.set()
        assert end.wait(60)

    ReferenceCache.write(path, meta={}, records=scored())


@pytest.mark.parametrize(("work", "key"), [(_use, "cccc3333dddd"), (_build, "ffff6666")])
def test_what_a_running_process_uses_stays(cache: Path, said: Said, work: Any, key: str) -> None:
    begun, end = FORK.Event(), FORK.Event()
    process = FORK.Process(target=work, args=(cache / "reference" / key, begun, end))
    process.start()
    assert begun.wait(60)
    (line,) = (line for line in said() if key[:8] in line)
    assert "in use" in line
    others = {entry.key for entry in find_entries(cache)} - {key}
    kept = "; 1 kept that a running process uses"
    assert any(line.startswith(f"{len(others)} entries") and line.endswith(kept) for line in said("prune", "--all"))
    assert said("prune", "--all", "--yes")[0].endswith(kept)
    assert [entry.key for entry in find_entries(cache)] == [key]
    end.set()
    process.join()
    assert process.exitcode == 0
    assert len(ReferenceCache.open(cache / "reference" / key)) == 1


_NO_TIME = (
    "--older-than: got '{}', expected a number with m, h, d or w behind it (minutes, hours, days, weeks). "
    "For example --older-than 30d"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["purge"], "align cache: got 'purge', expected list or prune. did you mean 'prune'?"),
        (["prune"], "align cache prune: say what: KEY, --kind, --older-than, --unfinished or --all"),
        (["prune", "--yes"], "align cache prune: say what: KEY, --kind, --older-than, --unfinished or --all"),
        (
            ["prune", "--all", "--kind", "tokens"],
            "align cache prune: --all takes every entry; leave it out, or everything else but --yes",
        ),
        (
            ["prune", "--kind", "referense", "--yes"],
            "--kind: got 'referense', expected one of records, tokens, reference, labels. did you mean 'reference'?",
        ),
        (
            ["prune", "cccd", "--yes"],
            "KEY: got 'cccd', expected the beginning of an entry's key; see align cache. did you mean 'cccc'?",
        ),
        (["prune", "", "--yes"], "KEY: got '', expected the beginning of an entry's key; see align cache"),
        *(
            (["prune", "--older-than", text, "--yes"], _NO_TIME.format(text))
            for text in ("30", "d", "30 d", "1y", "nan")
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors(cache: Path, said: Said, arguments: list[str], message: str) -> None:
    assert said(*arguments, code=2) == [f"error: {message}"]
    assert keys(cache) == EVERY


@pytest.mark.parametrize("arguments", [("--yes",), ("list", "--kind"), ("prune", "--older", "3d"), ("list", "aaaa")])
def test_unknown_flags(cache: Path, align: Align, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as stop:
        align("cache", *arguments)
    assert stop.value.code == 2
    assert keys(cache) == EVERY


@pytest.mark.parametrize("arguments", [(), ("prune", "--all"), ("prune", "--all", "--yes")])
def test_no_cache_at_all(said: Said, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    nowhere = tmp_path / "nowhere"
    message = [f"{nowhere}: there is no such folder, so nothing is cached"]
    assert said(*arguments, "--cache", str(nowhere)) == message
    assert not nowhere.exists()


def test_an_empty_cache(said: Said, tmp_path: Path) -> None:
    assert said("--cache", str(tmp_path)) == [f"0 entries, 0 B in {tmp_path}"]


def test_a_cache_that_can_only_be_read(cache: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, _: Path) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "rename", refuse)
    folder = cache / "records" / "aaaa1111-3"
    assert said("prune", "aaaa", "--yes", code=1) == [f"align cache prune: {folder}: Read-only file system"]


def test_seconds() -> None:
    assert [seconds(text) for text in ("90m", "12h", "30d", "2w", "0.5d")] == [5400, 43200, 2592000, 1209600, 43200]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("align ca", ["cache"]),
        ("align cache l", ["list"]),
        ("align cache prune --o", ["--older-than"]),
        ("align cache prune --kind reference --y", ["--yes"]),
        ("align report ", []),
    ],
)
def test_completion(
    align: Align, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, expected: list[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert align("-sc", "query=bash") == 0
    assert capsys.readouterr().out.split() == expected


def test_no_torch_is_imported(cache: Path) -> None:
    code = """
import sys
from alignment.cli.main import main
assert main(["cache"]) == 0
assert main(["cache", "prune", "--all"]) == 0
loaded = {"torch", "transformers", "lightning", "datasets", "peft", "wandb", "hydra"} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _command(*arguments: str, cwd: Path) -> str:
    command = [sys.executable, "-m", "alignment.cli.main", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_as_a_user_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run fills the cache; it is listed and pruned; the next run fills it again."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("ALIGNMENT_CACHE", str(cache))
    small = ["model.config.hidden_size=32", "model.config.intermediate_size=64", "model.config.num_hidden_layers=2"]
    small += ["model=world_init", "data.train.num_records=48", "data.validation.num_records=16", "trainer.max_steps=1"]
    small += ["data.batch_size=8", "data.micro_batch_size=4", "callbacks.fresh_samples=null", "hardware.threads=1"]
    _command("train", "reference=precomputed", *small, cwd=tmp_path)
    listed = _command("cache", cwd=tmp_path)
    (line,) = re.findall(r"^reference .*$", listed, re.MULTILINE)
    assert "complete" in line
    assert line.endswith("64 records, the first reviews/train/0/0")
    assert len(re.findall(r"^records .* preference: (48|16) records, the first reviews/", listed, re.MULTILINE)) == 2
    assert "would be removed" in _command("cache", "prune", "--kind", "reference", cwd=tmp_path)
    pruned = _command("cache", "prune", "--kind", "reference", "--yes", cwd=tmp_path)
    assert pruned.startswith("1 entry, ")
    assert "\nreference" not in _command("cache", cwd=tmp_path)
    _command("train", "reference=precomputed", *small, cwd=tmp_path)
    assert line.split()[1] in _command("cache", cwd=tmp_path)
    _command("cache", "prune", "--all", "--yes", cwd=tmp_path)
    assert _command("cache", cwd=tmp_path) == f"0 entries, 0 B in {cache}\n"
