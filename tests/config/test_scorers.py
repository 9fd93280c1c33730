"""Every reward chooses too: ``scorer=NAME`` is ``reward=NAME``, one file that refers to the other."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from alignment.config.compose import compose, task_config
from alignment.config.paths import conf_dir
from alignment.config.validate import validate
from alignment.utils.errors import ConfigError


def choices(group: str) -> set[str]:
    return {path.stem for path in (conf_dir() / group).glob("*.yaml")}


def node(group: str, *overrides: str) -> Any:
    cfg = compose("evaluate", ["model.path=given", *overrides])
    return OmegaConf.to_container(cfg[group])


def test_every_reward_is_a_scorer_and_nothing_else_is():
    # A judge compares the completions of a prompt with one another: it is for training and for pairs.
    assert choices("reward") - choices("scorer") <= {"judge"}
    assert choices("scorer") <= choices("reward")


@pytest.mark.parametrize("name", sorted(choices("scorer") - {"none"}))
def test_a_scorer_is_the_reward(name):
    got = node("scorer", f"scorer={name}")
    assert got["_target_"].startswith("alignment.rewards.")
    assert got == node("reward", f"reward={name}")


def test_a_sum_is_put_together_as_the_rewards_is():
    parts = [f"+reward@{{0}}.parts.{name}.reward={name}" for name in ("length", "repetition")]
    parts += ["+{0}.parts.length.weight=1", "+{0}.parts.repetition.weight=0.5", "{0}.parts.repetition.reward.n=2"]
    scorer = [item.format("scorer") for item in ("{0}=composite", *parts)]
    got = node("scorer", *scorer)
    assert got["parts"]["repetition"] == {
        "reward": {"_target_": "alignment.rewards.repetition.RepetitionPenalty", "n": 2},
        "weight": 0.5,
    }
    assert got == node("reward", *(item.format("reward") for item in ("{0}=composite", *parts)))
    best = ["model.path=given", "selection=best_of_n", "rollout.sampling.num_samples=2"]
    validate(task_config(compose("evaluate", [*best, *scorer])), "evaluate")
    with pytest.raises(ConfigError, match=r"^scorer\.parts: got {}"):
        validate(task_config(compose("evaluate", [*best, "scorer=composite"])), "evaluate")


def test_the_worlds_true_reward_chooses_in_its_world_only():
    best = ["model.path=given", "selection=best_of_n", "rollout.sampling.num_samples=2", "scorer=gold"]
    validate(task_config(compose("evaluate", best)), "evaluate")
    with pytest.raises(ConfigError, match=r"^scorer: got 'gold', expected another scorer, for data"):
        validate(task_config(compose("evaluate", [*best, "data=world_chains"])), "evaluate")
