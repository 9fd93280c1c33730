"""Records to tokens: end of sequence, masks, truncation, given tokens, and the cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from alignment.data.chat_templates import TEMPLATES
from alignment.data.encoding import tokenizer_hash
from alignment.data.features import RECORD_FEATURES
from alignment.data.records import Binary, Demonstration, Preference, Prompt, Record, RecordKind, Stepwise, to_row
from alignment.data.store import MARKER, is_complete, remove
from alignment.data.tokenise import Tokeniser, tokenise
from alignment.data.truncation import Truncation
from alignment.data.views import view
from alignment.utils.errors import ConfigError, DataError, UserError

ROOMY = Truncation(200, None, "keep_end", "truncate")
USER = {"role": "user", "content": "hello there"}
Tokens = Callable[..., dict[str, Any]]


def dataset(*records: Record) -> Dataset:
    return Dataset.from_list([to_row(record) for record in records], features=RECORD_FEATURES[records[0].kind])


@pytest.fixture
def tokens(tokenizer: PreTrainedTokenizerFast) -> Tokens:
    """Tokenises one record as its own kind and returns its row."""

    def run(record: Record, truncation: Truncation = ROOMY, **changes: Any) -> dict[str, Any]:
        settings = {"tokenizer": tokenizer, "on_bad_row": "error", "want": record.kind} | changes
        tokeniser = Tokeniser(
            have=record.kind, seen_as=partial(view, want=settings["want"]), truncation=truncation, **settings
        )
        columns = tokeniser(dataset(record)[:])
        return {name: values[0] for name, values in columns.items()}

    return run


def pair(**changes: Any) -> Preference:
    return Preference(**({"id": "p", "prompt": "what", "chosen": " the cat", "rejected": " the dog"} | changes))


def test_text_pair_ends_with_one_eos(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> None:
    row = tokens(pair(rejected=" the dog<|im_end|><|im_end|>"))
    end = tokenizer.eos_token_id
    assert tokenizer.decode(row["prompt_ids"]) == "what"
    for side, text in (("completion_ids", " the cat"), ("rejected_ids", " the dog")):
        assert tokenizer.decode(row[side][:-1]) == text
        assert row[side].count(end) == 1
        assert row[side][-1] == end


def test_chat_answer_is_cut_after_the_templates_eos(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> None:
    row = tokens(pair(prompt=[USER]))
    assert tokenizer.decode(row["prompt_ids"]) == "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(row["completion_ids"]) == " the cat<|im_end|>"


def test_template_without_eos_gets_one(tokens: Tokens, make_tokenizer: Any) -> None:
    plain = make_tokenizer(eos_token="<|end|>", pad_token="<|end|>", chat_template=TEMPLATES["human_assistant"])
    row = tokens(pair(prompt=[USER], chosen="the cat"), tokenizer=plain)
    assert plain.decode(row["completion_ids"]) == " the cat<|end|>"


def test_templated_chat_has_one_bos(tokens: Tokens, shared_data: Path) -> None:
    """T1: whether or not the template writes it, and though the tokenizer adds it by itself."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "weights" / "stories260K")
    rows = []
    for opening in ("", "{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"):
        tokenizer.chat_template = opening + TEMPLATES["human_assistant"]
        rows.append(tokens(pair(prompt=[USER]), tokenizer=tokenizer))
    for row in rows:
        assert (row["prompt_ids"] + row["completion_ids"]).count(tokenizer.bos_token_id) == 1
        assert row["prompt_ids"] == rows[0]["prompt_ids"]


def test_multi_turn_scores_every_answer(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "assistant", "content": "one"}, USER, {"role": "assistant", "content": "two"}]
    row = tokens(Demonstration(id="d", prompt=[USER], completion=turns))
    scored = [item for item, flag in zip(row["completion_ids"], row["scored"], strict=True) if flag]
    assert tokenizer.decode(scored) == "one<|im_end|>two<|im_end|>"
    silent = [item for item, flag in zip(row["completion_ids"], row["scored"], strict=True) if not flag]
    assert tokenizer.decode(silent) == "\n<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\n"


def test_text_without_prompt_starts_from_bos(tokens: Tokens, base_tokenizer: PreTrainedTokenizerFast) -> None:
    row = tokens(Demonstration(id="d", prompt="", completion="the cat"), tokenizer=base_tokenizer)
    assert row["prompt_ids"] == [base_tokenizer.bos_token_id]
    assert base_tokenizer.decode(row["completion_ids"]) == "the cat<|end|>"


