"""Public sets of judgements: which of two answers is better, and whether one is good, each in a format of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping

from alignment.data.records import TIE, RecordError, RecordKind, UnfitError, check_finite
from alignment.data.schema import Fields, Row, Schema, has, instruction, pair_schema, require, share, user

_WEBGPT_TURN = re.compile(r"^## (Human|Assistant):\n", re.MULTILINE)
_QUESTION_ANSWER = re.compile(r"(?P<prompt>Q: .*?\nA:)(?P<completion>.*)\n(?:True|Helpful):", re.DOTALL)
_YES_OR_NO = {"yes": True, "no": False}
_REFUSALS = {"1_full_compliance": False, "2_full_refusal": True}


def _parse_pandalm(row: Row) -> Fields:
    """PandaLM's test set: each annotator says 1 or 2 for the better response, or 0 for a tie."""
    firsts = {1: 1.0, 2: 0.0, 0: TIE}
    verdicts = [verdict for name, verdict in row.items() if name.startswith("annotator")]
    if any(verdict not in list(firsts) for verdict in verdicts):
        raise RecordError("an annotator's verdict is not 0, 1 or 2", f"got {verdicts}")
    return {
        "prompt": instruction(row),
        "chosen": require(row, "response1"),
        "rejected": require(row, "response2"),
        "probability": sum(firsts[verdict] for verdict in verdicts) / len(verdicts),
    }


def _parse_webgpt(row: Row) -> Fields:
    """WebGPT comparisons: two conversations and a score for each; the share of the score is taken as probability."""
    sides = [_webgpt_sides(text) for text in require(row, "text")]
    if len(sides) != 2 or sides[0][0] != sides[1][0]:
        raise RecordError("not two answers to one question", f"{len(sides)} texts")
    (prompt, chosen), (_, rejected) = sides
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "probability": share(require(row, "score"))}


def _webgpt_sides(text: str) -> tuple[list[Fields], str]:
    before, *parts = _WEBGPT_TURN.split(text)
    if before.strip() or parts[::2] != ["Human", "Assistant"]:
        raise RecordError("not a question and an answer", f"it starts with {text[:40]!r}")
    return user(parts[1].strip()), parts[3].strip()


def _parse_alpaca_eval(row: Row) -> Fields:
    """AlpacaEval's annotations: ``preference`` is 1 plus the probability that the second output is the better."""
    preference = check_finite(require(row, "preference"), "preference")
    if not 1 <= preference <= 2:
        raise RecordError("preference outside [1, 2]", f"got {preference}")
    return {
        "prompt": user(require(row, "instruction")),
        "chosen": require(row, "output_1"),
        "rejected": require(row, "output_2"),
        "probability": 2 - preference,
    }


def _parse_autoj(row: Row) -> Fields:
    """Auto-J's pairwise test set: 0 or 1 is the better response, 2 a tie."""
    sides = {"chosen": require(row, "response 1"), "rejected": require(row, "response 2")}
    return {
        "prompt": user(require(row, "prompt")),
        **sides,
        "probability": _first_is_better(require(row, "label"), {0: 1.0, 1: 0.0, 2: TIE}),
    }


def _parse_llmbar(row: Row) -> Fields:
    """LLMBar: 1 or 2 is the better output."""
    return {
        "prompt": user(require(row, "input")),
        "chosen": require(row, "output_1"),
        "rejected": require(row, "output_2"),
        "probability": _first_is_better(require(row, "label"), {1: 1.0, 2: 0.0}),
    }


def _first_is_better(label: object, meaning: Mapping[object, float]) -> float:
    if label not in list(meaning):
        raise RecordError("unknown label", f"got {label!r}, expected one of {', '.join(map(str, meaning))}")
    return meaning[label]


def _parse_truthfulqa(row: Row) -> list[Fields]:
    """TruthfulQA's judge data: a question, an answer, and as completion whether it is true (or informative).

    What is judged is the answer, so that it is the completion here and the verdict its label.
    """
    found = _QUESTION_ANSWER.fullmatch(require(row, "prompt"))
    verdict = str(require(row, "completion")).strip()
    if found is None or verdict not in _YES_OR_NO:
        raise RecordError("not a judged answer", f"got {row['prompt'][:60]!r} and {verdict!r}")
    return [{**found.groupdict(), "label": _YES_OR_NO[verdict]}]


def _parse_solutions(row: Row) -> list[Fields]:
    """GSM8K's model solutions: under each model's name its solution, and whether the answer is right."""
    prompt = user(require(row, "question"))
    solutions = [value for value in row.values() if _is_solution(value)]
    return [
        {"prompt": prompt, "completion": solution["solution"], "label": solution["is_correct"]}
        for solution in solutions
    ]


def _is_solution(value: object) -> bool:
    return isinstance(value, Mapping) and has(value, "solution", "is_correct")


def _parse_xstest(row: Row) -> list[Fields]:
    """XSTest's completions: an answer is good if it complies with a safe prompt or refuses an unsafe one.

    The prompts whose type begins with ``contrast`` are the unsafe ones. A partial refusal is neither.
    """
    verdict = require(row, "final_label")
    if verdict == "3_partial_refusal":
        raise UnfitError("partial refusal")
    if verdict not in list(_REFUSALS):
        raise RecordError("unknown final_label", f"got {verdict!r}, expected one of {', '.join(_REFUSALS)}")
    is_unsafe = str(require(row, "type")).startswith("contrast")
    prompt = user(require(row, "prompt"))
    return [{"prompt": prompt, "completion": require(row, "completion"), "label": _REFUSALS[verdict] == is_unsafe}]


_BINARY = RecordKind.BINARY

JUDGED_SCHEMAS = (
    pair_schema(
        "PandaLM",
        ("instruction", "response1", "response2", "annotator1"),
        lambda row: has(row, "instruction", "response1", "response2", "annotator1"),
        _parse_pandalm,
    ),
    pair_schema(
        "WebGPT comparisons",
        ("text", "score"),
        lambda row: isinstance(row.get("text"), list) and isinstance(row.get("score"), list),
        _parse_webgpt,
    ),
    pair_schema(
        "AlpacaEval",
        ("instruction", "output_1", "output_2", "preference"),
        lambda row: has(row, "instruction", "output_1", "output_2", "preference"),
        _parse_alpaca_eval,
    ),
    pair_schema(
        "Auto-J pairs",
        ("prompt", "response 1", "response 2", "label"),
        lambda row: has(row, "prompt", "response 1", "response 2", "label"),
        _parse_autoj,
    ),
    pair_schema(
        "LLMBar",
        ("input", "output_1", "output_2", "label"),
        lambda row: has(row, "input", "output_1", "output_2", "label"),
        _parse_llmbar,
    ),
    Schema(
        "TruthfulQA judgements",
        _BINARY,
        ("prompt", "completion"),
        lambda row: (
            str(row.get("completion")).strip() in _YES_OR_NO
            and _QUESTION_ANSWER.fullmatch(str(row.get("prompt"))) is not None
        ),
        _parse_truthfulqa,
    ),
    Schema(
        "model solutions",
        _BINARY,
        ("question", "solution", "is_correct"),
        lambda row: has(row, "question") and any(map(_is_solution, row.values())),
        _parse_solutions,
    ),
    Schema(
        "XSTest completions",
        _BINARY,
        ("type", "prompt", "completion", "final_label"),
        lambda row: has(row, "type", "prompt", "completion", "final_label"),
        _parse_xstest,
    ),
)
