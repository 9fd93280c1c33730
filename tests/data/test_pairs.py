"""Preferences made of labelled completions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data.pairs import PairsFromLabels
from alignment.data.records import Preference, RecordKind, from_row
from alignment.data.sources import FileSource
from alignment.types import PreferenceBatch
from alignment.utils.errors import ConfigError, DataError

Write = Callable[..., Path]


def labelled(prompt: str, good: str, bad: str) -> list[dict[str, Any]]:
    """One row for each letter."""
    return [
        {"prompt": prompt, "completion": f" {text}", "label": label}
        for label, texts in ((True, good), (False, bad))
        for text in texts
    ]


def pairs(path: Path, *, most: int = 100, seed: int = 0, **settings: Any) -> list[Preference]:
    source = PairsFromLabels(source=FileSource(path=str(path), **settings), max_pairs_per_prompt=most, seed=seed)
    rows = source.load()
    found = [from_row(RecordKind.PREFERENCE, row) for row in rows]  # type: ignore[arg-type]
    assert all(isinstance(record, Preference) for record in found)
    assert len({record.id for record in found}) == len(found)
    return found  # type: ignore[return-value]


def sides(records: list[Preference]) -> list[tuple[str, str, str]]:
    return [(str(record.prompt), record.chosen.strip(), record.rejected.strip()) for record in records]


def test_every_good_one_against_every_bad_one_of_its_prompt(write_jsonl: Write, caplog: Any) -> None:
    rows = [*labelled("Q", "ab", "xyz"), *labelled("R", "c", "v"), *labelled("only good", "d", "")]
    with caplog.at_level(logging.INFO):
        found = sides(pairs(write_jsonl(rows)))
    assert sorted(found) == sorted([*(("Q", good, bad) for good in "ab" for bad in "xyz"), ("R", "c", "v")])
    assert "7 preferences from the 2 of 3 prompts" in caplog.text


@pytest.mark.parametrize(("good", "bad"), [("abcd", "wxyz"), ("ab", "uvwxyz"), ("abcdef", "xyz")])
def test_no_completion_stands_in_a_second_pair_before_all_stand_in_one(write_jsonl: Write, good: str, bad: str) -> None:
    path = write_jsonl(labelled("Q", good, bad))
    few, many = sorted((len(good), len(bad)))
    for most in range(1, few * many + 1):
        found = sides(pairs(path, most=most))
        assert len(set(found)) == most
        assert all(chosen in good and rejected in bad for _, chosen, rejected in found)
        used = Counter(text for _, *both in found for text in both)
        if most <= few:
            assert max(used.values()) == 1
        if most == many:
            assert set(used) == {*good, *bad}


def test_the_seed_chooses(write_jsonl: Write) -> None:
    path = write_jsonl(labelled("Q", "abcdef", "uvwxyz"))
    assert pairs(path, most=3, seed=1) == pairs(path, most=3, seed=1)
    assert len({tuple(sides(pairs(path, most=3, seed=seed))) for seed in range(5)}) > 1
    made = [
        PairsFromLabels(source=FileSource(path=str(path), as_chat=chat), max_pairs_per_prompt=most, seed=seed)
        for chat, most, seed in [(False, 3, 1), (True, 3, 1), (False, 4, 1), (False, 3, 2)]
    ]
    assert len({source.fingerprint for source in made}) == len(made)


def test_a_completion_with_both_labels_is_in_no_pair_and_one_given_twice_counts_once(write_jsonl: Write) -> None:
    rows = [*labelled("Q", "abb", "xb"), *labelled("Q", "a", "")]
    assert sides(pairs(write_jsonl(rows))) == [("Q", "a", "x")]


def test_texts_without_a_prompt_are_set_against_each_other(write_jsonl: Write) -> None:
    rows = [{"text": f"text {number}", "label": number % 2} for number in range(6)]
    found = pairs(write_jsonl(rows), most=3)
    assert {record.prompt for record in found} == {""}
    assert len({text for record in found for text in (record.chosen, record.rejected)}) == 6
    assert all(int(record.chosen[-1]) % 2 == 1 and int(record.rejected[-1]) % 2 == 0 for record in found)


def test_solutions_in_steps_are_paired_by_their_steps(write_jsonl: Write, caplog: Any) -> None:
    steps = [("right", [1, 1]), ("wrong", [1, 0]), ("doubtful", [1, None])]
    rows = [{"prompt": "Q", "completions": ["so", name], "labels": labels} for name, labels in steps]
    assert sides(pairs(write_jsonl(rows))) == [("Q", "so\nright", "so\nwrong")]
    assert "1 records left out: not known whether every step is right" in caplog.text


def test_tokens_as_generated_are_kept_if_both_have_them(write_jsonl: Write) -> None:
    ids = {"prompt_ids": [1], "tokenizer_hash": "t"}
    rows = [row | ids | {"completion_ids": [place + 2]} for place, row in enumerate(labelled("Q", "a", "x"))]
    (found,) = pairs(write_jsonl(rows))
    assert (found.prompt_ids, found.chosen_ids, found.rejected_ids, found.tokenizer_hash) == ((1,), (2,), (3,), "t")
    rows[1]["tokenizer_hash"] = "other"
    (found,) = pairs(write_jsonl(rows))
    assert (found.prompt_ids, found.chosen_ids, found.rejected_ids, found.tokenizer_hash) == (None,) * 4


def test_nothing_to_pair(write_jsonl: Write) -> None:
    rows = [*labelled("Q", "ab", ""), *labelled("R", "", "x")]
    expected = r"data\.jsonl: no prompt has both .* 2 prompts with 2 good and 1 bad ones.*method=kto"
    with pytest.raises(DataError, match=expected):
        pairs(write_jsonl(rows))


def test_records_without_labels_are_refused(write_jsonl: Write) -> None:
    path = write_jsonl([{"prompt": "Q", "completion": " a"}])
    with pytest.raises(ConfigError, match=r"got 'demonstration records', expected labelled completions"):
        pairs(path)
    with pytest.raises(ConfigError, match=r"data\.train\.max_pairs_per_prompt: got 0"):
        pairs(path, most=0)


def test_pairs_without_a_prompt_are_split_by_their_texts(
    write_jsonl: Write, make_module: Any, base_tokenizer: Any
) -> None:
    rows = [{"text": f"text {number}", "label": number % 2} for number in range(40)]
    source = PairsFromLabels(source=FileSource(path=str(write_jsonl(rows))), max_pairs_per_prompt=20, seed=0)
    data = make_module(train=source, batch_type=PreferenceBatch, validation_size=5, tokenizer=base_tokenizer)
    assert (data.num_train_records, data.num_validation_records) == (15, 5)


@pytest.mark.parametrize(
    ("name", "most", "prompts", "number"),
    [("rt_polarity.jsonl.gz", 4000, 1, 4000), ("gsm8k_model_solutions.jsonl.gz", 100, 358, 1169)],
)
def test_real_files(shared_data: Path, name: str, most: int, prompts: int, number: int) -> None:
    found = pairs(shared_data / "feedback" / name, most=most)
    assert (len({str(record.prompt) for record in found}), len(found)) == (prompts, number)
    if name.startswith("rt"):
        assert len({text for record in found for text in (record.chosen, record.rejected)}) == 8000
