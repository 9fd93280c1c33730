"""Sources: recognition, column mapping, strict and lenient, ids, fingerprints, the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from alignment.data import sources
from alignment.data.openings import Openings
from alignment.data.records import Preference, RecordKind, from_row
from alignment.data.sources import FileSource, HubSource, Source, file_or_hub
from alignment.utils.errors import ConfigError, DataError

PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}
COMMIT = "a" * 40


def test_unknown_format_names_fields_and_remedy(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([{"question": "Q", "good": "a", "bad": "b"}])
    with pytest.raises(DataError, match=r"data\.jsonl:1: .*'question', 'good', 'bad'.*data\.train\.columns"):
        FileSource(path=str(path)).load()


def test_columns_are_mapped(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([{"question": "Q", "good": "a", "bad": "b", "text": "noise"}])
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    (row,) = FileSource(path=str(path), columns=columns).load()
    record = from_row(RecordKind.PREFERENCE, row)
    assert record == Preference(id="data.jsonl:1", prompt="Q", chosen="a", rejected="b")


def test_mapped_prompt_keeps_the_rest_for_the_verifier(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([{"problem": "1+1?", "final_answer": "2", "answer": {"unit": "none"}}])
    source = FileSource(path=str(path), columns={"prompt": "problem"})
    assert source.kind is RecordKind.PROMPT
    assert from_row(source.kind, source.load()[0]).answer == {"final_answer": "2", "answer": {"unit": "none"}}


def test_wrong_column_names(write_jsonl: Callable[..., Path]) -> None:
    path = str(write_jsonl([PAIR]))
    with pytest.raises(ConfigError, match=r"data\.train\.columns: got 'chosn'.*did you mean 'chosen'"):
        FileSource(path=path, columns={"chosn": "chosen"})
    with pytest.raises(DataError, match=r"missing field 'promt'.*did you mean 'prompt'"):
        FileSource(path=path, columns={"prompt": "promt"}).load()


def test_label_values(write_jsonl: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    given = ["good", "neither", "bad", 5, True]
    path = write_jsonl([{"prompt": "Q", "completion": f"a{place}", "says": value} for place, value in enumerate(given)])
    columns = {"prompt": "prompt", "completion": "completion", "label": "says"}
    meaning = {"good": True, "bad": False, "neither": None, 5: True, True: False}
    source = FileSource(path=str(path), columns=columns, label_values=meaning)
    rows, report = source.read()
    assert list(zip(rows["completion"], rows["label"], strict=True)) == [
        ("a0", True),
        ("a2", False),
        ("a3", True),
        ("a4", False),
    ]
    assert report.dropped == {"label counts as neither": 1}  # in a strict run too: the row is sound
    assert "1 x label counts as neither" in caplog.text
    short = FileSource(path=str(path), columns=columns, label_values={"good": True, "neither": None})
    with pytest.raises(DataError, match=r"data\.jsonl:3: unknown label: got 'bad'.*label_values has good, neither"):
        short.load()
    assert len({one.fingerprint for one in (source, short, FileSource(path=str(path), columns=columns))}) == 3


def test_label_values_of_a_recognised_format(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([{"text": "fine", "label": 5}, {"text": "dull", "label": 1}])
    with pytest.raises(DataError, match=r"label is not a boolean: got 5; .*data\.train\.label_values"):
        FileSource(path=str(path)).load()
    assert list(FileSource(path=str(path), label_values={5: True, 1: False}).load()["label"]) == [True, False]
    pairs = write_jsonl([{"prompt": "Q", "chosen": "a", "rejected": "b"}], "pairs.jsonl")
    with pytest.raises(DataError, match="missing field 'label'"):
        FileSource(path=str(pairs), label_values={"good": True}).load()


def test_wrong_label_values() -> None:
    with pytest.raises(ConfigError, match=r"data\.train\.label_values\.good: got 'yes'"):
        FileSource(path="x.jsonl", label_values={"good": "yes"})  # type: ignore[dict-item]


def test_first_row_may_be_the_bad_one(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([{"prompt": "Q", "chosen": "a"}, PAIR])
    with pytest.raises(DataError, match=r":1: missing field 'rejected'"):
        FileSource(path=str(path)).load()
    rows, report = FileSource(path=str(path), on_bad_row="drop").read()
    assert len(rows) == 1
    assert report.dropped == {"missing field 'rejected'": 1}


def test_nothing_usable(write_jsonl: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="holds no rows"):
        FileSource(path=str(write_jsonl([]))).load()
    same = {"prompt": "Q", "chosen": "a", "rejected": "a"}
    with pytest.raises(DataError, match=r"no usable row.*1 x chosen equals rejected \(first at .*:1\)"):
        FileSource(path=str(write_jsonl([same])), on_bad_row="drop").load()


def test_ids(write_jsonl: Callable[..., Path]) -> None:
    rows = [PAIR, {**PAIR, "id": "mine"}, {**PAIR, "id": "mine"}, {**PAIR, "id": 7}]
    ids = FileSource(path=str(write_jsonl(rows))).load()["id"][:]
    assert ids == ["data.jsonl:1", "mine", "mine@data.jsonl:3", "7"]


def test_as_chat(write_jsonl: Callable[..., Path]) -> None:
    (row,) = FileSource(path=str(write_jsonl([PAIR])), as_chat=True).load()
    assert from_row(RecordKind.PREFERENCE, row).prompt == [{"role": "user", "content": "Q"}]


def test_fingerprint_is_content_and_settings(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([PAIR])
    first = FileSource(path=str(path)).fingerprint
    moved = tmp_path / "elsewhere" / "data.jsonl"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    assert FileSource(path=str(moved)).fingerprint == first
    others = [
        FileSource(path=str(path), as_chat=True).fingerprint,
        FileSource(path=str(path), on_bad_row="drop").fingerprint,
        FileSource(path=str(path), columns={"prompt": "prompt"}).fingerprint,
        FileSource(path=str(write_jsonl([{**PAIR, "chosen": "c"}]))).fingerprint,
    ]
    assert len({first, *others}) == 5


def test_tokens_as_generated_are_kept(write_jsonl: Callable[..., Path]) -> None:
    tokens = {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4], "tokenizer_hash": "x"}
    (row,) = FileSource(path=str(write_jsonl([PAIR | tokens]))).load()
    record = from_row(RecordKind.PREFERENCE, row)
    assert isinstance(record, Preference)
    assert (record.prompt_ids, record.chosen_ids, record.rejected_ids) == ((1, 2), (3,), (4,))
    assert record.tokenizer_hash == "x"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A hub with one data set; remembers what was asked of it."""
    asked: list[dict[str, Any]] = []

    def load(path: str, name: str | None, **options: Any) -> datasets.Dataset:
        asked.append({"path": path, "name": name, **options})
        turns = [{"role": "user", "content": "Hi"}]
        sides = [[*turns, {"role": "assistant", "content": text}] for text in ("good", "bad")]
        return datasets.Dataset.from_list([{"prompt": "Hi", "chosen": sides[0], "rejected": sides[1]}])

    class Api:
        def dataset_info(self, path: str, revision: str | None) -> SimpleNamespace:
            return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(sources, "HfApi", Api)
    return asked


