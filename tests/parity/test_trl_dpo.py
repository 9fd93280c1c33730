"""DPO against TRL's DPOTrainer on the same weights and tokens: loss, gradients and what is logged.

Where the two define something differently:

- Label smoothing. TRL's ``sigmoid`` loss takes no notice of ``label_smoothing``; conservative DPO is its ``aot`` loss
  on batches of one pair, where sorting the batch changes nothing. That is what ours is held against, pair by pair.
- Accuracy. A tie counts as wrong in both (a strict ``>``): both log 0 where the policy is the reference.
- Log-probs. Both log sums over the completion, its end-of-sequence token included, never the prompt.
- Averages. On one micro-batch both average over pairs. Over several, TRL averages the micro-batches' averages and ours
  divides by the pairs of the whole step: see test_trl_dpo_run.py.
- Rounding. TRL's head reduces logits to log-probs in fp32 even in a float64 model. The float64 cases below run all of
  TRL but that: its head is replaced by a plain log-softmax. The fp32 cases run TRL as it is.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from peer_case import (
    ACCURACY,
    FAMILIES,
    LENGTHS,
    REWARDS,
    SUMS,
    Case,
    Result,
    assert_same,
    make_case,
    our_batch,
    ours,
    trl,
    trl_inputs,
    trl_trainer,
)
from trl import DPOConfig, DPOTrainer

METRICS = REWARDS | ACCURACY | SUMS
SETTINGS = [(0.1, 0.0), (0.5, 0.0), (0.1, 0.2), (0.5, 0.2)]
dpo_trainer = partial(trl_trainer, trainer=DPOTrainer, config=DPOConfig, has_reference=True)


def both(case: Case, beta: float, label_smoothing: float) -> tuple[Result, Result]:
    our = ours(case, "method=dpo", f"method.beta={beta}", f"method.loss.label_smoothing={label_smoothing}")
    if label_smoothing:
        return our, trl_smoothed(dpo_trainer(case, beta=beta, label_smoothing=label_smoothing, loss_type=["aot"]))
    trainer = dpo_trainer(case, beta=beta)
    return our, trl(trainer, trl_inputs(trainer))


def trl_smoothed(trainer: Any) -> Result:
    """Averages TRL's conservative DPO over pairs, one at a time."""
    results = [trl(trainer, trainer.data_collator([row])) for row in trainer.train_dataset]
    count = len(results)
    return Result(
        sum(result.loss for result in results) / count,
        {name: sum(result.metrics[name] for result in results) / count for name in results[0].metrics},
        {name: torch.stack([result.gradients[name] for result in results]).mean(0) for name in results[0].gradients},
    )


def test_both_tokenise_alike(tmp_path):
    """Row by row the ids and the places that count are the same, in whatever order rows stand in the batch."""
    case = make_case(tmp_path, torch.float64)
    peer = trl_inputs(dpo_trainer(case))
    _, batch = our_batch(case, "method=dpo")
    width, tokens = batch.tokens.input_ids.shape[1], batch.tokens
    scored = torch.zeros(tokens.input_ids.numel(), dtype=torch.bool)
    scored[tokens.predictor_index + 1] = True
    mine = list(zip(tokens.input_ids.tolist(), scored.view(-1, width).tolist(), strict=True))
    theirs = list(zip(peer["input_ids"].tolist(), peer["completion_mask"].bool().tolist(), strict=True))
    half = len(LENGTHS)
    assert sorted(mine[:half]) == sorted(theirs[:half])
    assert sorted(mine[half:]) == sorted(theirs[half:])
    assert tokens.num_real_tokens == peer["attention_mask"].sum() == sum(2 * p + c + r for p, c, r in LENGTHS)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("beta", "label_smoothing"), SETTINGS)
def test_float64(tmp_path, family, beta, label_smoothing):
    our, peer = both(make_case(tmp_path, torch.float64, family=family, moved=True), beta, label_smoothing)
    # Llama's norms stay in fp32
    assert_same(our, peer, METRICS, loss=(1e-9, 1e-9), metric=(1e-7, 1e-7), gradient=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("beta", "label_smoothing"), [(0.1, 0.0), (0.5, 0.2)])
def test_fp32_as_trl_ships(tmp_path, family, beta, label_smoothing):
    our, peer = both(make_case(tmp_path, torch.float32, family=family, moved=True), beta, label_smoothing)
    assert_same(our, peer, METRICS, loss=(1e-5, 1e-5), metric=(1e-5, 1e-5), gradient=1e-5)


def test_at_the_start_both_log_ties_as_wrong(tmp_path):
    our, peer = both(make_case(tmp_path, torch.float32), 0.1, 0.0)
    assert our.loss == pytest.approx(math.log(2), abs=1e-6)
    assert peer.loss == pytest.approx(math.log(2), abs=1e-6)
    assert our.metrics["reward/accuracy"] == peer.metrics["rewards/accuracies"] == 0.0


def test_trls_sigmoid_takes_no_notice_of_label_smoothing(tmp_path):
    """The reason for holding smoothed losses against ``aot``: if TRL changes, this says so."""
    case = make_case(tmp_path, torch.float32, moved=True)
    losses = []
    for smoothing in (0.0, 0.2):
        trainer = dpo_trainer(case, beta=0.5, label_smoothing=smoothing)
        losses.append(trl(trainer, trl_inputs(trainer)).loss)
    assert losses[0] == losses[1]
    our = ours(case, "method=dpo", "method.beta=0.5", "method.loss.label_smoothing=0.2")
    assert our.loss != pytest.approx(losses[1], rel=1e-3)
