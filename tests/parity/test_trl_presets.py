"""What is called TRL's convention equals the defaults of TRL's own config classes."""

from __future__ import annotations

from dataclasses import fields

import pytest

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from omegaconf import OmegaConf
from trl import GRPOConfig, RLOOConfig

from alignment.config.compose import compose, task_config

#: TRL's loss_type -> our normaliser, both with a clipped ratio.
NORMALISERS = {"grpo": "sequence", "dapo": "token", "dr_grpo": "constant"}


def composed(*overrides: str) -> dict:
    return OmegaConf.to_container(task_config(compose("train", [*overrides, "reward=length"])), resolve=True)


def defaults(config: type) -> dict:
    return {field.name: field.default for field in fields(config)}


def test_grpo():
    theirs = defaults(GRPOConfig)
    cfg = composed("method=grpo", "method/preset=trl")
    ours = cfg["method"]
    assert ours["normaliser"] == NORMALISERS[theirs["loss_type"]] == "token"
    assert (ours["kl"], cfg["reference"]) == (None, None)
    assert theirs["beta"] == 0.0
    assert ours["scale"] == theirs["scale_rewards"]
    assert ours["ratio"] == theirs["importance_sampling_level"]
    loss = ours["policy_loss"]
    assert loss["_target_"].endswith("clipped_ratio_loss")
    assert loss["clip_low"] == loss["clip_high"] == theirs["epsilon"]
    assert theirs["epsilon_high"] is None, "it is epsilon then"
    assert loss["dual_clip"] == theirs["delta"]
    plan = ours["rollouts"]
    assert plan["group_size"] == theirs["num_generations"]
    assert plan["epochs"] == theirs["num_iterations"]
    assert plan["truncated"] == ("mask" if theirs["mask_truncated_completions"] else "keep")


def test_rloo():
    """The overrides that docs/methods/rloo.md names."""
    theirs = defaults(RLOOConfig)
    ours = composed("method=rloo", "method/policy_loss=clipped", "method.rollouts.group_size=2")["method"]
    assert (ours["ratio"], ours["kl"]["place"], ours["kl"]["estimator"]) == ("sequence", "reward", "k1")
    assert ours["kl"]["coefficient"] == theirs["beta"]
    assert ours["policy_loss"]["clip_low"] == ours["policy_loss"]["clip_high"] == theirs["epsilon"]
    assert theirs["epsilon_high"] is None
    assert ours["rollouts"]["group_size"] == theirs["num_generations"]
    assert ours["rollouts"]["epochs"] == theirs["num_iterations"]
    assert ours["shaping"]["normalise"] == "none"
    assert not theirs["normalize_advantages"]
