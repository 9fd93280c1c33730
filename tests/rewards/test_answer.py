"""The reward for the right final answer."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from alignment.config.paths import conf_dir
from alignment.rewards.answer import AnswerReward, FinalAnswer, numbers
from alignment.types import Rollout
from alignment.utils.errors import ConfigError, UserError

CONFIG = OmegaConf.load(conf_dir() / "reward" / "answer.yaml")


def rollout(completion: str, answer: object, name: str = "answer") -> Rollout:
    return Rollout("p7", "How many?", (1,), (5, 2), completion, "stop", 0, {name: answer})


@pytest.fixture(scope="module")
def reward() -> AnswerReward:
    return instantiate(CONFIG)


@pytest.mark.parametrize(
    ("completion", "answer", "is_right"),
    [
        ("27 + 4 = 31\nAnswer: 31", "31", True),
        ("27 + 4 = 31\nAnswer: 21", "31", False),
        ("answer: 31.", "31", True),
        ("Answer: 31.0", "31", True),
        ("Answer: 31.50", "31.5", True),
        ("Answer: .5", "0.5", True),
        ("Answer: 31.5", "31", False),
        ("Answer: -31", "31", False),
        ("Answer: −31", "-31", True),
        ("Answer: +31", 31, True),
        ("Answer: 1,234,567", "1234567", True),
        ("Answer: 1,234", "1,234", True),
        ("Answer: 1,2", "12", False),
        ("Answer: $1,234.00 a day", 1234.0, True),
        ("Answer: -$5", "-5", True),
        ("Answer: 3/4", "0.75", True),
        ("Answer: 3/0", "3", False),
        ("Answer: 31 apples", "31 (apples)", True),
        ("She has 48/2 = <<48/2=24>>24.\n#### 24", "48+24 = <<48+24=72>>72 clips.\n#### 72", False),
        ("She has 48+24 = <<48+24=72>>72.\n#### 72", "48+24 = <<48+24=72>>72 clips.\n#### 72", True),
        ("#### 2,125", "#### 2125", True),
        (r"so $\boxed{42}$ it is, all 7 of them", "42", True),
        (r"so $\boxed{-\frac{1}{2}}$", "-0.5", True),
        # The last match counts, and a marker without a number is no answer, whatever else the text has.
        ("Answer: 3. No, wait.\nAnswer: 4", "4", True),
        ("2 + 2 = 4. Answer: four", "4", False),
        ("Answer:", "4", False),
        # Without a marker the last number counts.
        ("It is 3, no, it is 4.", "4", True),
        ("It is 4, no, it is 3.", "4", False),
        ("10-5", "5", True),
        ("x = -5", "-5", True),
        ("", "4", False),
        ("four", "4", False),
        (":", "4", False),
        # Nothing is evaluated, and no length is too much.
        ("Answer: 2+2", "4", False),
        ("Answer: __import__('os').getpid()", "4", False),
        ("Answer: " + "9" * 100_000, "9", False),
        ("Answer: 1/" + "9" * 100_000, "1", False),
    ],
)
def test_right_answers_and_wrong_ones(reward, completion, answer, is_right):
    assert reward.score([rollout(completion, answer)]).total == (float(is_right),)


def test_an_answer_that_is_missing_is_a_component(reward):
    scored = reward.score([rollout(text, "4") for text in ("Answer: 4", "Answer: 5", "no idea")])
    assert scored.total == (1.0, 0.0, 0.0)
    assert scored.components == {"found": (1.0, 1.0, 0.0)}
    assert reward.score([]).total == ()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, r"prompt p7: its record has no answer under 'answer' \(it has none\)"),
        ({"target": "4"}, r"no answer under 'answer' \(it has target\)"),
        ({"answer": None}, r"no answer under 'answer' \(it has answer\)"),
        ({"answer": "four"}, r"\(answer is 'four', without a number\)"),
    ],
)
def test_a_prompt_without_an_answer_is_named(reward, answer, message):
    with pytest.raises(UserError, match=message):
        reward.score([Rollout("p7", "x", (1,), (2,), "Answer: 4", "stop", 0, answer)])


def test_every_answer_of_gsm8k_is_right_about_itself(reward, shared_data):
    rows = [json.loads(line) for line in (shared_data / "prompts" / "gsm8k_test.jsonl").open(encoding="utf-8")]
    solutions = [row["answer"] for row in rows]
    answers = [solution.split("####")[1].strip().replace(",", "") for solution in solutions]
    assert len(answers) > 600
    assert set(reward.score(list(map(rollout, solutions, answers))).total) == {1.0}
    others = [*solutions[1:], solutions[0]]
    same = [float(mine == other) for mine, other in zip(answers, [*answers[1:], answers[0]], strict=True)]
    assert list(reward.score(list(map(rollout, solutions, others))).total) == same
    assert 0 < sum(same) < 60


def test_the_field_and_the_pattern_are_the_configurations():
    strict = instantiate(CONFIG, field="target", pattern=r"A:([^\n]*)", last_number=False)
    rollouts = [rollout(text, 4.0, "target") for text in ("A: 4", "4", "Answer: 4")]
    assert strict.score(rollouts).total == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"reward\.pattern: got '\(', expected a regular expression"),
        ("Answer", "expected one group"),
        ("(a)(b)", "one group"),
    ],
)
def test_a_bad_pattern_is_named(pattern, message):
    with pytest.raises(ConfigError, match=message):
        FinalAnswer(key="reward.pattern", pattern=pattern, last_number=True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1,000 and 12,34 and 5,", [1000, 12, 34, 5]),
        ("3 - 5 = -2", [3, 5, -2]),
        ("v2 costs 3", [3]),
        ("1/2, -1/2", [Fraction(1, 2), Fraction(-1, 2)]),
        (r"\dfrac{3}{4}", [Fraction(3, 4)]),
        ("nothing", []),
    ],
)
def test_numbers_of_a_text(text, found):
    assert numbers(text) == found
