"""The reward for the right mathematical answer."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from alignment.config.paths import conf_dir
from alignment.rewards.math import MathReward
from alignment.types import Rollout
from alignment.utils.errors import UserError

CONFIG = OmegaConf.load(conf_dir() / "reward" / "math.yaml")


def rollout(completion: str, answer: object) -> Rollout:
    return Rollout("p7", "How many?", (1,), (5, 2), completion, "stop", 0, {"answer": answer})


@pytest.fixture(scope="module")
def reward() -> MathReward:
    return instantiate(CONFIG)


@pytest.mark.parametrize(
    ("completion", "answer", "is_right"),
    [
        (r"so it is $\boxed{\frac{1}{4}}$.", r"\frac{1}{4}", True),
        (r"\boxed{0.25}", r"\frac{1}{4}", True),
        (r"The answer is 1/4.", r"\frac14", True),
        (r"\boxed{\frac{1}{3}}", r"\frac{1}{4}", False),
        (r"\boxed{x^2 + 2x + 1}", r"(x+1)^2", True),
        (r"\boxed{\{3, 1\}}", r"\{1, 3\}", True),
        (r"\boxed{[0, 1)}", r"[0,1)", True),
        (r"\boxed{(0, 1)}", r"[0,1)", False),
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", True),
        (r"\boxed{\text{Evelyn}}", r"\text{Evelyn}", True),
        (r"\boxed{\text{Evelyn}}", r"\text{Carla}", False),
        (r"\boxed{4} is the answer, found among 1, 2 and 3", "4", True),
        (r"\boxed{3}, no, \boxed{4}", "4", True),
        (r"\boxed{4}, no, \boxed{3}", "4", False),
        (r"\boxed{4}", r"We add and get $\boxed{4}$.", True),
        (r"\boxed{4}", 4, True),
        (r"\boxed{\$15.17}", r"\$15.17", True),
        (r"\boxed{70\%}", r"70\%", True),
        (r"\boxed{", "4", False),
        ("no idea", "4", False),
        ("", "4", False),
    ],
)
def test_right_answers_and_wrong_ones(reward, completion, answer, is_right):
    assert reward.score([rollout(completion, answer)]).total == (float(is_right),)


def test_only_the_box_counts_where_that_is_asked_for(reward):
    texts = [rollout(text, "4") for text in ("It is 4.", r"It is $4$, \boxed{5}", r"It is 5, \boxed{4} or $5$", "x")]
    scored = instantiate(CONFIG, boxed_only=True).score(texts)
    assert scored.total == (0.0, 0.0, 1.0, 0.0)
    assert scored.components["found"] == (0.0, 1.0, 1.0, 0.0)
    assert reward.score(texts).total == (1.0, 0.0, 1.0, 0.0)
    assert reward.score([]).total == ()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"answer": ""}, r"reward=math, prompt p7: nothing can be read in its record's answer, answer=''"),
        ({"answer": None}, r"reward=math, prompt p7: its record has no answer under 'answer' \(it has answer\)"),
        ({}, r"has no answer under 'answer' \(it has none\)"),
    ],
)
def test_a_record_without_a_readable_answer_is_named(reward, answer, message):
    with pytest.raises(UserError, match=message):
        reward.score([Rollout("p7", "x", (1,), (2,), r"\boxed{4}", "stop", 0, answer)])


@pytest.mark.parametrize("where", ["main thread", "another thread"])
def test_what_takes_for_ever_scores_0_and_the_next_is_right(where):
    reward = instantiate(CONFIG, timeout_seconds=1.5)
    found = []

    def work() -> None:
        found.append(reward.score([rollout(text, "4") for text in (r"\boxed{9^{9^{9^9}}}", r"\boxed{4}")]))

    start = time.monotonic()
    if where == "main thread":
        work()
    else:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found[0].total == (0.0, 1.0)
    assert found[0].components == {"found": (0.0, 1.0), "timed_out": (1.0, 0.0)}
    assert time.monotonic() - start < 60


def test_a_process_that_was_killed_is_replaced():
    reward = instantiate(CONFIG)
    texts = [rollout(r"\boxed{4}", "4")]
    assert reward.score(texts).total == (1.0,)
    first = reward._worker._process
    assert first is not None
    os.kill(first.pid, 9)
    first.wait()
    assert reward.score(texts).total == (1.0,)


def test_no_key_reaches_the_process(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    reward = instantiate(CONFIG)
    reward.score([rollout("4", "4")])
    process = reward._worker._process
    assert process is not None
    assert b"secret" not in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_threads_may_share_it(reward):
    results: dict[int, tuple[float, ...]] = {}

    def work(number: int) -> None:
        results[number] = reward.score([rollout(rf"\boxed{{{guess}}}", str(number)) for guess in range(4)]).total

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: tuple(float(guess == number) for guess in range(4)) for number in range(4)}


def test_a_bad_time_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(Exception, match=r"reward\.timeout_seconds: got 0"):
        instantiate(CONFIG, timeout_seconds=0.0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"reward=math needs .*pip install 'alignment\[math\]'"):
        MathReward(field="answer", boxed_only=False, timeout_seconds=1.0)


@pytest.mark.slow
def test_every_answer_of_math_is_right_about_itself(reward, shared_data):
    with gzip.open(shared_data / "prompts" / "math_train_answers.jsonl.gz", "rt", encoding="utf-8") as file:
        answers = [json.loads(line)["final_answer"] for line in file]
    assert len(answers) == 7500
    readable = [answer for answer in answers if answer]
    assert len(answers) - len(readable) == 2  # two answers of the data are empty texts
    scored = reward.score([rollout(rf"Therefore it is $\boxed{{{answer}}}$.", answer) for answer in readable])
    assert set(scored.components["found"]) == {1.0}
    wrong = [answer for answer, value in zip(readable, scored.total, strict=True) if not value]
    assert wrong == []
    pairs = list(zip(readable[1:501], readable, strict=False))
    right = reward.score([rollout(rf"\boxed{{{other}}}", answer) for other, answer in pairs]).total
    same = sum(other == answer for other, answer in pairs)
    assert same <= sum(right) <= same + 2
