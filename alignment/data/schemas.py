"""Public formats that are recognised by themselves: from a raw row to the fields of records.

A schema says which rows it claims and how a row becomes records (mostly one). Recognition looks at
the first rows; after that every row of the source is read with the same schema, so that a row that
lacks a field is an error and not another format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignment.data.judged_schemas import JUDGED_SCHEMAS
from alignment.data.process_schemas import PROCESS_SCHEMAS
from alignment.data.records import Message, Messages, RecordError, RecordKind, check_messages, check_text
from alignment.data.schema import (
    Fields,
    Row,
    Schema,
    answer_fields,
    boolean,
    has,
    has_any,
    instruction,
    is_messages,
    pair_schema,
    require,
    token_fields,
)

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_DIFFERENT = "chosen and rejected differ before their last turn"


def parse_human_assistant(text: str) -> list[Message]:
    r"""Splits HH-RLHF's ``"\n\nHuman: ...\n\nAssistant: ..."`` text into chat messages.

    >>> parse_human_assistant("\n\nHuman: Hi\n\nAssistant: Hello")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    before, *parts = _HH_TURN.split(text)
    if before.strip() or not parts:
        raise RecordError("not a Human/Assistant conversation", f"it starts with {text[:40]!r}")
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": _HH_ROLES[speaker], "content": content.strip()} for speaker, content in turns]


def _split_last(messages: Messages) -> tuple[list[Message], str]:
    """The messages before the last, and the last one's text, which must be the assistant's."""
    if messages[-1]["role"] != "assistant":
        raise RecordError("the conversation does not end with the assistant", f"last role: {messages[-1]['role']}")
    return list(messages[:-1]), messages[-1]["content"]


def _pair(chosen: Messages, rejected: Messages) -> Fields:
    prompt, chosen_text = _split_last(chosen)
    other_prompt, rejected_text = _split_last(rejected)
    if prompt != other_prompt:
        raise RecordError(_DIFFERENT, f"{len(chosen)} and {len(rejected)} turns")
    return {"prompt": prompt, "chosen": chosen_text, "rejected": rejected_text}


def _messages(row: Row, name: str) -> list[Message]:
    """A field of chat messages, cut down to role and content."""
    messages = check_messages(require(row, name), name)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _sharegpt(value: Any) -> list[Message]:
    """Turns of ``{"from", "value"}`` as chat messages."""
    if not isinstance(value, Sequence) or not all(isinstance(turn, Mapping) for turn in value):
        raise RecordError("conversations is not a list of turns")
    for turn in value:
        if require(turn, "from") not in _SHAREGPT_ROLES:
            raise RecordError("unknown role", f"got {turn['from']!r}, expected one of {', '.join(_SHAREGPT_ROLES)}")
    return [{"role": _SHAREGPT_ROLES[turn["from"]], "content": require(turn, "value")} for turn in value]


def _from_first_answer(messages: list[Message]) -> Fields:
    """A demonstration: all turns from the assistant's first on are the completion."""
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise RecordError("the conversation does not end with the assistant", f"roles are {', '.join(roles)}")
    first = roles.index("assistant")
    return {"prompt": messages[:first], "completion": messages[first:]}


def _parse_hh(row: Row) -> Fields:
    chosen = parse_human_assistant(check_text(require(row, "chosen"), "chosen"))
    return _pair(chosen, parse_human_assistant(check_text(require(row, "rejected"), "rejected")))


def _parse_sharegpt_pair(row: Row) -> Fields:
    prompt = _sharegpt(require(row, "conversations"))
    sides = [_sharegpt([require(row, side)]) for side in ("chosen", "rejected")]
    return _pair([*prompt, *sides[0]], [*prompt, *sides[1]])


def _parse_chat_pair(row: Row) -> Fields:
    """Chat pairs; where ``prompt`` is no list of messages, both sides hold the whole conversation."""
    prompt = _messages(row, "prompt") if is_messages(row.get("prompt")) else []
    chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
    tokens = token_fields(row, "prompt_ids", "chosen_ids", "rejected_ids")
    return {**_pair([*prompt, *chosen], [*prompt, *rejected]), **tokens}


