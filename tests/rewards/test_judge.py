"""A reward by comparison: a judge's preferences become win-rates, whatever place it likes."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Sequence

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.cli.app import check, parse
from alignment.cli.main import main
from alignment.config.compose import compose, task_config
from alignment.config.validate import validate
from alignment.pipeline import generate
from alignment.rewards.composite import CompositeReward
from alignment.rewards.errors import BlamedError, checked_scores
from alignment.rewards.judge import Comparison, Judge, JudgeReward, is_relative, win_rates
from alignment.rewards.length import LengthReward
from alignment.types import Rollout
from alignment.utils.errors import BrokenJudgeError, ConfigError, UserError

from runs import SMALL, job, metrics, train

NAME = "users_judges.Longer"


class Longer:
    """Prefers the longer text, by how much it is longer, and likes what it sees first."""

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias
        self.seen: list[Comparison] = []

    def compare(self, comparisons: Sequence[Comparison]) -> list[float]:
        self.seen += comparisons
        lengths = [(len(item.first), len(item.second)) for item in comparisons]
        return [min(1.0, max(0.0, first / (first + second) + self.bias)) for first, second in lengths]


class Says:
    """Answers with what a function of the two texts gives."""

    def __init__(self, answer: Callable[[str, str], object]) -> None:
        self.answer = answer

    def compare(self, comparisons: Sequence[Comparison]) -> list[object]:
        return [self.answer(item.first, item.second) for item in comparisons]


class Deaf:
    """Is no judge."""


def group(*texts: str, name: str = "p") -> list[Rollout]:
    return [Rollout(name, "Say it.", (1,), (2,), text, "stop", sample) for sample, text in enumerate(texts)]


#: Lengths 1, 3 and 4: they win with 1/4 and 1/5, 3/4 and 3/7, 4/5 and 4/7.
TEXTS = ("a", "bcd", "efgh")
WIN_RATES = ((1 / 4 + 1 / 5) / 2, (3 / 4 + 3 / 7) / 2, (4 / 5 + 4 / 7) / 2)


@pytest.mark.parametrize("bias", [0.0, 0.1, -0.15])
def test_win_rates_are_those_of_the_table_and_a_liking_for_a_place_cancels(bias):
    rewards = JudgeReward(judge=Longer(bias)).score(group(*TEXTS))
    assert rewards.total == pytest.approx(WIN_RATES, abs=1e-12)
    # 3 against 4: 3/7 + .1 and 4/7 + .1 are both for the first, 3/7 - .15 and 4/7 - .15 both for the second.
    assert rewards.components == {"position_flips": (0.0, 0.0, 0.0) if bias == 0 else (0.0, 0.5, 0.5)}


def test_groups_are_prompts_wherever_their_completions_stand():
    one, two = group(*TEXTS, name="one"), group("xx", "y", name="two")
    mixed = [one[2], two[0], one[0], two[1], one[1]]
    judge = Longer()
    rewards = JudgeReward(judge=judge).score(mixed)
    assert rewards.total == pytest.approx((WIN_RATES[2], 2 / 3, WIN_RATES[0], 1 / 3, WIN_RATES[1]), abs=1e-12)
    assert len(judge.seen) == 3 * 2 + 2 * 1
    assert {(item.prompt, item.first, item.second) for item in judge.seen} >= {
        ("Say it.", "a", "efgh"),
        ("Say it.", "efgh", "a"),
        ("Say it.", "xx", "y"),
        ("Say it.", "y", "xx"),
    }
    assert JudgeReward(judge=judge).score([]).total == ()


def test_equal_texts_tie_and_nobody_is_asked_twice():
    judge = Longer()
    rewards = JudgeReward(judge=judge).score(group("a", "bcd", "a"))
    assert rewards.total == pytest.approx(((0.5 + 0.25) / 2, 0.75, (0.5 + 0.25) / 2), abs=1e-12)
    assert sorted((item.first, item.second) for item in judge.seen) == [("a", "bcd"), ("bcd", "a")]
    judge.seen.clear()
    assert JudgeReward(judge=judge).score(group("a", "a")).total == (0.5, 0.5)
    assert judge.seen == []


@given(st.lists(st.lists(st.floats(0, 1), min_size=5, max_size=5), min_size=5, max_size=5))
def test_a_group_shares_out_half_a_win_each(table):
    rates = win_rates(torch.tensor(table, dtype=torch.float64))
    assert rates.sum().item() == pytest.approx(2.5, abs=1e-9)
    assert ((rates > -1e-9) & (rates < 1 + 1e-9)).all()


@pytest.mark.parametrize("constant", [0.0, 0.1, 0.9, 1.0])
def test_a_judge_that_sees_the_place_alone_leaves_exact_ties(constant):
    """No advantage is made of rounding."""
    rewards = JudgeReward(judge=Says(lambda first, second: constant)).score(group(*"abcdefg"))
    assert rewards.total == (0.5,) * 7
    assert rewards.components["position_flips"] == (1.0,) * 7


def test_a_chat_is_shown_to_the_judge_as_it_is():
    prompt = [{"role": "user", "content": "Well?"}]
    judge = Longer()
    JudgeReward(judge=judge).score([Rollout("p", prompt, (), (), text, "stop", 0) for text in ("yes", "no")])
    assert judge.seen == [Comparison(prompt, "yes", "no"), Comparison(prompt, "no", "yes")]


def test_a_single_completion_says_what_to_set():
    words = r"prompt two \('Say it\.'\), completion 'x': the only completion .*method\.rollouts\.group_size to 2"
    for rollouts in (group("x", name="two"), [*group(*TEXTS), *group("x", name="two")]):
        with pytest.raises(UserError, match=words):
            checked_scores(JudgeReward(judge=Longer()), rollouts)


def on_b(answer: object) -> Judge:
    """Gives a bad answer where text b is first and text c second."""

    def say(first: str, second: str) -> object:
        if (first, second) != ("b", "c"):
            return 0.25
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Says(say)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (1.25, "the judge gave 1.25, not a probability in [0, 1]"),
        (-0.5, "the judge gave -0.5, not a probability in [0, 1]"),
        (math.nan, "the judge gave nan, not a probability in [0, 1]"),
        (None, "the judge gave None, not a probability in [0, 1]"),
        ("a", "the judge gave 'a', not a probability in [0, 1]"),
        (ZeroDivisionError("no way"), "ZeroDivisionError: no way"),
    ],
    ids=str,
)
def test_a_bad_answer_names_the_prompt_and_both_completions(answer, message):
    reward = JudgeReward(judge=on_b(answer))
    with pytest.raises(BlamedError) as caught:
        checked_scores(reward, [*group("x", "y", name="one"), *group("a", "b", "c", name="two")])
    assert str(caught.value) == f"reward=judge, prompt two ('Say it.'), completion 'b' against 'c': {message}"


class Short:
    def compare(self, comparisons):
        return [0.5] * (len(comparisons) - self.missing)

    missing = 1


def test_a_wrong_number_of_answers_is_an_error():
    with pytest.raises(BlamedError, match=r"completion 'a' against 'b': the judge gave 0 answers to 1 comparisons"):
        checked_scores(JudgeReward(judge=Short()), group("a", "b"))
    together = Short()
    together.compare = lambda comparisons: [0.5] * (1 if len(comparisons) == 1 else 3)  # type: ignore[method-assign]
    words = r"fails on 2 comparisons together and on none alone: the judge gave 3 answers to 2 comparisons"
    with pytest.raises(BlamedError, match=words):
        checked_scores(JudgeReward(judge=together), group("a", "b"))


def test_with_a_score_for_failures_a_bad_answer_costs_its_own_prompt_alone():
    reward = JudgeReward(judge=on_b(math.nan))
    rollouts = [*group("b", "c", name="one"), *group("x", "y", "xy", name="two")]
    scored = checked_scores(reward, rollouts, error_score=-1.0)
    assert scored.total == (-1.0, -1.0, 0.5, 0.5, 0.5)
    assert scored.components == {"position_flips": (0.0, 0.0, 1.0, 1.0, 1.0), "errors": (1.0, 1.0, 0.0, 0.0, 0.0)}


def test_a_judge_that_cannot_work_is_never_turned_into_a_score():
    for error in (BrokenJudgeError("no key for the service"), ConfigError("reward.judge.url", got=1, expected="a URL")):
        with pytest.raises(type(error), match=str(error)[:12]):
            checked_scores(JudgeReward(judge=on_b(error)), group("b", "c"), error_score=0.0)


def test_what_cannot_compare_is_refused():
    with pytest.raises(ConfigError, match=r"reward\.judge: got 'Deaf', expected an object with compare"):
        JudgeReward(judge=Deaf())  # type: ignore[arg-type]


def test_a_sum_with_a_judge_in_it_is_relative_too():
    judge, length = JudgeReward(judge=Longer()), LengthReward(target_tokens=4, tolerance_tokens=2)
    inner = CompositeReward(parts={"a": {"reward": judge, "weight": 1.0}}, on_error="raise", error_score=None)
    outer = CompositeReward(
        parts={"b": {"reward": length, "weight": 1.0}, "c": {"reward": inner, "weight": 1.0}},
        on_error="raise",
        error_score=None,
    )
    assert is_relative(judge)
    assert is_relative(outer)
    assert not is_relative(length)


@pytest.fixture
def allowed(tmp_path, monkeypatch) -> None:
    """The judge in a module of the user's own, which the configuration may name."""
    (tmp_path / "users_judges.py").write_text(f"from __future__ import annotations\n\n{inspect.getsource(Longer)}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ALIGNMENT_ALLOW_TARGETS", "users_judges")


