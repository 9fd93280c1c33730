"""What a reward returns is checked, and what it raises is blamed on the right completion."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from alignment.rewards.errors import checked_scores
from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError, UserError

TEXTS = ("one", "two", "three", "four")


def rollouts(*texts: str) -> list[Rollout]:
    prompt = [{"role": "user", "content": "x" * 100}]
    return [Rollout(f"line {place}", prompt, (1,), (2,), text, "stop", 0) for place, text in enumerate(texts)]


class Judge:
    """Gives each text the value that a function says, and counts how often it is asked."""

    def __init__(self, value: Callable[[str], object], **components: object) -> None:
        self.value, self.components, self.asked = value, components, 0

    def score(self, rollouts):
        self.asked += 1
        total = tuple(self.value(rollout.completion) for rollout in rollouts)
        return Rewards(total, {name: (value,) * len(rollouts) for name, value in self.components.items()})


def boom(text: str) -> float:
    if text == "three":
        raise ZeroDivisionError("no way")
    return float(len(text))


def nan(text: str) -> float:
    return math.nan if text == "three" else float(len(text))


def test_sound_scores_pass_as_plain_floats_and_cost_one_call():
    judge = Judge(lambda text: np.float32(len(text)) if text != "two" else True, words=1)
    rewards = checked_scores(judge, rollouts(*TEXTS))
    assert rewards == Rewards((3.0, 1.0, 5.0, 4.0), {"words": (1.0,) * 4})
    assert {type(value) for value in (*rewards.total, *rewards.components["words"])} == {float}
    assert judge.asked == 1
    assert checked_scores(judge, []) == Rewards((), {})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (boom, "ZeroDivisionError: no way"),
        (nan, "its total is nan, not a finite number"),
        (lambda text: math.inf if text == "three" else 0.0, "its total is inf, not a finite number"),
        (lambda text: None if text == "three" else 0.0, "its total is None, not a finite number"),
        (lambda text: "1" if text == "three" else 0.0, "its total is '1', not a finite number"),
        (lambda text: 1j if text == "three" else 0.0, r"its total is 1j, not a finite number"),
    ],
)
def test_the_prompt_and_the_completion_are_named(value, message):
    with pytest.raises(UserError) as caught:
        checked_scores(Judge(value), rollouts(*TEXTS), name="reward.parts.it")
    shown = "x" * 80
    assert str(caught.value) == f"reward.parts.it, prompt line 2 ('{shown}'...), completion 'three': {message}"


@pytest.mark.parametrize("value", [boom, nan])
def test_a_score_for_failures_goes_to_the_one_to_blame_and_is_counted(value):
    rewards = checked_scores(Judge(value, words=2.0), rollouts(*TEXTS), error_score=-7.0)
    assert rewards.total == (3.0, 3.0, -7.0, 4.0)
    assert rewards.components == {"words": (2.0, 2.0, 0.0, 2.0), "errors": (0.0, 0.0, 1.0, 0.0)}


def test_where_nothing_fails_errors_are_counted_as_none():
    assert checked_scores(Judge(len), rollouts("a", "bc"), error_score=0.0).components == {"errors": (0.0, 0.0)}


def test_a_component_that_is_not_finite_is_refused_too():
    with pytest.raises(UserError, match=r"completion 'one': its component 'words' is nan, not a finite number"):
        checked_scores(Judge(len, words=math.nan), rollouts(*TEXTS))


class Short:
    def __init__(self, rewards: object) -> None:
        self.rewards = rewards

    def score(self, rollouts):
        return self.rewards if len(rollouts) > 1 else Rewards((1.0,), {})


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (Rewards((1.0,), {}), "its total has 1 values for 2 completions"),
        (Rewards((1.0, 1.0), {"words": ()}), "its component 'words' has 0 values for 2 completions"),
        ([1.0, 1.0], "it returned list, not Rewards"),
    ],
)
def test_what_fails_only_together_is_said_so(returned, message):
    with pytest.raises(UserError, match=rf"reward fails on 2 completions together.*prompt line 0.*: {message}"):
        checked_scores(Short(returned), rollouts("a", "b"))
    assert checked_scores(Short(returned), rollouts("a", "b"), error_score=0.0).total == (1.0, 1.0)


def test_a_wrong_key_is_no_fault_of_a_completion():
    def wrong(text: str) -> float:
        raise ConfigError("reward.path", got="x", expected="a model")

    for error_score in (None, 0.0):
        with pytest.raises(ConfigError, match=r"^reward\.path: got 'x'"):
            checked_scores(Judge(wrong), rollouts("a", "b"), error_score=error_score)


def test_a_long_completion_is_shown_by_its_beginning():
    with pytest.raises(UserError) as caught:
        checked_scores(Judge(lambda text: math.nan), rollouts("y" * 500))
    assert "completion '" + "y" * 80 + "'...:" in str(caught.value)


def test_stopping_is_not_swallowed():
    def stop(text: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked_scores(Judge(stop), rollouts("a"), error_score=0.0)
