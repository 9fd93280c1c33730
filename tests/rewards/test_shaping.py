"""Scale, bounds and penalties between a reward and the advantages."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from alignment.config.paths import conf_dir
from alignment.rewards.shaping import Shaping, soft_overlong
from alignment.utils.errors import ConfigError, UserError

FOLDER = conf_dir() / "method" / "shaping"
OFF = OmegaConf.load(FOLDER / "none.yaml")
NUMBERS = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


def shape(shaping: Shaping, rewards: list[float], *, lengths: list[int] | None = None, cut: list[int] | None = None):
    return shaping(
        rewards=torch.tensor(rewards, dtype=torch.float64),
        truncated=torch.tensor(cut or [0] * len(rewards), dtype=torch.bool),
        lengths=torch.tensor(lengths or [5] * len(rewards)),
        max_new_tokens=100,
    ).tolist()


def test_all_off_changes_nothing():
    rewards = torch.tensor([3.0, -1.0, 0.1])
    kept = instantiate(OFF)(
        rewards=rewards, truncated=torch.ones(3, dtype=torch.bool), lengths=torch.full((3,), 100), max_new_tokens=100
    )
    assert torch.equal(kept, rewards)
    assert kept.dtype == torch.float32


def test_the_penalty_for_a_missing_end_is_taken_once_and_only_where_it_is_missing():
    shaping = instantiate(OFF, missing_eos_penalty=0.5)
    # As long as a completion may be, and yet ended: no penalty. Cut off early (a context that is full): one.
    assert shape(shaping, [1.0, 1.0, 1.0], lengths=[100, 100, 7], cut=[0, 1, 1]) == [1.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("length", "expected"), [(1, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0)]
)
def test_the_overlong_punishment_is_equation_13(length, expected):
    def paper(size: int, longest: int, cache: int) -> float:
        if size <= longest - cache:
            return 0.0
        return ((longest - cache) - size) / cache if size <= longest else -1.0

    assert paper(length, 100, 20) == pytest.approx(expected)
    found = soft_overlong(torch.tensor([length]), max_new_tokens=100, buffer_tokens=20)
    assert found.item() == pytest.approx(expected)
    shaping = instantiate(OFF, overlong_buffer=0.2, overlong_penalty=3.0)
    assert shape(shaping, [2.0], lengths=[length])[0] == pytest.approx(2.0 + 3 * expected)


def test_the_file_of_dapo_has_the_papers_numbers():
    cfg = OmegaConf.merge(OFF, OmegaConf.load(FOLDER / "dapo.yaml"))
    del cfg["defaults"]
    shaping: Shaping = instantiate(cfg)
    lengths = torch.tensor([16384, 18432, 20480])
    off = torch.zeros(3, dtype=torch.bool)
    shaped = shaping(rewards=torch.ones(3), truncated=off, lengths=lengths, max_new_tokens=20480)
    assert shaped.tolist() == [1.0, 0.5, 0.0]


@given(NUMBERS)
def test_a_batch_has_mean_0_and_deviation_1(rewards):
    shaped = shape(instantiate(OFF, normalise="batch"), rewards)
    if np.std(rewards) > 1e-6:
        expected = (np.array(rewards) - np.mean(rewards)) / np.std(rewards)
        assert shaped == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_batch_knows_nothing_of_those_before_it():
    shaping = instantiate(OFF, normalise="batch")
    first = shape(shaping, [0.0, 2.0])
    assert shape(shaping, [100.0, 300.0]) == first == [-1.0, 1.0]
    assert shaping.state_dict()["count"] == 0


@pytest.mark.parametrize("how", ["batch", "running"])
@pytest.mark.parametrize("value", [0.1, -1e6, 3.3e-7])
def test_without_spread_the_result_is_exactly_0(how, value):
    shaping = instantiate(OFF, normalise=how)
    for _ in range(3):
        assert shape(shaping, [value] * 7) == [0.0] * 7


def test_running_has_seen_every_batch_this_one_included():
    shaping = instantiate(OFF, normalise="running")
    batches = [[1.0, 2.0, 6.0], [0.0, -4.0], [10.0]]
    seen: list[float] = []
    for batch in batches:
        seen += batch
        expected = (np.array(batch) - np.mean(seen)) / np.std(seen)
        assert shape(shaping, batch) == pytest.approx(expected.tolist())
    assert shaping.state_dict()["count"] == 6


def test_batches_do_not_matter_to_what_was_seen():
    one, other = (instantiate(OFF, normalise="running") for _ in range(2))
    shape(one, [0.1, 0.2, 0.7, -0.3])
    shape(other, [0.1])
    shape(other, [0.2, 0.7, -0.3])
    assert one.state_dict() == other.state_dict()


@given(NUMBERS, NUMBERS)
def test_a_resume_is_exact(before, after):
    shaping, resumed = (instantiate(OFF, normalise="running") for _ in range(2))
    shape(shaping, before)
    resumed.load_state_dict(json.loads(json.dumps(shaping.state_dict())))
    assert shape(resumed, after) == shape(shaping, after)
    assert resumed.state_dict() == shaping.state_dict()


def test_a_state_of_something_else_is_refused():
    with pytest.raises(UserError, match=r"the state of method\.shaping has mean, not count, mean, squares"):
        instantiate(OFF).load_state_dict({"mean": 1.0})


def test_normalise_then_clip_then_penalties():
    """A penalty is in the unit that the advantages see: not divided, not clipped away, and not seen."""
    shaping = instantiate(OFF, normalise="running", clip=[-0.5, 0.5], missing_eos_penalty=2.0)
    shaped = shape(shaping, [0.0, 0.0, 10.0, 10.0], cut=[0, 1, 0, 1])
    assert shaped == [-0.5, -2.5, 0.5, -1.5]
    assert shaping.state_dict() == pytest.approx({"count": 4.0, "mean": 5.0, "squares": 100.0})


def test_both_penalties_are_both_taken():
    shaping = instantiate(OFF, missing_eos_penalty=0.5, overlong_buffer=0.1, overlong_penalty=1.0)
    assert shape(shaping, [1.0, 1.0], lengths=[100, 100], cut=[1, 0]) == [-0.5, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overlong_buffer": 0.5}, "overlong_penalty: got None, .*needs both"),
        ({"overlong_penalty": 1.0}, "overlong_buffer: got None"),
        ({"clip": [1.0, 1.0]}, r"clip: got \[1\.0, 1\.0\]"),
        ({"clip": [1.0]}, r"clip: got \[1\.0\]"),
    ],
)
def test_fields_that_do_not_go_together_are_named(change, message):
    plain = {**OmegaConf.to_container(OFF), **change}
    plain.pop("_target_")
    with pytest.raises(ConfigError, match=rf"method\.shaping\.{message}"):
        Shaping(**plain)
