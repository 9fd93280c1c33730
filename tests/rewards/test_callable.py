"""A reward that is a function of the user's own."""

from __future__ import annotations

import math

import pytest

from alignment.cli.app import check, parse
from alignment.rewards.callable import CallableReward
from alignment.rewards.errors import checked_scores
from alignment.types import Rollout
from alignment.utils.errors import ConfigError, UserError

MODULE = """
import os
import torch
import functools

def brevity(completions, **kwargs):
    return [-float(len(completion)) for completion in completions]

def right(prompts, completions, solution, level=None, **kwargs):
    assert level == [1, None]
    return [None if known is None else known in text for known, text in zip(solution, completions)]

def exact(completions, completion_ids):
    return torch.tensor([float(len(ids)) for ids in completion_ids])

def chat(prompts, completions, **kwargs):
    assert prompts[0][-1]["role"] == "user"
    return [float(completion[0]["content"] == "yes" and len(completion) == 1) for completion in completions]

def state(completions, trainer_state):
    return [0.0 for _ in completions]

def broken(completions, **kwargs):
    return [math for _ in completions] if False else [float("nan") for _ in completions]

def nothing(completions, **kwargs):
    pass

async def later(completions, **kwargs):
    return [0.0 for _ in completions]

def placed(completions, /):
    return [0.0 for _ in completions]

@functools.wraps(os.system)
def disguised(*args, **kwargs):
    return [0.0]

class Judge:
    pass
"""


def rollout(completion: str, prompt: object = "Say it.", **answer: object) -> Rollout:
    return Rollout("p7", prompt, (1,), (5, 6, 2), completion, "stop", 0, answer)


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "users_rewards.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ALIGNMENT_ALLOW_TARGETS", "users_rewards,users_missing")


def made(name: str) -> CallableReward:
    return CallableReward(function=f"users_rewards.{name}")


def test_a_function_gets_prompts_completions_and_the_records_fields():
    assert made("brevity").score([rollout("abc"), rollout("")]).total == (-3.0, -0.0)
    scored = made("right").score([rollout("it is 4", solution="4", level=1), rollout("it is 4", solution="5")])
    assert scored.total == (True, False)
    assert made("exact").score([rollout("a", other=1)]).total == (3.0,)
    assert made("brevity").score([]).total == ()


def test_none_means_not_applicable_and_counts_nothing():
    scored = checked_scores(made("right"), [rollout("4", solution="4", level=1), rollout("4")])
    assert scored.total == (1.0, 0.0)
    assert scored.components == {"applicable": (1.0, 0.0)}


def test_after_a_chat_a_completion_is_a_message():
    prompt = [{"role": "user", "content": "Well?"}]
    assert made("chat").score([rollout("yes", prompt), rollout("no", prompt)]).total == (1.0, 0.0)


def test_functions_of_trl_run_as_they_are(monkeypatch):
    pytest.importorskip("trl")
    monkeypatch.setenv("ALIGNMENT_ALLOW_TARGETS", "trl")
    prompt = [{"role": "user", "content": "Well?"}]
    texts = ("<think>\nhm\n</think>\n4", "4")
    reward = CallableReward(function="trl.rewards.think_format_reward")
    assert reward.score([rollout(text, prompt) for text in texts]).total == (1.0, 0.0)


def test_a_function_that_wants_more_than_there_is_names_it():
    with pytest.raises(
        UserError, match=r"users_rewards\.state wants the argument 'trainer_state', .*p7 .*has solution"
    ):
        made("state").score([rollout("a", solution="4")])


def test_what_it_returns_is_checked():
    with pytest.raises(UserError, match=r"completion 'a': its total is nan"):
        checked_scores(made("broken"), [rollout("a")])
    with pytest.raises(UserError, match="returned a NoneType, not a list of numbers"):
        made("nothing").score([rollout("a")])
    assert math.isfinite(checked_scores(made("broken"), [rollout("a")], error_score=0.5).total[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os.system", r"reward\.function: got 'os.system', expected a class or function defined below .*ALLOW_TARGETS"),
        ("users_rewards.os.system", "it is the module|'users_rewards.os' is the module os"),
        ("users_rewards.disguised", "expected a class or function defined below"),
        ("users_rewards.brevit", "did you mean 'brevity'"),
        ("users_missing.f", r"No module named 'users_missing'. For a module of your own set PYTHONPATH"),
        ("users_rewards.later", "expected a plain function. it is a coroutine"),
        ("users_rewards.Judge", "expected a plain function. it is a type"),
        ("users_rewards.placed", "whose arguments can be given by name"),
        ("users_rewards:brevity", "expected a class or function"),
    ],
)
def test_what_cannot_be_called_is_refused(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        CallableReward(function=name)
    assert caught.value.key == "reward.function"


def test_nothing_of_a_module_that_is_not_allowed_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("ALIGNMENT_ALLOW_TARGETS")
    (tmp_path / "users_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef f(**_): pass\n")
    with pytest.raises(ConfigError, match=r"ALIGNMENT_ALLOW_TARGETS=PACKAGE"):
        CallableReward(function="users_evil.f")
    assert not (tmp_path / "ran").exists()


def test_a_command_line_composes():
    overrides = ["reward=callable", "reward.function=users_rewards.brevity"]
    check(parse("train", overrides), overrides)
