"""Process reward models as a reward: the tokens and places of training, aggregates, and what is refused."""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import AutoModelForTokenClassification, AutoTokenizer

from alignment.config.paths import conf_dir
from alignment.data.records import RecordKind, Stepwise, to_row
from alignment.data.tokenise import Tokeniser
from alignment.data.truncation import Truncation
from alignment.data.views import view
from alignment.rewards.errors import checked_scores
from alignment.rewards.process import ProcessReward
from alignment.types import Rollout
from alignment.utils.errors import ConfigError, UserError

CHAT = [{"role": "user", "content": "Start with 27. Add 5."}]
STEPS = [("27 + 5 = 32", "Answer: 32"), ("It is 31.",), ("27 + 5 = 22", "22 it is, then.", "Answer: 22")]


def rollout(completion: str, *, prompt: object = CHAT, name: str = "line 7") -> Rollout:
    return Rollout(name, prompt, (1, 2), (5,), completion, "stop", 0)


def rollouts(prompt: object) -> list[Rollout]:
    return [rollout("\n".join(steps), prompt=prompt) for steps in STEPS]


def reward(path: Path, **changes) -> ProcessReward:
    cfg = OmegaConf.load(conf_dir() / "reward" / "process.yaml")
    return instantiate(OmegaConf.merge(cfg, {"path": str(path), "device": "cpu"}, changes))


def training_rows(tokenizer, prompt: object) -> list[dict]:
    """What method=prm is trained on."""
    records = [Stepwise(id="x", prompt=prompt, steps=steps, labels=(1.0,) * len(steps)) for steps in STEPS]
    rows = [to_row(record) for record in records]
    tokeniser = Tokeniser(
        tokenizer=tokenizer, have=RecordKind.STEPWISE, want=RecordKind.STEPWISE, on_bad_row="error",
        seen_as=partial(view, want=RecordKind.STEPWISE), truncation=Truncation(256, None, "error", "error"),
    )  # fmt: skip
    table = tokeniser({name: [row[name] for row in rows] for name in rows[0]})
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def step_probabilities(folder: Path, prompt: object) -> list[list[float]]:
    """Each solution alone in plain transformers, read at the last token of each of its steps."""
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    found = []
    for row in training_rows(AutoTokenizer.from_pretrained(folder), prompt):
        ids = row["prompt_ids"] + row["completion_ids"]
        with torch.no_grad():
            probabilities = model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)[:, 1]
        places = [len(row["prompt_ids"]) + place for place, scored in enumerate(row["scored"]) if scored]
        found.append(probabilities[places].tolist())
    assert [len(steps) for steps in found] == [2, 1, 3]
    return found


