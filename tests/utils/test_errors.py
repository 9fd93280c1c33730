"""Errors for the person who typed the command."""

from __future__ import annotations

import pickle

import pytest

from alignment.rewards.sandbox.limits import SandboxError
from alignment.utils.errors import ConfigError, DataError, UserError


@pytest.mark.parametrize(
    "error",
    [
        UserError("no such run"),
        ConfigError("method.beta", got=-1, expected="more than 0"),
        ConfigError("method.beta", got=None, expected="a number", hint="set method.beta=0.1"),
        DataError("file.jsonl:17", "the prompt is empty"),
        SandboxError("no backend"),
    ],
)
def test_an_error_is_the_same_in_another_process(error: UserError) -> None:
    """One that cannot be unpickled leaves a pool of processes waiting for ever."""
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)
