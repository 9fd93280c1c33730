"""PPO's critic: its warm-up leaves the policy alone, and what its word may not stand in for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from online_tester import SEVERAL, OnlineTester

from alignment.utils.errors import ConfigError

from runs import exported, job, metrics, train

TESTER = OnlineTester(("method=ppo", *SEVERAL, "method.rollouts.group_size=2"))


def test_only_the_critic_learns_while_it_warms_up(tmp_path):
    overrides = (*TESTER.all, "method.critic_warmup_steps=100", "optim.lr=1e-2", "trainer.max_steps=4")
    rows = metrics(train(job(tmp_path, *overrides), tmp_path / "run"))
    assert rows[4]["train/kl/policy_old_token_nats"] == 0.0
    assert rows[4]["train/loss/value"] < rows[1]["train/loss/value"]


@pytest.mark.parametrize(
    ("shaping", "key"),
    [
        (("method.shaping.missing_eos_penalty=1",), "missing_eos_penalty"),
        (("method.shaping.overlong_penalty=1", "method.shaping.overlong_buffer=0.2"), "overlong_penalty"),
    ],
)
def test_a_penalty_that_bootstrap_would_forgive_is_refused(shaping, key, tmp_path):
    """It would pay to be cut off: the critic's word stands in the reward's place, penalty and all."""
    overrides = (*TESTER.all, "method.rollouts.truncated=bootstrap", *shaping)
    with pytest.raises(ConfigError, match=rf"method\.shaping\.{key}: got 1.*, expected null with .*bootstrap"):
        train(job(tmp_path, *overrides), tmp_path / "run")


@pytest.mark.parametrize("critic", ["separate", "value_head"])
def test_the_policys_first_step_after_the_warm_up_is_a_first_step(critic, tmp_path):
    """AdamW's moments know nothing of the warm-up: a first step is as long as the learning rate, not longer."""
    start = weights_after(tmp_path / "start", 0, critic=critic, warmup=0)
    warm = weights_after(tmp_path / "warm", 3, critic=critic, warmup=3)
    assert max((warm[name] - start[name]).abs().max().item() for name in start) < 1e-20
    after = weights_after(tmp_path / "after", 4, critic=critic, warmup=3)
    longest = max((after[name] - start[name]).abs().max().item() for name in start)
    assert longest == pytest.approx(1e-3, rel=1e-3)


def weights_after(folder: Path, steps: int, *, critic: str, warmup: int) -> dict[str, torch.Tensor]:
    """The policy that a run exports; one without steps has what it started from."""
    overrides = (
        *TESTER.all,
        f"critic={critic}",
        f"method.critic_warmup_steps={warmup}",
        f"trainer.max_steps={max(steps, 1)}",
        f"optim.lr={1e-3 if steps else 1e-30}",
        "schedule=constant",
        "schedule.warmup=0",
    )
    return exported(train(job(folder, *overrides), folder / "run"))