FRESH = ("callbacks.fresh_samples.num_prompts=3", "callbacks.fresh_samples.every_n_steps=1")


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("method", ["grpo", "online_dpo"])
def test_a_judge_of_ones_own_trains_a_policy(tmp_path, method):
    """With fresh samples as they stand: they measure what does not depend on the group."""
    small = [item for item in SMALL if item != "callbacks.fresh_samples=null"]
    paths = [
        f"paths.runs={tmp_path / 'runs'}",
        f"paths.cache={tmp_path / 'cache'}",
        f"paths.run_dir={tmp_path / 'run'}",
    ]
    own = [f"method={method}", "reward=judge", f"reward.judge._target_={NAME}", "+reward.judge.bias=0.1"]
    short = ["trainer.max_steps=2", "rollout.sampling.max_new_tokens=8", *FRESH]
    assert main(["train", *small, *paths, *own, *short]) in (0, None)

    logged = metrics(tmp_path / "run")
    rows = pq.read_table(tmp_path / "run" / "rollouts" / "000000.parquet").to_pylist()
    texts = [Rollout(row["prompt_id"], json.loads(row["prompt"]), (), (), row["completion"], "stop", row["sample"])
             for row in rows]  # fmt: skip
    assert [row["reward"] for row in rows] == pytest.approx(JudgeReward(judge=Longer(0.1)).score(texts).total, abs=1e-6)
    assert len({row["reward"] for row in rows}) > 8
    for step in (1, 2):
        assert logged[step]["train/reward/total"] == pytest.approx(0.5, abs=1e-6)
        assert 0 < logged[step]["train/reward/position_flips"] < 1
        assert logged[step]["train/reward/group_std"] > 0.05
    assert "fresh/length/completion_tokens" in logged[2]
    assert not [name for row in logged.values() for name in row if name.startswith(("fresh/reward", "fresh/win_rate"))]


