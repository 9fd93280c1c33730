"""What several rewards read: a user's pattern, and the answer fields of a prompt's record."""

from __future__ import annotations

import re

from alignment.rewards.errors import BlamedError
from alignment.types import Rollout
from alignment.utils.errors import ConfigError


def compiled(pattern: str, *, key: str, group: str | None = None) -> re.Pattern[str]:
    """Compiles a user's pattern.

    Args:
        pattern: A regular expression.
        key: The configuration key that it came from.
        group: What its one group holds; with ``None`` it may have any number of groups.

    Raises:
        ConfigError: It is no regular expression, or does not have one group.

    >>> compiled("a(b", key="reward.pattern")
    Traceback (most recent call last):
    alignment.utils.errors.ConfigError: reward.pattern: got 'a(b', expected a regular expression. missing ), ...
    """
    try:
        found = re.compile(pattern)
    except re.error as error:
        raise ConfigError(key, got=pattern, expected="a regular expression", hint=str(error)) from error
    if group is not None and found.groups != 1:
        raise ConfigError(key, got=pattern, expected=f"one group, which holds {group}")
    return found


def answer_text(rollout: Rollout, field: str, *, reward: str) -> str:
    """Returns the answer that a prompt's record brings, as text.

    Args:
        rollout: A completion of the prompt.
        field: The field of the record's answer.
        reward: Names the reward in messages.

    Raises:
        BlamedError: The record has no such field, or null there.
    """
    value = rollout.answer.get(field)
    if value is None:
        raise no_answer(rollout, field, reward=reward, why=f"it has {field_names(rollout)}")
    return str(value)


def no_answer(rollout: Rollout, field: str, *, reward: str, why: str) -> BlamedError:
    """Returns the error of a record without an answer to compare with."""
    return record_error(
        rollout,
        reward=reward,
        message=f"its record has no answer under '{field}' ({why}). Use data whose prompts bring one, name its field "
        "in reward.field, or take another reward",
    )


def record_error(rollout: Rollout, *, reward: str, message: str, part: str = "") -> BlamedError:
    """Returns an error that blames a prompt's record, or a part of it, whatever the completion."""
    place = f"{rollout.prompt_id}, {part}" if part else rollout.prompt_id
    return BlamedError(f"reward={reward}, prompt {place}: {message}")


def field_names(rollout: Rollout) -> str:
    """Returns what a record's answer has, for messages.

    >>> field_names(Rollout("p", "How many?", (), (), "4", "stop", 0, {"answer": "4", "level": 1}))
    'answer, level'
    """
    return ", ".join(map(str, rollout.answer)) or "none"
