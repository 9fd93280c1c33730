"""Arrow columns of each kind of record, and of tokenised records."""

from __future__ import annotations

from datasets import Features, List, Value

from alignment.data.records import RecordKind

RECORDS_VERSION = 3
"""Part of the name under which parsed records are kept: raise it when their columns change."""

_MESSAGES = List({"role": Value("string"), "content": Value("string")})
_IDS = List(Value("int32"))
_COMMON = {
    "id": Value("string"),
    "prompt": Value("string"),
    "messages": _MESSAGES,
    "tokenizer_hash": Value("string"),
    "prompt_ids": _IDS,
    "answer": Value("string"),
}

RECORD_FEATURES: dict[RecordKind, Features] = {
    RecordKind.DEMONSTRATION: Features(
        {**_COMMON, "completion": Value("string"), "turns": _MESSAGES, "completion_ids": _IDS}
    ),
    RecordKind.PREFERENCE: Features(
        {
            **_COMMON,
            "chosen": Value("string"),
            "rejected": Value("string"),
            "margin": Value("float64"),
            "probability": Value("float64"),
            "chosen_ids": _IDS,
            "rejected_ids": _IDS,
        }
    ),
    RecordKind.BINARY: Features(
        {**_COMMON, "completion": Value("string"), "label": Value("bool"), "completion_ids": _IDS}
    ),
    # labels stay nullable: null is a step that nobody judged, and must survive every cast
    RecordKind.STEPWISE: Features({**_COMMON, "steps": List(Value("string")), "labels": List(Value("float64"))}),
    RecordKind.PROMPT: Features(_COMMON),
}
"""Columns of a record of each kind: a prompt is either ``prompt`` (text) or ``messages`` (chat); ``answer`` is JSON."""

TOKEN_FEATURES = Features(
    {
        "id": Value("string"),
        "dropped": Value("string"),
        "truncated_prompt": Value("bool"),
        "truncated_completion": Value("bool"),
        "repaired_boundary": Value("bool"),
        "given_tokens": Value("string"),
        "prompt_ids": _IDS,
        "completion_ids": _IDS,
        "rejected_ids": _IDS,
        "scored": List(Value("bool")),
        "step_labels": List(Value("float32")),
        "margin": Value("float32"),
        "probability": Value("float32"),
        "label": Value("bool"),
        "prompt": Value("string"),
        "answer": Value("string"),
    }
)
"""Columns of a tokenised record, whatever its kind. ``dropped`` says why it cannot be used, or is
empty; ``given_tokens`` is ``used`` or ``ignored`` where the record brought token ids; ``completion_ids`` is
the chosen side of a pair; ``scored`` is empty where every token of the completion counts;
``probability`` is there only where soft labels are wanted, and then for every pair."""