@pytest.mark.usefixtures("allowed")
def test_fresh_samples_take_another_reward(tmp_path):
    own = ["method=grpo", "reward=judge", f"reward.judge._target_={NAME}", "rollout.sampling.max_new_tokens=8"]
    fresh = [*FRESH, "+reward@callbacks.fresh_samples.reward=length", "trainer.max_steps=1"]
    small = [item for item in SMALL if item != "callbacks.fresh_samples=null"]
    paths = [f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}"]
    cfg = task_config(compose("train", [*small, *paths, *own, *fresh]))
    assert "fresh/reward/completion_tokens" in metrics(train(cfg, tmp_path / "run"))[1]


@pytest.mark.usefixtures("allowed")
def test_a_group_of_one_ends_a_run_with_what_to_set(tmp_path):
    own = ["method=reinforce_pp", "method.rollouts.group_size=1", "reward=judge", f"reward.judge._target_={NAME}"]
    with pytest.raises(UserError, match=r"Set method\.rollouts\.group_size to 2 or more"):
        train(job(tmp_path, *own), tmp_path / "run")


@pytest.mark.usefixtures("allowed")
def test_generate_makes_pairs_of_what_a_judge_prefers(save, tmp_path):
    overrides = [
        f"model.path={save('language')}",
        "reward=judge",
        f"reward.judge._target_={NAME}",
        "pairing=best_worst",
        "rollout.sampling.num_samples=3",
        "rollout.sampling.max_new_tokens=8",
        "num_prompts=4",
        "data.train.num_records=24",
        "data.validation.num_records=12",
        f"paths.runs={tmp_path / 'runs'}",
        f"paths.cache={tmp_path / 'cache'}",
    ]
    cfg = task_config(compose("generate", overrides))
    validate(cfg, "generate")
    generate.run(cfg, tmp_path / "run", [])
    lengths: dict[str, list[int]] = {}
    for line in (tmp_path / "run" / "rollouts.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        lengths.setdefault(row["prompt_id"], []).append(len(row["completion"]))
    pairs = [json.loads(line) for line in (tmp_path / "run" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(pairs) == 4
    for pair in pairs:
        sides = [len(pair[side][0]["content"]) for side in ("chosen", "rejected")]
        assert sides == [max(lengths[pair["id"]]), min(lengths[pair["id"]])]


@pytest.mark.usefixtures("allowed")
def test_a_command_line_composes_and_names_what_is_missing():
    overrides = ["reward=judge", f"reward.judge._target_={NAME}"]
    check(parse("train", overrides), overrides)
    with pytest.raises(ConfigError, match=r"^reward\.judge\._target_: got '\?\?\?', expected a value"):
        check(parse("train", ["reward=judge"]), ["reward=judge"])