def test_steps_are_scored_at_their_last_token(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> None:
    steps = Stepwise(id="s", prompt="why", steps=("one cat", "two", "three"), labels=(1.0, None, 0.0))
    row = tokens(steps)
    assert tokenizer.decode(row["prompt_ids"] + row["completion_ids"]) == "why\none cat\ntwo\nthree"
    assert row["step_labels"] == [1.0, 0.0]
    places = [place for place, flag in enumerate(row["scored"]) if flag]
    heads = [tokenizer.decode(row["completion_ids"][: place + 1]) for place in places]
    assert heads == ["one cat", "one cat\ntwo\nthree"]
    cut = tokens(steps, Truncation(len(row["prompt_ids"]) + places[-1], None, "keep_end", "truncate"))
    assert cut["step_labels"] == [1.0]
    assert sum(cut["scored"]) == 1


def test_chat_without_template(tokens: Tokens, base_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"model\.tokenizer\.chat_template"):
        tokens(pair(prompt=[USER]), tokenizer=base_tokenizer)


def test_on_bad_row(tokens: Tokens, make_tokenizer: Any) -> None:
    refusing = make_tokenizer(eos_token="<|end|>", pad_token="<|end|>", chat_template="{{ raise_exception('no') }}")
    with pytest.raises(DataError, match=r"p: the chat template refuses.*data\.on_bad_row=drop"):
        tokens(pair(prompt=[USER]), tokenizer=refusing)
    row = tokens(pair(prompt=[USER]), tokenizer=refusing, on_bad_row="drop")
    assert row["dropped"] == "the chat template refuses the conversation"


# ---------------------------------------------------------------- truncation (T3)


def length(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    return len(tokenizer(text)["input_ids"])


def test_truncated_completion_has_no_eos(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> None:
    limit = length(tokenizer, "what") + 2
    row = tokens(pair(chosen=" the cat sat on the mat", rejected=" a dog"), Truncation(limit, None, "drop", "truncate"))
    assert len(row["prompt_ids"] + row["completion_ids"]) == limit
    assert tokenizer.eos_token_id not in row["completion_ids"]
    assert row["truncated_completion"]
    assert not row["truncated_prompt"]


@pytest.mark.parametrize(("policy", "kept"), [("keep_end", slice(-3, None)), ("keep_start", slice(3))])
def test_prompt_policies(tokens: Tokens, tokenizer: PreTrainedTokenizerFast, policy: Any, kept: slice) -> None:
    whole = tokenizer("one two three four")["input_ids"]
    row = tokens(pair(prompt="one two three four"), Truncation(50, 3, policy, "truncate"))
    assert row["prompt_ids"] == whole[kept]
    assert row["truncated_prompt"]


def test_keep_end_keeps_the_bos(tokens: Tokens, stories_tokenizer: Any) -> None:
    row = tokens(
        pair(prompt="Once upon a time"), Truncation(50, 3, "keep_end", "truncate"), tokenizer=stories_tokenizer
    )
    whole = stories_tokenizer("Once upon a time")["input_ids"]
    assert row["prompt_ids"] == [1, *whole[-2:]]


@pytest.mark.parametrize(
    ("truncation", "changes", "reason"),
    [
        (Truncation(50, 2, "drop", "truncate"), {"prompt": "one two three four"}, "prompt too long"),
        (
            Truncation(6, None, "keep_end", "drop"),
            {"chosen": " the cat sat on the mat in the park"},
            "completion too long",
        ),
        (Truncation(4, None, "keep_end", "truncate"), {"prompt": "one two three four"}, "the prompt leaves no room"),
        (
            Truncation(5, None, "keep_end", "truncate"),
            {"prompt": "what", "chosen": " the cat sat on a", "rejected": " the cat sat on the"},
            "chosen equals rejected after truncation",
        ),
    ],
)
def test_dropped(tokens: Tokens, truncation: Truncation, changes: dict[str, str], reason: str) -> None:
    row = tokens(pair(**changes), truncation)
    assert row["dropped"].startswith(reason)
    assert row["completion_ids"] == []


@pytest.mark.parametrize(
    ("truncation", "changes", "message"),
    [
        (
            Truncation(50, 2, "error", "truncate"),
            {"prompt": "one two three four"},
            r"p: the prompt has \d+ tokens, more than 2.*data\.truncate_prompt",
        ),
        (
            Truncation(6, None, "keep_end", "error"),
            {"chosen": " the cat sat on the mat in the park"},
            r"p: a completion has \d+ tokens, its prompt leaves room for.*data\.truncate_completion",
        ),
    ],
)
def test_error_policies(tokens: Tokens, truncation: Truncation, changes: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        tokens(pair(**changes), truncation, on_bad_row="drop")


def test_truncation_is_never_empty_nor_equal(tokens: Tokens) -> None:
    """T3, for every limit."""
    record = pair(prompt="one two", chosen=" the cat sat on a mat", rejected=" the cat sat on the mat")
    for limit in range(2, 40):
        row = tokens(record, Truncation(limit, None, "keep_end", "truncate"))
        if row["dropped"]:
            continue
        assert row["completion_ids"]
        assert row["rejected_ids"]
        assert row["completion_ids"] != row["rejected_ids"]
        assert len(row["prompt_ids"]) + max(len(row["completion_ids"]), len(row["rejected_ids"])) <= limit


def test_scored_part_cut_away(tokens: Tokens) -> None:
    steps = Stepwise(id="s", prompt="why", steps=("one cat sat on the mat", "two"), labels=(None, 1.0))
    assert tokens(steps, Truncation(8, None, "keep_end", "truncate"))["dropped"] == "no scored token is left"


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ((1, None, "keep_end", "truncate"), "data.max_length"),
        ((8, 8, "keep_end", "truncate"), "data.max_prompt_length"),
        ((8, 4, "middle", "truncate"), "data.truncate_prompt"),
        ((8, 4, "keep_end", "middle"), "data.truncate_completion"),
    ],
)
def test_impossible_limits(fields: Any, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Truncation(*fields)
    assert caught.value.key == key


# ---------------------------------------------------------------- tokens as generated


def test_given_tokens_are_used_as_they_are(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> None:
    """Not what the text would be tokenised to: what was generated."""
    given = {"prompt_ids": (10, 11), "chosen_ids": (12, 13), "rejected_ids": (14,)}
    row = tokens(pair(**given, tokenizer_hash=tokenizer_hash(tokenizer)))
    assert (row["prompt_ids"], row["completion_ids"], row["rejected_ids"]) == ([10, 11], [12, 13], [14])
    assert row["given_tokens"] == "used"
    other = tokens(pair(**given, tokenizer_hash="another"))
    assert tokenizer.decode(other["prompt_ids"]) == "what"
    assert other["given_tokens"] == "ignored"
    partly = tokens(pair(prompt_ids=(10,), tokenizer_hash=tokenizer_hash(tokenizer)))
    assert partly["given_tokens"] == ""
    prompt = tokens(Prompt(id="q", prompt="what", prompt_ids=(9,), tokenizer_hash=tokenizer_hash(tokenizer)))
    assert prompt["prompt_ids"] == [9]


# ---------------------------------------------------------------- the table and its cache


def run(records: Dataset, tokeniser: Tokeniser, cache: Path, **changes: Any) -> Dataset:
    settings = {"fingerprint": "x", "cache_dir": cache, "num_proc": None, "description": "Tokenising"} | changes
    return tokenise(records, tokeniser, **settings)


def make(tokenizer: PreTrainedTokenizerFast, **changes: Any) -> Tokeniser:
    settings = {
        "tokenizer": tokenizer,
        "have": RecordKind.PREFERENCE,
        "want": RecordKind.PREFERENCE,
        "seen_as": partial(view, want=RecordKind.PREFERENCE),
        "truncation": ROOMY,
        "on_bad_row": "error",
    } | changes
    return Tokeniser(**settings)


def test_second_start_does_no_work(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = dataset(pair(), pair(id="q", prompt="who"))
    first = run(records, make(tokenizer), tmp_path)

    def fail(self: Tokeniser, batch: Any) -> Any:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(Tokeniser, "__call__", fail)
    assert run(records, make(tokenizer), tmp_path)[:] == first[:]
    with pytest.raises(AssertionError, match="tokenised again"):
        run(records, make(tokenizer, truncation=Truncation(9, None, "keep_end", "truncate")), tmp_path)
    with pytest.raises(AssertionError, match="tokenised again"):
        run(records, make(tokenizer), tmp_path, fingerprint="y")


def test_tokens_that_are_open_stay(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    rows = run(dataset(pair()), make(tokenizer), tmp_path)
    folder = Path(rows.cache_files[0]["filename"]).parent
    assert is_complete(folder)
    assert not remove(folder, of=folder)
    os.utime(folder / MARKER, (1000, 1000))
    run(dataset(pair()), make(tokenizer), tmp_path)
    assert (folder / MARKER).stat().st_mtime > 1000


def test_fingerprint_covers_every_input(make_tokenizer: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    other_eos = make_tokenizer(eos_token="<|end|>", pad_token="<|end|>", chat_template=TEMPLATES["chatml"])
    other_template = make_tokenizer(
        eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=TEMPLATES["human_assistant"]
    )
    made = [
        make(tokenizer),
        make(other_eos),
        make(other_template),
        make(tokenizer, want=RecordKind.BINARY),
        make(tokenizer, have=RecordKind.DEMONSTRATION),
        make(tokenizer, on_bad_row="drop"),
        *(
            make(tokenizer, truncation=Truncation(*fields))
            for fields in [
                (201, None, "keep_end", "truncate"),
                (200, 100, "keep_end", "truncate"),
                (200, None, "keep_start", "truncate"),
                (200, None, "keep_end", "drop"),
            ]
        ),
    ]
    assert len({item.fingerprint for item in made}) == len(made)
    assert make(tokenizer).fingerprint == make(tokenizer).fingerprint


def test_processes_give_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    records = dataset(*(pair(id=str(number), prompt=f"what {number}") for number in range(8)))
    one = run(records, make(tokenizer), tmp_path / "one")
    assert run(records, make(tokenizer), tmp_path / "two", num_proc=2)[:] == one[:]


@pytest.mark.parametrize(
    ("want", "number"),
    [(RecordKind.BINARY, 2), (RecordKind.DEMONSTRATION, 1), (RecordKind.PROMPT, 1), (RecordKind.PREFERENCE, 1)],
)
def test_views_of_one_preference(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, want: RecordKind, number: int
) -> None:
    rows = run(dataset(pair()), make(tokenizer, want=want, seen_as=partial(view, want=want)), tmp_path)
    assert len(rows) == number
    assert rows["prompt_ids"][0] == tokenizer("what")["input_ids"]
    if want is RecordKind.BINARY:
        assert rows["id"][:] == ["p/chosen", "p/rejected"]
        assert rows["label"][:] == [True, False]


def test_no_noise_about_long_texts(tokens: Tokens, caplog: pytest.LogCaptureFixture, make_tokenizer: Any) -> None:
    short = make_tokenizer(eos_token="<|end|>", pad_token="<|end|>", model_max_length=4)
    with caplog.at_level(logging.WARNING):
        tokens(Binary(id="b", prompt="one two three four", completion=" five six", label=True), tokenizer=short)
    assert not caplog.records


# ---------------------------------------------------------------- several processes


@pytest.mark.parametrize("num_proc", [1, 2])
def test_processes_give_the_same_rows(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, num_proc: int) -> None:
    rows = dataset(*(pair(id=f"p{number}", chosen=f" the cat {number}") for number in range(7)))
    tokeniser = Tokeniser(
        tokenizer=tokenizer,
        have=RecordKind.PREFERENCE,
        want=RecordKind.PREFERENCE,
        seen_as=partial(view, want=RecordKind.PREFERENCE),
        truncation=ROOMY,
        on_bad_row="error",
    )

    def run(processes: int | None) -> Dataset:
        cache = tmp_path / str(processes)
        return tokenise(rows, tokeniser, fingerprint="f", cache_dir=cache, num_proc=processes, description="")

    assert run(num_proc)[:] == run(None)[:]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_bad_record_is_named_whoever_tokenises(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, num_proc: int | None
) -> None:
    """An exception that cannot go from one process to another leaves the first one waiting for ever."""
    rows = dataset(*(pair(id=f"file:{number}", chosen=" the cat" * (1 + 99 * (number == 5))) for number in range(8)))
    tokeniser = Tokeniser(
        tokenizer=tokenizer,
        have=RecordKind.PREFERENCE,
        want=RecordKind.PREFERENCE,
        seen_as=partial(view, want=RecordKind.PREFERENCE),
        truncation=Truncation(50, None, "error", "error"),
        on_bad_row="error",
    )
    with pytest.raises(UserError, match="file:5"):
        tokenise(rows, tokeniser, fingerprint="f", cache_dir=tmp_path, num_proc=num_proc, description="")


def test_chats_without_a_template_are_refused_by_a_process_too(
    base_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = dataset(*(pair(id=f"p{number}", prompt=(USER,)) for number in range(4)))
    tokeniser = Tokeniser(
        tokenizer=base_tokenizer,
        have=RecordKind.PREFERENCE,
        want=RecordKind.PREFERENCE,
        seen_as=partial(view, want=RecordKind.PREFERENCE),
        truncation=ROOMY,
        on_bad_row="error",
    )
    with pytest.raises(ConfigError) as caught:
        tokenise(rows, tokeniser, fingerprint="f", cache_dir=tmp_path, num_proc=2, description="")
    assert caught.value.key == "model.tokenizer.chat_template"
    assert caught.value.hint


@pytest.mark.parametrize(("cores", "passed"), [(1, None), (6, 3), (64, 8)])
def test_many_records_are_shared_out_over_cores(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, passed: int | None
) -> None:
    asked: list[Any] = []

    class Rows(list[None]):
        column_names = ()

        def map(self, *_: Any, num_proc: int | None, **__: Any) -> None:
            asked.append(num_proc)

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    for number in (100, 100_000):
        rows: Any = Rows([None] * number)
        tokeniser: Any = SimpleNamespace(fingerprint=str(number))
        tokenise(rows, tokeniser, fingerprint="f", cache_dir=tmp_path, num_proc=None, description="")
    assert asked == [None, passed]