@pytest.mark.parametrize("prompt", [CHAT, "Start with 27. Add 5."], ids=["chat", "text"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_the_places_and_values_are_those_of_training(save, family, prompt):
    folder = save("steps", family)
    wanted = step_probabilities(folder, prompt)
    for batch_size in (1, 4):
        got = reward(folder, batch_size=batch_size).score(rollouts(prompt))
        assert got.total == pytest.approx([min(steps) for steps in wanted], abs=1e-6)
        assert got.components["product"] == pytest.approx([math.prod(steps) for steps in wanted], abs=1e-6)
        assert got.components["mean"] == pytest.approx([sum(steps) / len(steps) for steps in wanted], abs=1e-6)
        assert got.components["last"] == pytest.approx([steps[-1] for steps in wanted], abs=1e-6)
        assert got.components["steps"] == (2, 1, 3)
        first = [next((i for i, value in enumerate(steps) if value < 0.5), -1) for steps in wanted]
        assert got.components["first_error_step"] == tuple(first)
    assert len({round(value, 3) for steps in wanted for value in steps}) > 3


def test_the_chosen_aggregate_is_the_total_and_the_others_are_components(save):
    folder = save("steps")
    whole = reward(folder, aggregate="min").score(rollouts(CHAT))
    for name in ("product", "mean", "last"):
        other = reward(folder, aggregate=name).score(rollouts(CHAT))
        assert other.total == whole.components[name]
        assert other.components["min"] == whole.total
        assert name not in other.components


def test_the_first_step_that_is_more_likely_wrong_is_named(save):
    folder = save("steps")
    model = AutoModelForTokenClassification.from_pretrained(folder)
    wanted = step_probabilities(folder, CHAT)[2]
    # A shift of the second output's logit puts the threshold between the steps' probabilities.
    logits = [math.log(value / (1 - value)) for value in wanted]
    for threshold, expected in ((min(logits) - 1, -1), (max(logits) + 1, 0), (sorted(logits)[0] + 1e-3, None)):
        with torch.no_grad():
            model.score.bias.copy_(torch.tensor([threshold, 0.0]))
        model.save_pretrained(folder)
        first = logits.index(min(logits)) if expected is None else expected
        assert reward(folder).score(rollouts(CHAT)).components["first_error_step"][2] == first


def test_white_space_and_empty_lines_are_no_steps(save):
    folder = save("steps")
    tidy = reward(folder).score([rollout("27 + 5 = 32\nAnswer: 32")])
    loose = reward(folder).score([rollout(" 27 + 5 = 32 \n\n \n Answer: 32\n\n")])
    assert loose == tidy
    marked = reward(folder, separator=" ки").score([rollout("27 + 5 = 32 ки\nAnswer: 32 ки")])
    assert marked == tidy


def test_a_solution_without_the_separator_is_one_step_and_an_empty_one_is_worth_nothing(save):
    folder = save("steps")
    rewards = reward(folder).score([rollout("It is 31."), rollout(" \n "), rollout("It is 31.\n")])
    assert rewards.components["steps"] == (1, 0, 1)
    assert rewards.total[0] == pytest.approx(rewards.total[2], abs=1e-6)
    assert rewards.total[0] > 0
    assert (rewards.total[1], rewards.components["first_error_step"][1]) == (0, -1)
    assert reward(folder).score([]).total == ()


def test_t7_a_separator_that_is_never_found_is_an_error(save):
    expected = "what ends a step: it occurs in none of 2 completions, the first of which begins with 'It is 31.'"
    with pytest.raises(ConfigError, match=rf"^reward\.separator: got '\\n', expected {re.escape(expected)}"):
        # A wrong key is no fault of the completions either: with a score for failures all would be worth the same.
        checked_scores(reward(save("steps")), [rollout("It is 31."), rollout("It is 32.")], error_score=0.0)


def test_a_prompt_that_is_too_long_loses_its_beginning(save, caplog):
    folder = save("steps")
    text = "Start with 27. " * 20
    short = reward(folder, max_length=24).score([rollout("7 + 5 = 12\nAnswer: 12", prompt=text)])
    assert short.components["prompt_cut"] == (1.0,)
    assert short.components["steps"] == (2.0,)
    assert "the beginning of 1 prompts was cut off" in caplog.text
    with pytest.raises(UserError, match=r"reward\.path=.*its completion has \d+ tokens .* but 8 are read at most"):
        reward(folder, max_length=8).score([rollout("7 + 5 = 12\nAnswer: 12")])


def test_what_is_no_process_reward_model_is_refused(save):
    for kind, what in (("score", "it is a LlamaForSequenceClassification"), ("language", "it is a LlamaForCausalLM")):
        with pytest.raises(ConfigError, match=rf"reward\.path: .*{what}: train one with align train method=prm"):
            reward(save(kind)).score(rollouts(CHAT))
    with pytest.raises(ConfigError, match=r"reward\.path: .*but it has 3 outputs"):
        reward(save("steps", num_labels=3)).score(rollouts(CHAT))
    with pytest.raises(Exception, match=r"reward\.separator: got ''"):
        reward(Path("x"), separator="")


def test_a_policy_that_trains_may_come_to_write_single_steps(save):
    """The separator is known to be right once it was seen: a batch without it must not end a run."""
    judge = reward(save("steps"))
    judge.score(rollouts(CHAT))
    alone = judge.score([rollout("It is 31."), rollout("It is 32.")])
    assert alone.components["steps"] == (1.0, 1.0)
    assert all(0 < value < 1 for value in alone.total)