def _parse_answers_to_chat(row: Row) -> Fields:
    """A conversation, and two texts that could be its next turn."""
    answers = {side: [{"role": "assistant", "content": require(row, side)}] for side in ("chosen", "rejected")}
    return _parse_chat_pair({**row, **answers})


def _parse_text_pair(row: Row) -> Fields:
    texts = {name: require(row, name) for name in ("prompt", "chosen", "rejected")}
    tokens = token_fields(row, "prompt_ids", "chosen_ids", "rejected_ids")
    return {**texts, **tokens}


def _parse_implicit_pair(row: Row) -> Fields:
    """Two whole texts: their common beginning is the prompt, a space before the fork is not."""
    chosen = check_text(require(row, "chosen"), "chosen")
    rejected = check_text(require(row, "rejected"), "rejected")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    length = next((place for place, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    if 0 < length < max(len(chosen), len(rejected)) and chosen[length - 1] == " ":
        length -= 1
    if chosen == rejected:
        raise RecordError("chosen equals rejected", "the texts are the same from end to end")
    return {"prompt": chosen[:length], "chosen": chosen[length:], "rejected": rejected[length:]}


def _answer(row: Row) -> str:
    """A completion given as text or as the assistant's one message."""
    completion = require(row, "completion")
    if isinstance(completion, str):
        return completion
    prompt, text = _split_last(_messages(row, "completion"))
    if prompt:
        raise RecordError("completion holds several turns", "give one assistant message, or the whole as messages")
    return text


def _given_prompt(row: Row) -> str | list[Message]:
    return _messages(row, "prompt") if is_messages(row.get("prompt")) else require(row, "prompt")


def _parse_labelled(row: Row) -> list[Fields]:
    fields = {
        "prompt": _given_prompt(row),
        "completion": _answer(row),
        "label": boolean(require(row, "label")),
    }
    return [{**fields, **token_fields(row, "prompt_ids", "completion_ids")}]


def _parse_labelled_chat(row: Row) -> list[Fields]:
    prompt, completion = _split_last(_messages(row, "messages"))
    return [{"prompt": prompt, "completion": completion, "label": boolean(require(row, "label"))}]


def _parse_labelled_text(row: Row) -> list[Fields]:
    return [{"prompt": "", "completion": require(row, "text"), "label": boolean(require(row, "label"))}]


def _parse_completion(row: Row) -> list[Fields]:
    tokens = token_fields(row, "prompt_ids", "completion_ids")
    fields = {"prompt": _given_prompt(row), **answer_fields(row), **tokens}
    if is_messages(row.get("completion")):
        return [{**fields, "completion": _messages(row, "completion")}]
    return [{**fields, "completion": _answer(row)}]


def _parse_alpaca(row: Row) -> list[Fields]:
    output = "output" if "output" in row or "response" not in row else "response"
    return [{"prompt": instruction(row), "completion": require(row, output)}]


def _parse_question(row: Row) -> list[Fields]:
    rest = {name: value for name, value in row.items() if name != "question"}
    return [{"prompt": require(row, "question"), "answer": rest}]


def _parse_prompt(row: Row) -> list[Fields]:
    """A prompt; the answer fields are a mapping under ``answer``, else the rest of the row."""
    known = ("prompt", "prompt_ids", "tokenizer_hash", "id")
    rest = {name: value for name, value in row.items() if name not in known}
    answer = rest["answer"] if isinstance(rest.get("answer"), Mapping) else rest
    return [{"prompt": _given_prompt(row), "answer": dict(answer), **token_fields(row, "prompt_ids")}]


def _is_text(row: Row, *names: str) -> bool:
    return all(isinstance(row.get(name), str) for name in names)


def _is_hh(row: Row) -> bool:
    return _is_text(row, "chosen", "rejected") and all(_HH_TURN.match(row[side]) for side in ("chosen", "rejected"))


def _is_prompt(row: Row) -> bool:
    """A prompt and nothing that could be the answer to it: half a pair is a mistake, not a prompt."""
    fits = _is_text(row, "prompt") or is_messages(row.get("prompt"))
    return fits and not has_any(row, "chosen", "rejected", "completion", "completions")


_DEMO, _BINARY = RecordKind.DEMONSTRATION, RecordKind.BINARY

SCHEMAS: tuple[Schema, ...] = (
    *JUDGED_SCHEMAS,
    pair_schema("HH-RLHF", ("chosen", "rejected"), lambda row: "prompt" not in row and _is_hh(row), _parse_hh),
    pair_schema(
        "sharegpt pairs",
        ("conversations", "chosen", "rejected"),
        lambda row: has(row, "conversations", "chosen", "rejected"),
        _parse_sharegpt_pair,
    ),
    pair_schema(
        "chat pairs",
        ("chosen", "rejected"),
        lambda row: is_messages(row.get("chosen")) and is_messages(row.get("rejected")),
        _parse_chat_pair,
    ),
    pair_schema(
        "chat prompts with text pairs",
        ("prompt", "chosen", "rejected"),
        lambda row: is_messages(row.get("prompt")) and _is_text(row, "chosen", "rejected"),
        _parse_answers_to_chat,
    ),
    pair_schema(
        "text pairs",
        ("prompt", "chosen", "rejected"),
        lambda row: _is_text(row, "prompt", "chosen", "rejected"),
        _parse_text_pair,
    ),
    pair_schema(
        "text pairs without a prompt",
        ("chosen", "rejected"),
        lambda row: "prompt" not in row and _is_text(row, "chosen", "rejected"),
        _parse_implicit_pair,
    ),
    Schema(
        "labelled completions",
        _BINARY,
        ("prompt", "completion", "label"),
        lambda row: has(row, "prompt", "completion", "label"),
        _parse_labelled,
    ),
    Schema(
        "labelled chats",
        _BINARY,
        ("messages", "label"),
        lambda row: has(row, "messages", "label"),
        _parse_labelled_chat,
    ),
    Schema(
        "labelled texts",
        _BINARY,
        ("text", "label"),
        lambda row: _is_text(row, "text") and has(row, "label"),
        _parse_labelled_text,
    ),
    *PROCESS_SCHEMAS,
    Schema(
        "prompt and completion",
        _DEMO,
        ("prompt", "completion"),
        lambda row: has(row, "prompt", "completion"),
        _parse_completion,
    ),
    Schema(
        "chats",
        _DEMO,
        ("messages",),
        lambda row: is_messages(row.get("messages")),
        lambda row: [_from_first_answer(_messages(row, "messages"))],
    ),
    Schema(
        "sharegpt chats",
        _DEMO,
        ("conversations",),
        lambda row: is_messages(row.get("conversations")),
        lambda row: [_from_first_answer(_sharegpt(row["conversations"]))],
    ),
    Schema(
        "Alpaca",
        _DEMO,
        ("instruction", "input", "output"),
        lambda row: _is_text(row, "instruction") and (_is_text(row, "output") or _is_text(row, "response")),
        _parse_alpaca,
    ),
    Schema(
        "questions",
        RecordKind.PROMPT,
        ("question", "answer"),
        lambda row: _is_text(row, "question", "answer") and set(row) <= {"question", "answer", "id", "idx"},
        _parse_question,
    ),
    Schema("prompts", RecordKind.PROMPT, ("prompt",), _is_prompt, _parse_prompt),
    Schema(
        "text",
        _DEMO,
        ("text",),
        lambda row: set(row) <= {"text", "id"} and _is_text(row, "text"),
        lambda row: [{"prompt": "", "completion": require(row, "text")}],
    ),
)
"""In the order in which they are tried: the more specific before the more general."""


def recognise(row: Row) -> Schema | None:
    """The first schema that claims a row, or ``None``."""
    return next((schema for schema in SCHEMAS if schema.claims(row)), None)


def describe_schemas() -> str:
    """The known formats and their fields, for a message."""
    return "; ".join(f"{schema.name} ({', '.join(schema.fields)})" for schema in SCHEMAS)
