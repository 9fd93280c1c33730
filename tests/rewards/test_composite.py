"""A weighted sum of rewards."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st

from alignment.cli.app import check, parse
from alignment.config.compose import compose, task_config
from alignment.rewards.answer import AnswerReward
from alignment.rewards.composite import CompositeReward
from alignment.rewards.errors import checked_scores
from alignment.rewards.length import LengthReward
from alignment.types import Rewards, Rollout
from alignment.utils.errors import BrokenJudgeError, ConfigError, UserError

COMMAND = [
    "reward=composite",
    "+reward@reward.parts.correct.reward=answer",
    "+reward.parts.correct.weight=1",
    "+reward@reward.parts.short.reward=length",
    "+reward.parts.short.weight=0.25",
]


def rollouts(*texts: str) -> list[Rollout]:
    return [Rollout(f"p{place}", "How many?", (1,), (2,) * 8, text, "stop", 0, {"answer": "4"})
            for place, text in enumerate(texts)]  # fmt: skip


class Fixed:
    """Gives every completion the number that it reads."""

    def score(self, rollouts):
        numbers = tuple(float(rollout.completion) for rollout in rollouts)
        return Rewards(numbers, {"half": tuple(number / 2 for number in numbers)})


def made(on_error="raise", error_score=None, **weights: float) -> CompositeReward:
    parts = {name: {"reward": Fixed(), "weight": weight} for name, weight in weights.items()}
    return CompositeReward(parts=parts, on_error=on_error, error_score=error_score)


def test_the_total_is_the_weighted_sum_and_every_part_is_shown():
    rewards = made(a=2.0, b=-0.5, c=0).score(rollouts("4", "-2"))
    assert rewards.total == (6.0, -3.0)
    halves, wholes = (2.0, -1.0), (4.0, -2.0)
    assert rewards.components == {
        "a": wholes,
        "a/half": halves,
        "b": wholes,
        "b/half": halves,
        "c": wholes,
        "c/half": halves,
    }
    assert made(a=1.0).score([]).total == ()


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=4), st.lists(st.floats(-10, 10), min_size=1, max_size=4))
def test_any_sum(weights, values):
    reward = made(**{f"part{place}": weight for place, weight in enumerate(weights)})
    total = reward.score(rollouts(*map(repr, values))).total
    assert total == pytest.approx([math.fsum(weights) * value for value in values], abs=1e-9)


def test_a_part_that_fails_is_named_with_the_prompt_and_the_completion():
    with pytest.raises(UserError) as caught:
        made(a=1.0, b=1.0).score(rollouts("1", "nan"))
    assert str(caught.value) == (
        "reward.parts.a, prompt p1 ('How many?'), completion 'nan': its total is nan, not a finite number"
    )


def test_a_parts_error_is_blamed_once_and_not_looked_for_twice():
    """The whole batch, then one completion after the other up to the one to blame: no more questions than that."""
    asked: list[int] = []

    class Broken:
        def score(self, rollouts):
            asked.append(len(rollouts))
            return Rewards(tuple(1 / float(rollout.completion) for rollout in rollouts), {})

    parts = {"a": {"reward": Broken(), "weight": 1.0}}
    reward = CompositeReward(parts=parts, on_error="raise", error_score=None)
    with pytest.raises(UserError) as caught:
        checked_scores(reward, rollouts("1", "2", "0", "4"))
    text = "reward.parts.a, prompt p2 ('How many?'), completion '0': ZeroDivisionError: float division by zero"
    assert str(caught.value) == text
    assert asked == [4, 1, 1, 1]
    asked.clear()
    with pytest.raises(UserError, match="completion '0'"):
        checked_scores(reward, rollouts("0"))
    assert asked == [1]


def test_a_record_without_an_answer_is_named_once():
    parts = {"correct": {"reward": AnswerReward(field="solution", pattern="(.*)", last_number=True), "weight": 1.0}}
    reward = CompositeReward(parts=parts, on_error="raise", error_score=None)
    with pytest.raises(UserError, match=r"^reward=answer, prompt p0: its record has no answer under 'solution'"):
        checked_scores(reward, rollouts("1", "2"))


def test_a_broken_judge_is_no_score():
    """Everything would be worth the same, and nobody would see why."""
    asked: list[int] = []

    class Gone:
        def score(self, rollouts):
            asked.append(len(rollouts))
            raise BrokenJudgeError("no namespaces")

    parts = {"tests": {"reward": Gone(), "weight": 1.0}}
    reward = CompositeReward(parts=parts, on_error="score", error_score=0.0)
    with pytest.raises(BrokenJudgeError, match=r"^no namespaces$"):
        checked_scores(reward, rollouts("1", "2"), error_score=0.0)
    assert asked == [2]


def test_a_judge_that_breaks_while_completions_are_asked_one_by_one_is_no_score():
    class Breaks:
        def score(self, rollouts):
            if len(rollouts) > 1:
                raise ZeroDivisionError
            raise BrokenJudgeError("no namespaces")

    with pytest.raises(BrokenJudgeError):
        checked_scores(Breaks(), rollouts("1", "2"), error_score=0.0)


def test_a_score_for_failures_is_weighted_and_counted_by_part():
    rewards = made("score", -1.0, a=2.0, b=3.0).score(rollouts("1", "one"))
    assert rewards.total == (5.0, -5.0)
    assert rewards.components["errors"] == (0.0, 2.0)
    assert rewards.components["a/errors"] == rewards.components["b/errors"] == (0.0, 1.0)
    assert rewards.components["a"] == (1.0, -1.0)


def test_a_sum_may_be_a_part():
    inner = {"reward": made("score", 0.0, a=1.0), "weight": 2.0}
    rewards = CompositeReward(parts={"sum": inner}, on_error="score", error_score=-9.0).score(rollouts("3", "x"))
    assert rewards.total == (6.0, 0.0)
    assert rewards.components["sum/errors"] == rewards.components["errors"] == (0.0, 1.0)
    assert rewards.components["sum/a/half"] == (1.5, 0.0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"a": {"reward": Fixed(), "weight": math.inf}}, r"reward\.parts\.a\.weight: got inf"),
        ({"errors": {"reward": Fixed(), "weight": 1}}, r"reward\.parts\.errors: .*a name without"),
        ({"a/b": {"reward": Fixed(), "weight": 1}}, r"reward\.parts\.a/b: .*a name without"),
    ],
)
def test_bad_parts_are_named(parts, message):
    with pytest.raises(ConfigError, match=message):
        CompositeReward(parts=parts, on_error="raise", error_score=None)


@pytest.mark.parametrize(
    ("policy", "score", "message"),
    [
        ("raise", 0.0, "null with reward.on_error=raise"),
        ("score", None, "a finite number"),
        ("score", math.nan, "finite"),
    ],
)
def test_a_policy_has_the_score_that_it_needs(policy, score, message):
    with pytest.raises(ConfigError, match=rf"reward\.error_score: got .*{message}"):
        made(policy, score, a=1.0)


def test_a_command_line_builds_it():
    cfg = task_config(compose("train", COMMAND))
    reward = instantiate(cfg.reward, _convert_="all")
    kinds = {name: (type(part), weight) for name, (part, weight) in reward.parts.items()}
    assert kinds == {"correct": (AnswerReward, 1.0), "short": (LengthReward, 0.25)}
    rewards = reward.score(rollouts("Answer: 4", "Answer: 5"))
    assert rewards.total == (1.0 + 0.25 * 0.25, 0.25 * 0.25)
    assert rewards.components["correct/found"] == (1.0, 1.0)
    check(parse("train", COMMAND), COMMAND)


def test_data_that_take_the_gold_reward_away_leave_the_parts():
    cfg = task_config(compose("train", [*COMMAND, "data=jsonl", "data.train.path=x.jsonl"]))
    assert set(cfg.reward.parts) == {"correct", "short"}


def test_a_file_of_the_users_own(tmp_path: Path):
    (tmp_path / "reward").mkdir()
    (tmp_path / "reward" / "mine.yaml").write_text(
        """\