def test_hub_resolves_the_revision_and_loads_it(hub: list[dict[str, Any]]) -> None:
    source = HubSource(path="org/data", split="train")
    (row,) = source.load()
    assert from_row(source.kind, row).prompt == [{"role": "user", "content": "Hi"}]
    assert hub[0] == {"path": "org/data", "name": None, "data_dir": None, "split": "train", "revision": COMMIT}
    assert row["id"] == "org/data/train:1"
    pinned = HubSource(path="org/data", split="train", revision=COMMIT)
    other = HubSource(path="org/data", split="train", revision="b" * 40)
    assert source.fingerprint == pinned.fingerprint != other.fingerprint


def test_hub_without_network() -> None:
    with pytest.raises(DataError, match=r"org/data \(train\): the hub does not answer.*data\.train\.path"):
        _ = HubSource(path="org/data", split="train").fingerprint


def test_local_copy_or_hub(write_jsonl: Callable[..., Path]) -> None:
    hub_source = HubSource(path="org/data", split="train", revision=COMMIT)
    local = file_or_hub(path=str(write_jsonl([PAIR])), hub=hub_source, as_chat=True)
    remote = file_or_hub(path=None, hub=hub_source, on_bad_row="drop")
    assert isinstance(local, FileSource)
    assert local.as_chat
    assert isinstance(remote, HubSource)
    assert (remote.path, remote.revision, remote.on_bad_row) == ("org/data", COMMIT, "drop")


def test_openings(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl([{"text": "Once upon a time there was"}, {"text": "Too short"}])
    source: Source = Openings(source=FileSource(path=str(path)), num_words=4)
    (row,) = source.load()
    assert (row["id"], row["prompt"]) == ("data.jsonl:1", "Once upon a time")
    assert source.fingerprint != Openings(source=FileSource(path=str(path)), num_words=3).fingerprint
    with pytest.raises(ConfigError, match="num_words"):
        Openings(source=FileSource(path=str(path)), num_words=6).load()
    with pytest.raises(ConfigError, match="plain texts"):
        Openings(source=FileSource(path=str(write_jsonl([PAIR]))), num_words=2).load()
