"""The data module end to end: typed batches, splits, statistics, caches, ranks, references."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from alignment.data.chat_templates import TEMPLATES
from alignment.data.datamodule import DataModule
from alignment.data.encoding import tokenizer_hash
from alignment.data.reference_cache import ReferenceCache
from alignment.data.sources import FileSource
from alignment.types import Batch, BinaryBatch, PreferenceBatch, PromptBatch, SFTBatch, StepwiseBatch
from alignment.utils.errors import ConfigError, DataError

Make = Callable[..., DataModule]
Rows = Callable[[int], list[dict[str, str]]]


def texts(batch: Any, tokenizer: Any) -> list[str]:
    """The scored text of each sequence."""
    tokens = batch.tokens
    return [tokenizer.decode(tokens.targets[tokens.sequence_index == number]) for number in range(tokens.num_sequences)]


def test_preference_batch(make_module: Make, preference_rows: Rows, tokenizer: Any) -> None:
    rows = preference_rows(6)
    (batch,) = make_module(rows, batch_size=6, micro_batch_size=6).train_dataloader()
    assert isinstance(batch, PreferenceBatch)
    numbers = [int(name.split(":")[1]) - 1 for name in batch.ids]
    assert sorted(numbers) == list(range(6))
    expected = [rows[number][side] + "<|im_end|>" for side in ("chosen", "rejected") for number in numbers]
    assert texts(batch, tokenizer) == expected
    assert batch.weights.tolist() == [1.0] * 6
    chosen = int((batch.tokens.sequence_index < 6).sum())
    assert batch.counts == {
        "records": 6,
        "tokens": len(batch.tokens.targets),
        "completion_tokens": len(batch.tokens.targets),
        "chosen_tokens": chosen,
        "real_tokens": batch.tokens.num_real_tokens,
    }
    assert batch.reference_token_logps is None
    assert batch.probabilities is None
    assert batch.tokens.in_completion is None


def test_preference_batch_with_scored_prompts(make_module: Make, preference_rows: Rows, tokenizer: Any) -> None:
    rows = preference_rows(6)
    data = make_module(rows, batch_size=6, micro_batch_size=3, score_prompt=True)
    plain = list(make_module(rows, batch_size=6, micro_batch_size=3).train_dataloader())
    batches = list(data.train_dataloader())
    all_scored = sum(len(batch.tokens.targets) for batch in batches)
    in_completions = sum(int(batch.tokens.in_completion.sum()) for batch in batches)
    of_chosen = sum(int((batch.tokens.sequence_index < 3).sum()) for batch in batches)
    assert all_scored == in_completions + sum(len(tokenizer(row["prompt"])["input_ids"]) - 1 for row in rows)
    for batch, without in zip(batches, plain, strict=True):
        assert batch.counts == {
            "records": 6,
            "tokens": all_scored,
            "completion_tokens": in_completions,
            "chosen_tokens": of_chosen,
            "real_tokens": without.counts["real_tokens"],
        }
        assert without.counts["completion_tokens"] == without.counts["tokens"] == in_completions
        assert torch.equal(batch.tokens.targets[batch.tokens.in_completion], without.tokens.targets)
        first = rows[int(batch.ids[0].split(":")[1]) - 1]
        whole = first["prompt"] + first["chosen"] + "<|im_end|>"
        head = tokenizer.decode(tokenizer(first["prompt"])["input_ids"][0])
        assert head + texts(batch, tokenizer)[0] == whole


def test_margins(make_module: Make) -> None:
    rows = [
        {"prompt": "Q", "chosen": "a", "rejected": "b", "margin": 2.5},
        {"prompt": "Q", "chosen": "a", "rejected": "c"},
    ]
    (batch,) = make_module(rows, shuffle=False, micro_batch_size=4).train_dataloader()
    assert dict(zip(batch.ids[:2], batch.margins.tolist(), strict=False)) == {"data.jsonl:1": 2.5, "data.jsonl:2": 0.0}


def test_sft_batch_of_a_multi_turn_chat(make_module: Make, tokenizer: Any) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Goodbye")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    (batch,) = make_module(rows, batch_type=SFTBatch, micro_batch_size=1, batch_size=1).train_dataloader()
    assert isinstance(batch, SFTBatch)
    assert texts(batch, tokenizer) == ["Hello<|im_end|>Goodbye<|im_end|>"]
    assert batch.counts["tokens"] == len(batch.tokens.targets)
    data = make_module(rows, batch_type=SFTBatch, micro_batch_size=1, batch_size=1, score_prompt=True)
    (whole,) = data.train_dataloader()
    ids = whole.tokens.input_ids[0, 1:].tolist()
    assert whole.tokens.targets.tolist() == ids  # the user's second turn too
    assert torch.equal(whole.tokens.targets[whole.tokens.in_completion], batch.tokens.targets)
    assert (whole.counts["tokens"], whole.counts["completion_tokens"]) == (len(ids), batch.counts["tokens"])


def test_turn_that_was_cut_behind_the_last_answer_is_not_scored(make_module: Make, tokenizer: Any) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello"), ("user", "and " * 30), ("assistant", "Goodbye")]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turns]}]
    data = make_module(rows, batch_type=SFTBatch, micro_batch_size=1, batch_size=1, max_length=40, score_prompt=True)
    (batch,) = data.train_dataloader()
    assert tokenizer.decode(batch.tokens.targets).endswith("Hello<|im_end|>")
    assert batch.tokens.num_real_tokens == 40
    assert batch.counts["tokens"] == len(batch.tokens.targets) < 39
    assert tokenizer.decode(batch.tokens.targets[batch.tokens.in_completion]) == "Hello<|im_end|>"


@pytest.mark.parametrize("batch_type", [BinaryBatch, StepwiseBatch, PromptBatch])
def test_prompts_are_scored_for_demonstrations_and_preferences_only(make_module: Make, batch_type: type[Batch]) -> None:
    with pytest.raises(ValueError, match="demonstrations and preferences only"):
        make_module(batch_type=batch_type, score_prompt=True)


SURE: list[dict[str, Any]] = [
    {"prompt": "Q1", "chosen": " a", "rejected": " b", "votes": [2, 1]},
    {"prompt": "Q2", "chosen": " a", "rejected": " b"},
    {"prompt": "Q3", "chosen": " a", "rejected": " b", "probability": 0.25},
    {"prompt": "Q4", "chosen": " a", "rejected": " b", "probability": 0.5},
]


def test_soft_labels_stand_beside_their_pairs(
    make_module: Make, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_module(SURE, micro_batch_size=4, soft_labels=True)
    (batch,) = data.train_dataloader()
    assert batch.probabilities.dtype == torch.float32
    found = dict(zip(batch.ids, batch.probabilities.tolist(), strict=True))
    assert found == pytest.approx({"data.jsonl:1": 2 / 3, "data.jsonl:2": 1, "data.jsonl:3": 0.75, "data.jsonl:4": 0.5})
    chosen = dict(zip(batch.ids, texts(batch, tokenizer), strict=False))
    assert chosen["data.jsonl:3"] == " b<|im_end|>"
    assert data.statistics["train"]["dropped"] == {}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_ties_are_dropped_and_other_soft_labels_read_as_hard(
    make_module: Make, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_module(SURE, micro_batch_size=4)
    (batch,) = data.train_dataloader()
    assert batch.probabilities is None
    assert sorted(batch.ids[:3]) == ["data.jsonl:1", "data.jsonl:2", "data.jsonl:3"]
    assert dict(zip(batch.ids, texts(batch, tokenizer), strict=False))["data.jsonl:3"] == " b<|im_end|>"
    assert data.statistics["train"]["dropped"] == {"tie": 1}
    said = [record.getMessage() for record in caplog.records]
    assert sum("dropped 1 records: tie" in text for text in said) == 1
    assert sum("2 preferences are not certain" in text for text in said) == 1
    assert data.fingerprint != make_module(SURE, soft_labels=True).fingerprint


@pytest.mark.parametrize(("batch_type", "records"), [(SFTBatch, 3), (BinaryBatch, 6), (PromptBatch, 4)])
def test_ties_show_nothing_to_imitate(make_module: Make, batch_type: type[Batch], records: int) -> None:
    assert make_module(SURE, batch_type=batch_type).num_train_records == records


def test_binary_batch_from_preferences(make_module: Make, preference_rows: Rows) -> None:
    data = make_module(preference_rows(3), batch_type=BinaryBatch, batch_size=6, micro_batch_size=6)
    (batch,) = data.train_dataloader()
    assert isinstance(batch, BinaryBatch)
    assert batch.labels.dtype == torch.bool
    assert {name: bool(label) for name, label in zip(batch.ids, batch.labels, strict=True)} == {
        f"data.jsonl:{number}/{side}": side == "chosen" for number in (1, 2, 3) for side in ("chosen", "rejected")
    }
    assert "chosen_tokens" not in batch.counts


def test_stepwise_batch_keeps_unjudged_steps_out(make_module: Make, tokenizer: Any) -> None:
    rows = [{"prompt": "why", "completions": ["one", "two", "three"], "labels": [True, None, False]}]
    (batch,) = make_module(rows, batch_type=StepwiseBatch, micro_batch_size=1, batch_size=1).train_dataloader()
    assert isinstance(batch, StepwiseBatch)
    assert batch.labels.tolist() == [1.0, 0.0]
    assert len(batch.tokens.targets) == 2
    assert batch.counts["tokens"] == 2


def test_prompt_batch(make_module: Make) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "1+1?"}], "target": 2},
        {"prompt": [{"role": "user", "content": "x"}]},
    ]
    data = make_module(rows, batch_type=PromptBatch, batch_size=2)
    (batch,) = data.train_dataloader()
    assert isinstance(batch, PromptBatch)
    place = batch.ids.index("data.jsonl:1")
    assert batch.prompts[place] == rows[0]["prompt"]
    assert batch.answers[place] == {"target": 2}
    assert batch.counts["records"] == 2


@pytest.mark.parametrize("batch_type", [PreferenceBatch, BinaryBatch, SFTBatch, PromptBatch])
def test_one_preference_file_serves_all_its_views(make_module: Make, batch_type: type[Batch]) -> None:
    data = make_module(batch_type=batch_type, validation_size=4)
    assert isinstance(next(iter(data.train_dataloader())), batch_type)
    assert isinstance(next(iter(data.val_dataloader())), batch_type)


ROWS_OF: dict[str, list[dict[str, Any]]] = {
    "preference": [{"prompt": "Q", "chosen": " a", "rejected": " b"}] * 2,
    "demonstration": [{"prompt": "Q", "completion": " a"}] * 2,
    "binary": [{"prompt": "Q", "completion": " a", "label": label} for label in (True, False)],
    "stepwise": [
        {"prompt": "Q", "completions": ["a", "b"], "labels": labels} for labels in ([1, 1], [1, 0], [1, None])
    ],
    "prompt": [{"prompt": "Q"}] * 2,
}
SERVED: dict[tuple[str, type[Batch]], int] = {
    ("preference", PreferenceBatch): 2,
    ("preference", SFTBatch): 2,
    ("preference", BinaryBatch): 4,
    ("preference", PromptBatch): 2,
    ("demonstration", SFTBatch): 2,
    ("demonstration", PromptBatch): 2,
    ("binary", BinaryBatch): 2,
    ("binary", SFTBatch): 1,  # the good one
    ("binary", PromptBatch): 2,
    ("stepwise", StepwiseBatch): 3,
    ("stepwise", BinaryBatch): 2,  # not the one with an unjudged step
    ("stepwise", SFTBatch): 1,  # the right one
    ("stepwise", PromptBatch): 3,
    ("prompt", PromptBatch): 2,
}


@pytest.mark.parametrize("kind", ROWS_OF)
@pytest.mark.parametrize("batch_type", [SFTBatch, PreferenceBatch, BinaryBatch, StepwiseBatch, PromptBatch])
def test_every_kind_of_data_with_every_kind_of_method(make_module: Make, kind: str, batch_type: type[Batch]) -> None:
    data = make_module(ROWS_OF[kind], batch_type=batch_type, micro_batch_size=4)
    if (kind, batch_type) not in SERVED:
        with pytest.raises(ConfigError, match=f"data: got '{kind} records', expected .*This data offers"):
            data.setup()
        return
    batches = list(data.train_dataloader())
    assert all(isinstance(batch, batch_type) for batch in batches)
    assert sum(batch.weights.sum() for batch in batches) == SERVED[kind, batch_type]


def test_impossible_view_is_refused(make_module: Make) -> None:
    with pytest.raises(ConfigError, match=r"data: got 'demonstration records', expected preferences"):
        make_module([{"prompt": "Q", "completion": "a"}]).setup()


# ---------------------------------------------------------------- ranks and accumulation (T8, T11)


def as_rank(data: DataModule, rank: int, world_size: int) -> DataModule:
    progress = SimpleNamespace(current=SimpleNamespace(ready=0, processed=0))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank,
        world_size=world_size,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )
    return data


@pytest.mark.parametrize(("world", "micro"), [(1, 8), (1, 1), (2, 4), (2, 3), (4, 1)])
def test_mean_over_a_step_is_the_same_for_every_cut(
    make_module: Make, preference_rows: Rows, world: int, micro: int
) -> None:
    """13 uneven records in steps of 8: the last step is short, and no rank gets more batches than another."""
    rows = preference_rows(13)

    def step_means(world: int, micro: int) -> torch.Tensor:
        made = [make_module(rows, batch_size=8, micro_batch_size=micro) for _ in range(world)]
        loaders = [list(as_rank(data, rank, world).train_dataloader()) for rank, data in enumerate(made)]
        every = made[0].accumulate(world)
        assert {len(batches) for batches in loaders} == {2 * every}
        means = torch.zeros(2, 2, dtype=torch.float64)
        for batches in loaders:
            for place, batch in enumerate(batches):
                weights = torch.cat([batch.weights, batch.weights])[batch.tokens.sequence_index].double()
                value = batch.tokens.targets.double()
                means[place // every, 0] += (value * weights).sum() / batch.counts["tokens"]
                means[place // every, 1] += batch.weights.sum().double() / batch.counts["records"]
        return means

    means = step_means(world, micro)
    torch.testing.assert_close(means, step_means(1, 8), atol=1e-9, rtol=0)
    torch.testing.assert_close(means[:, 1], torch.ones(2, dtype=torch.float64))


def test_validation_covers_every_record_once_over_ranks(make_module: Make, preference_rows: Rows) -> None:
    rows = preference_rows(20)
    batches = [
        batch for rank in range(2) for batch in as_rank(make_module(rows, validation_size=7), rank, 2).val_dataloader()
    ]
    real = [name for batch in batches for name, weight in zip(batch.ids, batch.weights, strict=True) if weight]
    assert len(real) == len(set(real)) == 7
    assert len(batches) == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_batches(make_module: Make, workers: int) -> None:
    data = make_module(num_workers=workers)
    for _ in range(2):
        for batch, expected in zip(data.train_dataloader(), make_module().train_dataloader(), strict=True):
            assert batch.ids == expected.ids
            assert torch.equal(batch.tokens.input_ids, expected.tokens.input_ids)
    data.teardown("fit")


# ---------------------------------------------------------------- splits


def test_split_is_by_prompt_and_complete(make_module: Make, preference_rows: Rows) -> None:
    rows = [row | {"chosen": f"{row['chosen']} {copy}"} for row in preference_rows(20) for copy in range(3)]
    data = make_module(rows, validation_size=10)
    prompts = {f"data.jsonl:{place}": row["prompt"] for place, row in enumerate(rows, start=1)}
    train = set(data.record_ids)
    held_out = set(prompts) - train
    assert (data.num_train_records, data.num_validation_records) == (48, 12)
    assert {prompts[name] for name in train}.isdisjoint({prompts[name] for name in held_out})
    names = [prompt.prompt for prompt in data.held_out_prompts(None)]
    assert sorted(names) == sorted({prompts[name] for name in held_out})


def test_split_does_not_depend_on_the_order_of_rows(make_module: Make, preference_rows: Rows) -> None:
    rows = preference_rows(20)
    forward, backward = make_module(rows, validation_size=5), make_module(rows[::-1], validation_size=0.25)
    backward_prompts = {prompt.prompt for prompt in backward.held_out_prompts(None)}
    assert make_module(rows, validation_size=5).num_validation_records == 5
    assert {prompt.prompt for prompt in forward.held_out_prompts(None)} == backward_prompts


def test_texts_without_prompts_are_split_too(make_module: Make, base_tokenizer: Any) -> None:
    rows = [{"text": f"story {number} of the cat"} for number in range(10)]
    data = make_module(rows, batch_type=SFTBatch, tokenizer=base_tokenizer, validation_size=2)
    assert (data.num_train_records, data.num_validation_records) == (8, 2)


@pytest.mark.parametrize("size", [100, 0.001])
def test_split_that_leaves_nothing(make_module: Make, size: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.validation_size"):
        make_module(validation_size=size).setup()


def test_validation_source_with_the_same_ids(
    make_module: Make, preference_rows: Rows, write_jsonl: Any, tmp_path: Path
) -> None:
    train = FileSource(path=str(write_jsonl(preference_rows(8))))
    (tmp_path / "held_out").mkdir()
    validation = FileSource(path=str(write_jsonl(preference_rows(3), name="held_out/data.jsonl")))
    data = make_module(train=train, validation=validation)
    ids = [name for batch in data.val_dataloader() for name in batch.ids]
    assert set(ids) == {f"validation/data.jsonl:{number}" for number in (1, 2, 3)}
    assert len(data.held_out_prompts(2)) == 2


def test_nothing_held_out(make_module: Make) -> None:
    data = make_module()
    assert data.val_dataloader() == []
    assert data.num_validation_records == 0
    with pytest.raises(ConfigError, match=r"data\.validation_size"):
        data.held_out_prompts(4)


def test_held_out_prompts(make_module: Make, preference_rows: Rows, tokenizer: Any) -> None:
    prompts = make_module(preference_rows(20), validation_size=5).held_out_prompts(3)
    assert len(prompts) == 3
    assert all(tuple(tokenizer(prompt.prompt)["input_ids"]) == prompt.prompt_ids for prompt in prompts)
    again = make_module(preference_rows(20), validation_size=5, batch_type=SFTBatch).held_out_prompts(3)
    assert prompts == again


def test_held_out_prompts_of_labelled_completions(make_module: Make) -> None:
    rows = [{"prompt": f"Q{number}", "completion": "a", "label": True} for number in range(6)]
    assert len(make_module(rows, batch_type=BinaryBatch, validation_size=2).held_out_prompts(None)) == 2


# ---------------------------------------------------------------- limits, statistics, drops


def test_limit(make_module: Make) -> None:
    data = make_module(limit=5)
    assert data.record_ids == tuple(f"data.jsonl:{number}" for number in range(1, 6))
    assert data.fingerprint != make_module(limit=6).fingerprint


@pytest.mark.parametrize("field", ["batch_size", "micro_batch_size", "limit"])
def test_numbers_must_be_positive(make_module: Make, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{field}: got 0"):
        make_module(**{field: 0})


def test_statistics_and_drops(
    make_module: Make, preference_rows: Rows, write_jsonl: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*preference_rows(4), {"prompt": "Q", "chosen": "a", "rejected": "a"}]
    rows += [{"prompt": "Q", "chosen": " the cat sat on a mat", "rejected": " the cat sat on the mat"}]
    train = FileSource(path=str(write_jsonl(rows)), on_bad_row="drop")
    with caplog.at_level(logging.WARNING):
        data = make_module(train=train, max_length=24, max_prompt_length=12)
        data.setup()
    statistics = data.statistics["train"]
    assert statistics["source"]["rows"] == 6
    assert statistics["source"]["dropped"] == {"chosen equals rejected": 1}
    assert statistics["records"] == 4 + (not statistics["dropped"])
    assert statistics["scored_tokens"] == sum(
        len(batch.tokens.targets)
        for batch in data.reference_batches()  # nothing is held out
    )
    assert statistics["chosen_tokens"]["max"] <= 24
    assert "1 x chosen equals rejected" in caplog.text
    assert f"{train.path}:5" in caplog.text


def test_drops_after_truncation_are_counted_and_said(make_module: Make, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        {"prompt": "Q", "chosen": "a cat", "rejected": "no"},
        {"prompt": "R", "chosen": "the cat sat on a mat", "rejected": "the cat sat on the mat"},
    ]
    with caplog.at_level(logging.WARNING):
        data = make_module(rows, max_length=4, max_prompt_length=2)
        data.setup()
    assert data.statistics["train"]["dropped"] == {"chosen equals rejected after truncation": 1}
    assert data.record_ids == ("data.jsonl:1",)
    assert "dropped 1 records: chosen equals rejected after truncation" in caplog.text


def test_all_dropped(make_module: Make) -> None:
    rows = [{"prompt": "R", "chosen": "the cat sat on a mat", "rejected": "the cat sat on the mat"}]
    with pytest.raises(DataError, match=r"no record is left.*after truncation"):
        make_module(rows, max_length=4, max_prompt_length=2).setup()


def test_ignored_tokens_are_said_once(
    make_module: Make, preference_rows: Rows, caplog: pytest.LogCaptureFixture, tokenizer: Any
) -> None:
    tokens = {"prompt_ids": [9], "chosen_ids": [10], "rejected_ids": [11], "tokenizer_hash": "another"}
    rows = [row | tokens for row in preference_rows(4)]
    with caplog.at_level(logging.WARNING):
        make_module(rows).setup()
    assert caplog.text.count("token ids of another tokenizer") == 1
    rows = [row | {"tokenizer_hash": tokenizer_hash(tokenizer)} for row in rows]
    batch = next(iter(make_module(rows).train_dataloader()))
    assert batch.tokens.input_ids.tolist() == [[9, 10]] * 2 + [[9, 11]] * 2


# ---------------------------------------------------------------- caches


def test_second_start_reads_no_file_and_tokenises_nothing(make_module: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_module(validation_size=4)
    first.setup()
    first_prompts = first.held_out_prompts(None)

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("done again")

    monkeypatch.setattr("alignment.data.sources.read_rows", fail)
    monkeypatch.setattr("alignment.data.tokenise.Tokeniser.__call__", fail)
    again = make_module(validation_size=4)
    again.setup()
    assert again.statistics == first.statistics
    assert again.record_ids == first.record_ids
    assert again.fingerprint == first.fingerprint
    assert again.held_out_prompts(None) == first_prompts


def test_fingerprint(make_module: Make, preference_rows: Rows, base_tokenizer: Any) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"rows": preference_rows(19)},
        {"max_length": 63},
        {"validation_size": 3},
        {"batch_type": BinaryBatch},
        {"tokenizer": base_tokenizer},
        {"truncate_prompt": "drop"},
    ]
    assert len({make_module(**change).fingerprint for change in changes}) == len(changes)
    same: list[dict[str, Any]] = [{}, {"batch_size": 8}, {"seed": 1}, {"shuffle": False}]
    assert len({make_module(**change).fingerprint for change in same}) == 1


# ---------------------------------------------------------------- cached references


def fill(data: DataModule, path: Path, *, leave_out: str = "") -> ReferenceCache:
    """A cache whose value for each token is the token itself."""
    records: dict[str, list[np.ndarray]] = {}
    for batch in data.reference_batches():
        tokens = batch.tokens
        by_sequence = [
            tokens.targets[tokens.sequence_index == number].float().numpy() for number in range(tokens.num_sequences)
        ]
        sides = tokens.num_sequences // len(batch.ids)
        for place, name in enumerate(batch.ids):
            assert name not in records
            records[name] = [by_sequence[place + side * len(batch.ids)] for side in range(sides)]
    records.pop(leave_out, None)
    return ReferenceCache.write(path, meta={}, records=records.items())


@pytest.mark.parametrize("batch_type", [PreferenceBatch, BinaryBatch])
@pytest.mark.parametrize("early", [True, False], ids=["loader first", "cache first"])
@pytest.mark.parametrize("score_prompt", [True, False])
def test_cached_references_stand_beside_their_tokens(
    make_module: Make, tmp_path: Path, batch_type: type[Batch], early: bool, score_prompt: bool
) -> None:
    score_prompt = score_prompt and batch_type is PreferenceBatch
    data = make_module(batch_type=batch_type, validation_size=4, score_prompt=score_prompt)
    loader = data.train_dataloader() if early else None
    data.attach_reference(fill(data, tmp_path / "reference"))
    for batch in [*(loader or data.train_dataloader()), *data.val_dataloader()]:
        assert torch.equal(batch.reference_token_logps, batch.tokens.targets.float())


def test_hole_in_the_cache_stops_before_training(make_module: Make, tmp_path: Path) -> None:
    data = make_module()
    with pytest.raises(DataError, match=r"no record 'data\.jsonl:3'"):
        data.attach_reference(fill(data, tmp_path / "reference", leave_out="data.jsonl:3"))


def test_cache_without_prompts_is_not_taken_for_one_with_them(make_module: Make, tmp_path: Path) -> None:
    completions, everything = make_module(), make_module(score_prompt=True)
    assert completions.fingerprint == everything.fingerprint
    assert completions.scored_fingerprint != everything.scored_fingerprint
    everything.attach_reference(fill(completions, tmp_path / "reference"))
    with pytest.raises(DataError, match="made from other data"):
        next(iter(everything.train_dataloader()))


def test_cache_of_other_lengths_is_refused(make_module: Make, tmp_path: Path) -> None:
    data = make_module()
    values = [np.zeros(1, np.float32)] * 2
    data.attach_reference(
        ReferenceCache.write(tmp_path / "reference", meta={}, records=[(name, values) for name in data.record_ids])
    )
    with pytest.raises(DataError, match="made from other data"):
        next(iter(data.train_dataloader()))


# ---------------------------------------------------------------- real data


@pytest.mark.parametrize(
    ("name", "batch_type"),
    [
        ("preference/hh_harmless.jsonl.gz", PreferenceBatch),
        ("preference/ultrafeedback_binarized_1k.jsonl.gz", PreferenceBatch),
        ("feedback/kto_en_demo.jsonl.gz", BinaryBatch),
        ("sft/alpaca_en_demo.jsonl.gz", SFTBatch),
        ("text/tinystories.jsonl.gz", SFTBatch),
        ("process/bbmistake_multistep_arithmetic.jsonl", StepwiseBatch),
        ("prompts/gsm8k_test.jsonl", PromptBatch),
    ],
)
def test_real_data(make_module: Make, shared_data: Path, name: str, batch_type: type[Batch]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "weights" / "stories260K")
    tokenizer.chat_template = TEMPLATES["human_assistant"]
    train = FileSource(path=str(shared_data / name), on_bad_row="drop")
    data = make_module(
        train=train,
        batch_type=batch_type,
        tokenizer=tokenizer,
        validation_size=0.1,
        max_length=512,
        max_prompt_length=256,
        limit=60,
    )
    for batch in data.train_dataloader():
        assert isinstance(batch, batch_type)
        if not isinstance(batch, PromptBatch):
            assert batch.tokens.input_ids.shape[1] <= 512
            assert (batch.tokens.input_ids == tokenizer.bos_token_id).sum() == batch.tokens.num_sequences
    assert data.held_out_prompts(3)