defaults:
  - composite
  - answer@parts.correct.reward
  - regex@parts.format.reward
  - _self_
parts:
  correct: {weight: 1.0}
  format:
    weight: 0.2
    reward: {match: search, pattern: 'Answer:'}
"""
    )
    cfg = task_config(compose("train", ["reward=mine"], config_dir=tmp_path))
    rewards = instantiate(cfg.reward, _convert_="all").score(rollouts("Answer: 4", "4", "5"))
    assert rewards.total == (1.2, 1.0, 0.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["reward=composite"], "reward.parts: got {}, expected names, each with a mapping with reward, weight"),
        (COMMAND[:2], "reward.parts.correct.weight: got 'nothing', expected a value: a number"),
        (["reward=composite", "+reward.parts.a.weight=1"], "reward.parts.a.reward: got 'nothing', expected a value"),
        (
            [*COMMAND[:2], "+reward.parts.correct.weight=much"],
            "reward.parts.correct.weight: got 'much', expected a number",
        ),
        (
            [*COMMAND[:2], "+reward.parts.correct.wight=1"],
            "reward.parts.correct.wight: got 1, expected one of the keys of 'reward.parts.correct': reward, weight.",
        ),
        (["reward=composite", "+reward.parts.a=1"], "reward.parts.a: got 1, expected a mapping with reward, weight"),
        (
            ["reward=composite", "+reward.parts.a.reward=length", "+reward.parts.a.weight=1"],
            "reward.parts.a.reward: got 'length', expected Reward",
        ),
        (
            [*COMMAND, "reward.parts.short.reward.target_tokens=few"],
            "reward.parts.short.reward.target_tokens: got 'few', expected an integer",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_with_a_part_is_found_before_anything_loads(overrides, message):
    with pytest.raises(ConfigError) as caught:
        check(parse("train", overrides), overrides)
    assert str(caught.value).startswith(message)
