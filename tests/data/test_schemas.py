"""Every recognised format, on rows as they are published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data.process_schemas import PROCESS_SCHEMAS
from alignment.data.records import RECORD_TYPES, RecordError, RecordKind, Stepwise, from_row
from alignment.data.schemas import SCHEMAS, parse_human_assistant, recognise
from alignment.data.sources import FileSource
from alignment.utils.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
OTHER = {"role": "assistant", "content": "Go away"}

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "HH-RLHF",
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
        {"prompt": [USER], "chosen": "Hello", "rejected": "Go away"},
    ),
    (
        "sharegpt pairs",
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "Go away"},
        },
        {"prompt": [USER], "chosen": "Hello", "rejected": "Go away"},
    ),
    (
        "chat pairs",
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]},
        {"prompt": [USER], "chosen": "Hello", "rejected": "Go away"},
    ),
    (  # UltraFeedback on the hub: the prompt's text, and whole conversations
        "chat pairs",
        {"prompt": "Hi", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER], "score_chosen": 9.0},
        {"prompt": [USER], "chosen": "Hello", "rejected": "Go away"},
    ),
    (
        "chat prompts with text pairs",
        {"prompt": [USER], "chosen": "Hello", "rejected": "Go away", "margin": 1.0},
        {"prompt": [USER], "chosen": "Hello", "rejected": "Go away", "margin": 1.0},
    ),
    (
        "text pairs",
        {"prompt": "Q: ", "chosen": "a", "rejected": "b", "margin": 2.5},
        {"prompt": "Q: ", "chosen": "a", "rejected": "b", "margin": 2.5},
    ),
    (
        "text pairs without a prompt",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    ),
    (
        "labelled completions",
        {"prompt": "Q", "completion": "a", "label": 1},
        {"prompt": "Q", "completion": "a", "label": True},
    ),
    (
        "labelled completions",
        {"prompt": [USER], "completion": [OTHER], "label": False},
        {"prompt": [USER], "completion": "Go away", "label": False},
    ),
    (
        "labelled chats",
        {"messages": [USER, OTHER], "label": False},
        {"prompt": [USER], "completion": "Go away", "label": False},
    ),
    ("prompt and completion", {"prompt": "Q", "completion": " a"}, {"prompt": "Q", "completion": " a"}),
    (
        "prompt and completion",
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": [USER], "completion": [ASSISTANT]},
    ),
    (
        "chats",
        {"messages": [USER, ASSISTANT, USER, OTHER]},
        {"prompt": [USER], "completion": [ASSISTANT, USER, OTHER]},
    ),
    (
        "sharegpt chats",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"prompt": [USER], "completion": [ASSISTANT]},
    ),
    (
        "Alpaca",
        {"instruction": "Add", "input": "1 2", "output": "3"},
        {"prompt": [{"role": "user", "content": "Add\n\n1 2"}], "completion": "3"},
    ),
    ("questions", {"question": "1+1?", "answer": "2"}, {"prompt": "1+1?", "answer": {"answer": "2"}}),
    ("prompts", {"prompt": "1+1?", "target": 2}, {"prompt": "1+1?", "answer": {"target": 2}}),
    ("prompts", {"prompt": "1+1?", "answer": {"target": 2}}, {"prompt": "1+1?", "answer": {"target": 2}}),
    ("text", {"text": "Once upon a time"}, {"prompt": "", "completion": "Once upon a time"}),
    (
        "stepwise",
        {"prompt": "Q", "completions": ["one", "two", "three"], "labels": [True, False, None]},
        {"prompt": "Q", "steps": ("one", "two", "three"), "labels": (1.0, 0.0, None)},
    ),
    (
        "BIG-Bench-Mistake",
        {"input": "Q", "steps": ["a", "b", "c"], "mistake_index": 1, "answer": "x", "target": "y"},
        {"prompt": "Q", "steps": ("a", "b", "c"), "labels": (1.0, 0.0, None)},
    ),
    (
        "BIG-Bench-Mistake",
        {"input": "Q", "steps": ["a", "b"], "mistake_index": None},
        {"prompt": "Q", "steps": ("a", "b"), "labels": (1.0, 1.0)},
    ),
    (
        "PRMBench",
        {"modified_question": "Q", "modified_process": ["a", "b"], "error_steps": [2]},
        {"prompt": "Q", "steps": ("a", "b"), "labels": (1.0, 0.0)},
    ),
    (
        "PRM800K",
        {
            "question": {"problem": "Q"},
            "label": {
                "steps": [
                    {"completions": [{"text": "x", "rating": -1}, {"text": "a", "rating": 0}], "chosen_completion": 1},
                    {"completions": None, "human_completion": {"text": "h"}, "chosen_completion": None},
                    {"completions": [{"text": "b", "rating": -1}], "human_completion": None, "chosen_completion": None},
                    {"completions": [{"text": "never", "rating": 1}], "chosen_completion": 0},
                ]
            },
        },
        {"prompt": "Q", "steps": ("a", "h", "b"), "labels": (1.0, 1.0, 0.0)},
    ),
    (
        "Math-Shepherd",
        {
            "input": "Janet has 3. Step 1: 1 + 1 = 2 ки\nStep 2: 2 + 2 = 5 ки",
            "label": "Janet has 3. Step 1: 1 + 1 = 2 +\nStep 2: 2 + 2 = 5 -",
            "task": "GSM8K",
        },
        {"prompt": "Janet has 3.", "steps": ("Step 1: 1 + 1 = 2", "Step 2: 2 + 2 = 5"), "labels": (1.0, 0.0)},
    ),
    (
        "MATH-APS",
        {"question": "Q", "reasoning_steps": [{"solution_prefix": "so", "mc_value": 0.25}]},
        {"prompt": "Q", "steps": ("so",), "labels": (0.25,)},
    ),
]


@pytest.mark.parametrize(("name", "row", "fields"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_format(name: str, row: dict[str, Any], fields: dict[str, Any]) -> None:
    schema = recognise(row)
    assert schema is not None
    assert schema.name == name
    (parsed,) = schema.parse(row)
    assert parsed == fields
    RECORD_TYPES[schema.kind](id="x", **parsed)


def test_every_format_has_a_case() -> None:
    assert {case[0] for case in CASES} == {schema.name for schema in SCHEMAS}
    assert set(PROCESS_SCHEMAS) < set(SCHEMAS)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"},
            "chosen and rejected differ before their last turn",
        ),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: a\n\nHuman: Bye", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
            "the conversation does not end with the assistant",
        ),
        ({"messages": [USER]}, "the conversation does not end with the assistant"),
        ({"messages": [{"role": "robot", "content": "x"}, ASSISTANT]}, "unknown role"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "unknown role"),
        ({"input": "Q", "steps": ["a"], "mistake_index": 1}, "mistake_index is outside the steps"),
        ({"input": "no mark", "label": "no mark", "task": "x"}, "step separator not found"),
        ({"input": "Q Step 1: a ки", "label": "Q Step 1: a ?", "task": "x"}, "label does not match the input's steps"),
        ({"input": "Q a ки", "label": "Q a +", "task": "x"}, "step separator not found"),
        ({"prompt": "Q", "completion": [USER, ASSISTANT], "label": True}, "completion holds several turns"),
        ({"prompt": "Q", "completion": "a", "prompt_ids": ["x"], "completion_ids": [1]}, "prompt_ids is not a list"),
    ],
)
def test_bad_row(row: dict[str, Any], reason: str) -> None:
    schema = recognise(row)
    assert schema is not None
    with pytest.raises(RecordError) as caught:
        [RECORD_TYPES[schema.kind](id="x", **fields) for fields in schema.parse(row)]
    assert caught.value.reason.startswith(reason)


def test_multi_turn_human_assistant() -> None:
    text = "\n\nHuman: One\n\nAssistant: Two\n\nwith a gap\n\nHuman: Three Assistant: no turn\n\nAssistant: Four"
    turns = parse_human_assistant(text)
    assert [turn["content"] for turn in turns] == ["One", "Two\n\nwith a gap", "Three Assistant: no turn", "Four"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    with pytest.raises(RecordError, match="not a Human/Assistant conversation"):
        parse_human_assistant("Once upon a time")


def test_half_a_pair_is_no_prompt() -> None:
    assert recognise({"prompt": "Q", "chosen": "a"}) is None


def test_unjudged_steps_survive_arrow(write_jsonl: Callable[..., Path]) -> None:
    row = {"input": "Q", "steps": ["a", "b", "c"], "mistake_index": 0}
    rows = FileSource(path=str(write_jsonl([row]))).load()
    record = from_row(RecordKind.STEPWISE, rows[0])
    assert isinstance(record, Stepwise)
    assert record.labels == (0.0, None, None)


REAL = {
    "preference/hh_harmless.jsonl.gz": (
        RecordKind.PREFERENCE,
        1864,
        {"chosen and rejected differ before their last turn": 4, "empty chosen": 2},
    ),
    "preference/hh_helpful.jsonl.gz": (
        RecordKind.PREFERENCE,
        1862,
        {"chosen and rejected differ before their last turn": 9, "empty rejected": 4},
    ),
    "preference/ultrafeedback_binarized_1k.jsonl.gz": (
        RecordKind.PREFERENCE,
        994,
        {"chosen equals rejected": 4, "empty chosen": 1, "empty rejected": 1},
    ),
    "preference/dpo_en_demo.jsonl.gz": (RecordKind.PREFERENCE, 300, {}),
    "feedback/kto_en_demo.jsonl.gz": (RecordKind.BINARY, 300, {}),
    "feedback/truthfulqa_truth.jsonl.gz": (RecordKind.DEMONSTRATION, 18012, {}),
    "feedback/xstest_completions_human.jsonl.gz": (RecordKind.DEMONSTRATION, 1625, {}),
    "sft/alpaca_en_demo.jsonl.gz": (RecordKind.DEMONSTRATION, 907, {}),
    "sft/gpteacher_roleplay.jsonl.gz": (RecordKind.DEMONSTRATION, 1718, {}),
    "text/tinystories.jsonl.gz": (RecordKind.DEMONSTRATION, 836, {}),
    "prompts/gsm8k_train.jsonl.gz": (RecordKind.PROMPT, 7473, {}),
    "prompts/gsm8k_test.jsonl": (RecordKind.PROMPT, 646, {}),
    "prompts/ifeval.jsonl": (RecordKind.PROMPT, 364, {}),
    "process/bbmistake_multistep_arithmetic.jsonl": (RecordKind.STEPWISE, 239, {}),
    "process/bbmistake_word_sorting.jsonl.gz": (RecordKind.STEPWISE, 240, {}),
    "process/bbmistake_logical_deduction.jsonl": (RecordKind.STEPWISE, 248, {}),
    "process/bbmistake_tracking_shuffled_objects.jsonl": (RecordKind.STEPWISE, 236, {}),
    "process/bbmistake_dyck_languages.jsonl.gz": (RecordKind.STEPWISE, 795, {"empty step": 1}),
    "process/prmbench_400.jsonl": (RecordKind.STEPWISE, 79, {"error_steps is outside the steps": 1}),
    "process/gsm8k_socratic_test.jsonl": (RecordKind.PROMPT, 646, {}),
    "process/format_sample_prm800k.jsonl": (RecordKind.STEPWISE, 6, {}),
    "process/format_sample_math-aps.jsonl": (RecordKind.STEPWISE, 145, {}),
    "process/format_sample_math-shepherd.jsonl": (RecordKind.STEPWISE, 7, {}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_file(shared_data: Path, name: str) -> None:
    kind, records, dropped = REAL[name]
    rows, report = FileSource(path=str(shared_data / name), on_bad_row="drop").read()
    assert (len(rows), report.records, dict(report.dropped)) == (records, records, dropped)
    source = FileSource(path=str(shared_data / name))
    assert source.kind is kind
    if dropped:
        with pytest.raises(DataError, match=rf"{name}:\d+: "):
            source.load()


@pytest.mark.parametrize(
    ("name", "columns", "records"),
    [
        ("prompts/math_train_answers.jsonl.gz", {"prompt": "problem"}, 7500),
        ("prompts/mbpp.jsonl", {"prompt": "text"}, 474),
        ("feedback/rt_polarity.jsonl.gz", {"prompt": "text"}, 8578),
        ("feedback/xstest_completions_human.jsonl.gz", {"prompt": "prompt", "completion": "completion"}, 1625),
    ],
)
def test_real_file_by_column_mapping(shared_data: Path, name: str, columns: dict[str, str], records: int) -> None:
    assert len(FileSource(path=str(shared_data / name), columns=columns).load()) == records
