"""Every recognised format, on rows as they are published."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.data.judged_schemas import JUDGED_SCHEMAS
from alignment.data.process_schemas import PROCESS_SCHEMAS
from alignment.data.records import RECORD_TYPES, Preference, RecordError, RecordKind, Stepwise, from_row
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
        "text pairs",
        {"prompt": "Q: ", "chosen": "a", "rejected": "b", "probability": 0.5},
        {"prompt": "Q: ", "chosen": "a", "rejected": "b", "probability": 0.5},
    ),
    (
        "PandaLM",
        {
            "instruction": "Add",
            "input": "1 2",
            "response1": "4",
            "response2": "3",
            "annotator1": 2,
            "annotator2": 2,
            "annotator3": 0,
        },
        {"prompt": [{"role": "user", "content": "Add\n\n1 2"}], "chosen": "3", "rejected": "4", "probability": 5 / 6},
    ),
    (
        "WebGPT comparisons",
        {
            "text": ["## Human:\nHi\n\n\n\n## Assistant:\n Hello", "## Human:\nHi\n\n## Assistant:\nGo away"],
            "score": [1.5, 0.5],
        },
        {"prompt": [USER], "chosen": "Hello", "rejected": "Go away", "probability": 0.75},
    ),
    (
        "AlpacaEval",
        {"instruction": "Hi", "output_1": "Go away", "output_2": "Hello", "preference": 1.75},
        {"prompt": [USER], "chosen": "Hello", "rejected": "Go away", "probability": 0.75},
    ),
    (
        "Auto-J pairs",
        {"prompt": "Hi", "response 1": "Go away", "response 2": "Hello", "label": 1},
        {"prompt": [USER], "chosen": "Hello", "rejected": "Go away", "probability": 1.0},
    ),
    (
        "Auto-J pairs",
        {"prompt": "Hi", "response 1": "Go away", "response 2": "Hello", "label": 2},
        {"prompt": [USER], "chosen": "Go away", "rejected": "Hello", "probability": 0.5},
    ),
    (
        "LLMBar",
        {"input": "Hi", "output_1": "Hello", "output_2": "Go away", "label": 1},
        {"prompt": [USER], "chosen": "Hello", "rejected": "Go away", "probability": 1.0},
    ),
    (
        "TruthfulQA judgements",
        {"prompt": "Q: Do bats see?\nA: Yes.\nThey do.\nTrue:", "completion": " yes"},
        {"prompt": "Q: Do bats see?\nA:", "completion": " Yes.\nThey do.", "label": True},
    ),
    (
        "model solutions",
        {"question": "Hi", "ground_truth": "Hello", "small": {"is_correct": False, "solution": "Go away"}},
        {"prompt": [USER], "completion": "Go away", "label": False},
    ),
    *(
        (
            "XSTest completions",
            {"type": kind, "prompt": "Hi", "completion": "Hello", "final_label": verdict},
            {"prompt": [USER], "completion": "Hello", "label": label},
        )
        for kind, verdict, label in [
            ("homonyms", "1_full_compliance", True),
            ("homonyms", "2_full_refusal", False),
            ("contrast_homonyms", "1_full_compliance", False),
            ("contrast_homonyms", "2_full_refusal", True),
        ]
    ),
    ("labelled texts", {"text": "dull", "label": 0}, {"prompt": "", "completion": "dull", "label": False}),
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
        {"prompt": "Q", "steps": ("a", "b", "c"), "labels": (1.0, 0.0, None), "answer": {"answer": "y"}},
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
    assert {*PROCESS_SCHEMAS, *JUDGED_SCHEMAS} < set(SCHEMAS)


PAIRS = [
    {"prompt": "Q", "chosen": "a", "rejected": "b"},
    {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
    {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]},
    {"prompt": [USER], "chosen": "Hello", "rejected": "Go away"},
    {
        "conversations": [{"from": "human", "value": "Hi"}],
        "chosen": {"from": "gpt", "value": "Hello"},
        "rejected": {"from": "gpt", "value": "Go away"},
    },
]


@pytest.mark.parametrize("row", PAIRS, ids=range(len(PAIRS)))
@pytest.mark.parametrize(
    ("says", "probability", "swapped"),
    [
        ({"probability": 0.75}, 0.75, False),
        ({"probability": 0.25}, 0.75, True),
        ({"probability": 0}, 1.0, True),
        ({"probability": None}, None, False),
        ({"votes": [3, 1]}, 0.75, False),
        ({"votes": [1, 3]}, 0.75, True),
        ({"votes": [2, 2]}, 0.5, False),
    ],
)
def test_every_format_of_pairs_takes_soft_labels(
    row: dict[str, Any], says: dict[str, Any], probability: float | None, swapped: bool
) -> None:
    schema = recognise({**row, **says})
    assert schema is not None
    (plain,), (found,) = schema.parse(row), schema.parse({**row, **says})
    sides = (plain["rejected"], plain["chosen"]) if swapped else (plain["chosen"], plain["rejected"])
    assert (found["chosen"], found["rejected"], found.get("probability")) == (*sides, probability)
    assert Preference(id="x", **found).is_tie == (probability == 0.5)


def test_swapped_sides_take_their_tokens_and_margin_along() -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", "probability": 0.25, "margin": -2.0}
    ids = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "tokenizer_hash": "t"}
    schema = recognise(row)
    assert schema is not None
    (fields,) = schema.parse({**row, **ids})
    assert (fields["chosen_ids"], fields["rejected_ids"], fields["margin"]) == ((3,), (2,), 2.0)


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"probability": 1.5}, r"probability outside \[0, 1\]: got 1\.5"),
        ({"probability": -0.1}, r"probability outside \[0, 1\]: got -0\.1"),
        ({"probability": float("nan")}, "NaN or Inf: probability is nan"),
        ({"probability": "0.9"}, "probability is not a number: got '0.9'"),
        ({"probability": True}, "probability is not a number: got True"),
        ({"votes": [0, 0]}, r"votes are not two numbers: got \[0, 0\]"),
        ({"votes": [1]}, r"votes are not two numbers: got \[1\]"),
        ({"votes": [2, -1]}, r"votes are not two numbers: got \[2, -1\]"),
        ({"votes": "12"}, "votes are not two numbers: got '12'"),
        ({"votes": [1, 2], "probability": 0.5}, "both votes and a probability"),
    ],
)
def test_bad_soft_labels_are_named(says: dict[str, Any], message: str) -> None:
    row = {"prompt": "Q", "chosen": "a", "rejected": "b", **says}
    schema = recognise(row)
    assert schema is not None
    with pytest.raises(RecordError, match=message):
        schema.parse(row)


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
        ({"text": "so so", "label": 3}, "label is not a boolean"),
        (
            {"instruction": "Q", "response1": "a", "response2": "b", "annotator1": 3},
            "an annotator's verdict is not 0, 1 or 2",
        ),
        ({"instruction": "Q", "output_1": "a", "output_2": "b", "preference": 0}, "preference outside [1, 2]"),
        ({"prompt": "Q", "response 1": "a", "response 2": "b", "label": [1]}, "unknown label"),
        ({"text": ["## Human:\nQ", "## Human:\nQ"], "score": [1, 1]}, "not a question and an answer"),
        (
            {"text": ["## Human:\nQ\n\n## Assistant:\na", "## Human:\nR\n\n## Assistant:\nb"], "score": [1, 1]},
            "not two answers to one question",
        ),
        ({"type": "x", "prompt": "Q", "completion": "a", "final_label": "4"}, "unknown final_label"),
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
    "feedback/truthfulqa_truth.jsonl.gz": (RecordKind.BINARY, 17962, {"empty completion": 50}),
    "feedback/xstest_completions_human.jsonl.gz": (RecordKind.BINARY, 1507, {"partial refusal": 118}),
    "feedback/gsm8k_model_solutions.jsonl.gz": (RecordKind.BINARY, 2584, {}),
    "feedback/rt_polarity.jsonl.gz": (RecordKind.BINARY, 8578, {}),
    "preference/pandalm_human.jsonl": (
        RecordKind.PREFERENCE,
        732,
        {"empty rejected": 39, "chosen is not text": 6},
    ),
    "preference/webgpt_comparisons.jsonl.gz": (RecordKind.PREFERENCE, 718, {}),
    "preference/alpaca_eval_gpt4.jsonl.gz": (
        RecordKind.PREFERENCE,
        1270,
        {"empty rejected": 17, "empty chosen": 1, "chosen equals rejected": 2},
    ),
    "preference/autoj_pairwise_human.jsonl.gz": (
        RecordKind.PREFERENCE,
        1094,
        {"chosen equals rejected": 7, "empty rejected": 1},
    ),
    "preference/llmbar.jsonl": (RecordKind.PREFERENCE, 263, {}),
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
    if set(dropped) - {"partial refusal"}:
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


@pytest.mark.parametrize(
    ("name", "ties", "divided"),
    [
        ("pandalm_human.jsonl", 43, 86),
        ("webgpt_comparisons.jsonl.gz", 192, 387),
        ("autoj_pairwise_human.jsonl.gz", 294, 0),
        ("llmbar.jsonl", 0, 0),
    ],
)
def test_ties_and_divided_votes_of_real_files(shared_data: Path, name: str, ties: int, divided: int) -> None:
    """Counts that a few lines of jq give too."""
    rows = FileSource(path=str(shared_data / "preference" / name), on_bad_row="drop").load()
    probabilities = np.array(rows["probability"])
    assert (int((probabilities == 0.5).sum()), int(((probabilities > 0.5) & (probabilities < 1)).sum())) == (
        ties,
        divided,
    )


def test_the_likelier_output_of_alpaca_eval_is_chosen(shared_data: Path) -> None:
    path = shared_data / "preference/alpaca_eval_gpt4.jsonl.gz"
    rows = {row["id"]: row for row in FileSource(path=str(path), on_bad_row="drop").load()}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        given = {f"{path.name}:{number}": json.loads(line) for number, line in enumerate(lines, start=1)}
    assert len(rows) == 1270
    seconds = 0
    for name, row in rows.items():
        second_is_better = given[name]["preference"] > 1.5
        seconds += second_is_better
        assert row["chosen"] == given[name]["output_2" if second_is_better else "output_1"]
        assert row["probability"] == pytest.approx(abs(given[name]["preference"] - 1.5) + 0.5)
    assert seconds == 42
