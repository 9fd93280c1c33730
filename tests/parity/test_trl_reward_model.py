"""The reward model against TRL's RewardTrainer on the same weights and tokens: loss, gradients and what is logged.

Where the two define something differently:

- Soft labels. TRL has none: ties and divided votes are held against a NumPy twin only (tests/losses).
- The place that is read. TRL leaves it to transformers, which searches for the pad token; ours comes from lengths. They
  are the same wherever the pad token is no end-of-sequence token, which ours requires of a model that judges.
- Centering. Both add coefficient * mean((r_w + r_l)^2). TRL's default is off, as ours.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from hydra.utils import instantiate
from peer_case import assert_same, make_case, our_config, ours, trl, trl_inputs, trl_trainer
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from alignment.types import Head

METRICS = {"reward/accuracy": "accuracy", "reward/margin": "margin"}


@pytest.mark.parametrize("coefficient", [0.0, 0.01])
@pytest.mark.parametrize("margins", [False, True], ids=["plain", "margins"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)], ids=["64", "32"])
def test_loss_gradients_and_metrics(tmp_path, dtype, tolerance, margins, coefficient):
    case = make_case(tmp_path, dtype)
    overrides = ("method=reward_model", f"method.centering_coefficient={coefficient}")
    source = instantiate(our_config(case, *overrides).model, _convert_="all")
    source.load(Head.SCORE, seed=4).save_pretrained(case.start)
    if margins:
        case.rewrite(lambda place, row: row | {"margin": 0.3 * place})
    trainer = trl_trainer(
        case,
        RewardTrainer,
        RewardConfig,
        auto_model=AutoModelForSequenceClassification,
        center_rewards_coefficient=coefficient or None,
    )
    inputs = trl_inputs(trainer)
    if margins:
        inputs["margin"] = inputs["margin"].to(dtype)
    our, peer = ours(case, *overrides), trl(trainer, inputs)
    assert_same(our, peer, METRICS, loss=(tolerance, None), metric=(10 * tolerance, None), gradient=tolerance)
