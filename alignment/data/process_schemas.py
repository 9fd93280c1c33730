"""Formats of step-by-step solutions whose steps are judged one by one."""

from __future__ import annotations

from itertools import pairwise

from alignment.data.records import RecordError, RecordKind
from alignment.data.schema import Fields, Row, Schema, answer_fields, has, is_messages, require

STEP_SEPARATOR = " ки"
"""Math-Shepherd's mark at the end of a step (the Cyrillic word, after a space)."""


def _parse_steps(row: Row) -> list[Fields]:
    """TRL's stepwise format: prompt, completions, labels (true, false, a number, or null)."""
    labels = [float(label) if isinstance(label, bool) else label for label in require(row, "labels")]
    return [
        {
            "prompt": require(row, "prompt"),
            "steps": tuple(require(row, "completions")),
            "labels": tuple(labels),
            **answer_fields(row),
        }
    ]


def _parse_mistake(row: Row) -> list[Fields]:
    """BIG-Bench-Mistake: steps are right up to ``mistake_index``; what follows it nobody judged."""
    steps = tuple(require(row, "steps"))
    if "mistake_index" not in row:
        require(row, "mistake_index")
    mistake = row["mistake_index"]
    if mistake is None:
        labels: tuple[float | None, ...] = (1.0,) * len(steps)
    elif isinstance(mistake, int) and 0 <= mistake < len(steps):
        labels = (1.0,) * mistake + (0.0,) + (None,) * (len(steps) - mistake - 1)
    else:
        raise RecordError("mistake_index is outside the steps", f"got {mistake!r} with {len(steps)} steps")
    # The right answer; what the row calls its answer is the model's own.
    answer = answer_fields(row, "target")
    return [{"prompt": require(row, "input"), "steps": steps, "labels": labels, **answer}]


def _parse_prmbench(row: Row) -> list[Fields]:
    """PRMBench: ``error_steps`` counts from 1 into ``modified_process``."""
    steps = tuple(require(row, "modified_process"))
    errors = set(require(row, "error_steps"))
    if not errors <= set(range(1, len(steps) + 1)):
        raise RecordError("error_steps is outside the steps", f"got {sorted(errors)} with {len(steps)} steps")
    labels = tuple(0.0 if number in errors else 1.0 for number in range(1, len(steps) + 1))
    return [{"prompt": require(row, "modified_question"), "steps": steps, "labels": labels}]


def _parse_prm800k(row: Row) -> list[Fields]:
    """PRM800K: the labelled path through the alternatives of each step.

    Ratings are -1, 0 and 1; a neutral step counts as right (Lightman et al., arXiv 2305.20050,
    leave that choice open). A step without a rating was not judged.
    """
    steps: list[str] = []
    labels: list[float | None] = []
    for step in require(require(row, "label"), "steps"):
        chosen = step.get("chosen_completion")
        if chosen is None and step.get("human_completion") is not None:
            steps.append(require(step["human_completion"], "text"))
            labels.append(1.0)
            continue
        alternatives = step.get("completions")
        if not alternatives:  # the labeller gave up here
            break
        completion = alternatives[chosen if chosen is not None else 0]
        rating = completion.get("rating")
        steps.append(require(completion, "text"))
        labels.append(None if rating is None else float(rating >= 0))
        if chosen is None:
            break
    return [
        {
            "prompt": require(require(row, "question"), "problem"),
            "steps": tuple(steps),
            "labels": tuple(labels),
            **answer_fields(row["question"], "ground_truth_answer"),
        }
    ]


def _parse_shepherd(row: Row) -> list[Fields]:
    """Math-Shepherd: ``label`` is ``input`` with each separator replaced by ``+`` or ``-``."""
    text, labelled = require(row, "input"), require(row, "label")
    ends = [index for index in range(len(text)) if text.startswith(STEP_SEPARATOR, index)]
    if not ends:
        raise RecordError("step separator not found", f"no {STEP_SEPARATOR!r} in input")
    shrink = len(STEP_SEPARATOR) - len(" +")
    marks = [labelled[end - shrink * number : end - shrink * number + 2] for number, end in enumerate(ends)]
    if not set(marks) <= {" +", " -"}:
        raise RecordError("label does not match the input's steps", f"found {marks} at the separators")
    question, _, first = text[: ends[0]].rpartition("Step 1:")
    if not question:
        raise RecordError("step separator not found", "no 'Step 1:' after the question")
    rest = [text[start + len(STEP_SEPARATOR) : end].strip() for start, end in pairwise(ends)]
    labels = tuple(float(mark == " +") for mark in marks)
    return [{"prompt": question.strip(), "steps": (f"Step 1:{first}".strip(), *rest), "labels": labels}]


def _parse_roll_outs(row: Row) -> list[Fields]:
    """MATH-APS: prefixes of solutions with the share of roll-outs from them that were right."""
    question = require(row, "question")
    return [
        {
            "prompt": question,
            "steps": (require(step, "solution_prefix"),),
            "labels": (require(step, "mc_value"),),
            **answer_fields(row, "final_answer"),
        }
        for step in require(row, "reasoning_steps")
    ]


_KIND = RecordKind.STEPWISE

PROCESS_SCHEMAS = (
    Schema(
        "stepwise",
        _KIND,
        ("prompt", "completions", "labels"),
        lambda row: has(row, "prompt", "completions", "labels"),
        _parse_steps,
    ),
    Schema(
        "BIG-Bench-Mistake",
        _KIND,
        ("input", "steps", "mistake_index"),
        lambda row: has(row, "input", "steps") and "mistake_index" in row,
        _parse_mistake,
    ),
    Schema(
        "PRMBench",
        _KIND,
        ("modified_question", "modified_process", "error_steps"),
        lambda row: has(row, "modified_question", "modified_process", "error_steps"),
        _parse_prmbench,
    ),
    Schema(
        "PRM800K",
        _KIND,
        ("question", "label"),
        lambda row: isinstance(row.get("label"), dict) and has(row["label"], "steps") and has(row, "question"),
        _parse_prm800k,
    ),
    Schema(
        "Math-Shepherd",
        _KIND,
        ("input", "label"),
        lambda row: isinstance(row.get("input"), str) and isinstance(row.get("label"), str) and "task" in row,
        _parse_shepherd,
    ),
    Schema(
        "MATH-APS",
        _KIND,
        ("question", "reasoning_steps"),
        lambda row: has(row, "question") and is_messages(row.get("reasoning_steps")),
        _parse_roll_outs,
    ),
)
