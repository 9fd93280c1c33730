"""The first steps of every online method are on record."""

from __future__ import annotations

import pytest
from online_tester import OnlineTester

GRPO = ("method=grpo", "method.rollouts.group_size=4")
REINFORCE_PP = ("method=reinforce_pp", "method.rollouts.group_size=4")
CURVES = {
    **{
        f"grpo_{name}": (*GRPO, f"method/preset={name}") for name in ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "trl")
    },
    **{f"ppo_{name}": ("method=ppo", f"critic={name}") for name in ("separate", "value_head")},
    "rloo": ("method=rloo",),
    "rloo_trl": ("method=rloo", "method.rollouts.group_size=2", "method/policy_loss=clipped"),
    **{f"reinforce_pp_{name}": (*REINFORCE_PP, f"method.baseline={name}") for name in ("none", "group_mean")},
    "online_dpo": ("method=online_dpo",),
    "online_ipo": ("method=online_ipo",),
}


@pytest.mark.parametrize("name", CURVES)
def test_golden_curve(tmp_path, name):
    OnlineTester(CURVES[name]).check_golden(tmp_path, name)
