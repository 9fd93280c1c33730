"""The rewards, on roll-outs."""

from __future__ import annotations

import builtins
from dataclasses import replace

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from alignment.config.paths import conf_dir
from alignment.data.worlds.reviews import gold_reward
from alignment.rewards.gold import GoldReward
from alignment.rewards.length import LengthReward
from alignment.rewards.noise import NoiseReward
from alignment.rewards.vader import VaderReward
from alignment.types import Rollout
from alignment.utils.errors import ConfigError, UserError

PROMPT = [{"role": "user", "content": "Write a casual review of the soup at the castle."}]


def rollout(completion: str, *, prompt: object = PROMPT, tokens: int = 3) -> Rollout:
    return Rollout("line 7", prompt, (1, 2), (5,) * tokens, completion, "stop", 0)


def test_gold_is_the_worlds_reward_with_its_components():
    texts = ["Wow, the soup was great!", "", "the soup soup soup", "The soup was dull."]
    rewards = GoldReward().score([rollout(text) for text in texts])
    golds = [gold_reward(PROMPT, text) for text in texts]
    assert rewards.total == tuple(gold.total for gold in golds)
    assert rewards.components["sentiment"] == tuple(gold.sentiment for gold in golds)
    assert set(rewards.components) == {"sentiment", "style", "length", "grammar", "on_topic"}
    assert rewards.total[0] > rewards.total[3] > rewards.total[1] == rewards.total[2] == 0


def test_gold_refuses_prompts_of_another_world_by_id():
    with pytest.raises(UserError, match=r"reward=gold, prompt line 7: not a prompt of the reviews world: 'Once'"):
        GoldReward().score([rollout("x", prompt="Once")])


def test_vader_scores_the_completion_alone():
    grim = [{"role": "user", "content": "horrible terrible awful death"}]
    rewards = VaderReward().score(
        [rollout("VADER is smart, handsome, and funny.", prompt=grim), rollout("Today SUX!"), rollout("")]
    )
    # The values that the package's own documentation gives for its examples.
    assert rewards.total == pytest.approx((0.8316, -0.5461, 0.0))
    for place in range(2):
        assert sum(rewards.components[name][place] for name in ("positive", "negative", "neutral")) == pytest.approx(1)


def test_vader_names_the_package_that_is_missing(monkeypatch):
    real = builtins.__import__

    def without_vader(name, *args, **kwargs):
        if name.startswith("vaderSentiment"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_vader)
    with pytest.raises(UserError, match=r"reward=vader needs .*pip install 'alignment\[judge\]'"):
        VaderReward()


def test_length_has_its_peak_at_the_target():
    reward = LengthReward(target_tokens=10, tolerance_tokens=5)
    rewards = reward.score([rollout("x", tokens=tokens) for tokens in (10, 5, 15, 12, 1)])
    assert rewards.total == pytest.approx((1.0, 0.0, 0.0, 0.6, -0.8))
    assert rewards.components["completion_tokens"] == (10, 5, 15, 12, 1)
    with pytest.raises(ConfigError, match=r"reward\.tolerance_tokens: got 0"):
        LengthReward(target_tokens=10, tolerance_tokens=0)


@pytest.mark.parametrize("name", ["gold", "vader", "length"])
def test_every_file_of_the_group_makes_a_reward(name):
    reward = instantiate(OmegaConf.load(conf_dir() / "reward" / f"{name}.yaml"))
    assert len(reward.score([rollout("Wow, the soup was great!")]).total) == 1
    assert reward.score([]).total == ()


def test_noise_depends_on_the_roll_out_and_not_on_what_was_written():
    drawn = [replace(rollout("right"), sample=sample, seed=3) for sample in range(2000)]
    heads = NoiseReward(share=0.25, seed=0).score(drawn).total
    assert set(heads) == {0.0, 1.0}
    # Four standard errors of a coin's mean over 2,000 throws.
    assert abs(np.mean(heads) - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5
    others = [replace(item, completion="wrong", completion_ids=(9,)) for item in drawn]
    assert NoiseReward(share=0.25, seed=0).score(others).total == heads
    assert NoiseReward(share=0.25, seed=0).score(drawn[::-1]).total == heads[::-1]
    for changed in ({"prompt_id": "line 8"}, {"seed": 4}):
        assert NoiseReward(share=0.25, seed=0).score([replace(item, **changed) for item in drawn]).total != heads
    assert NoiseReward(share=0.25, seed=1).score(drawn).total != heads


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_noise_refuses_a_coin_with_one_side(share):
    with pytest.raises(ConfigError, match=r"reward\.share"):
        NoiseReward(share=share, seed=0)
