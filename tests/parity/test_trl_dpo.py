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
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from equal_inputs import word_tokenizer
from peer_case import (
    FAMILIES,
    LENGTHS,
    VOCABULARY,
    Case,
    PlainHead,
    Result,
    assert_same,
    make_case,
    our_batch,
    ours,
    trl,
    trl_smoothed,
    trl_trainer,
)

SETTINGS = [(0.1, 0.0), (0.5, 0.0), (0.1, 0.2), (0.5, 0.2)]


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return make_case(tmp_path, *request.param)


def both(case: Case, beta: float, label_smoothing: float) -> tuple[Result, Result]:
    our = ours(case, f"method.beta={beta}", f"method.loss.label_smoothing={label_smoothing}")
    if label_smoothing:
        trainer = trl_trainer(case, beta=beta, label_smoothing=label_smoothing, loss_type=["aot"])
        return our, trl_smoothed(trainer)
    trainer = trl_trainer(case, beta=beta)
    return our, trl(trainer, list(trainer.train_dataset))


@pytest.mark.parametrize("case", [("llama", torch.float64)], indirect=True)
def test_both_tokenise_alike(case):
    """Row by row the ids and the places that count are the same, in whatever order rows stand in the batch."""
    trainer = trl_trainer(case)
    peer = trainer.data_collator(list(trainer.train_dataset))
    batch = our_batch(case, word_tokenizer(VOCABULARY))
    width, tokens = batch.tokens.input_ids.shape[1], batch.tokens
    scored = torch.zeros(tokens.input_ids.numel(), dtype=torch.bool)
    scored[tokens.predictor_index + 1] = True
    mine = list(zip(tokens.input_ids.tolist(), scored.view(-1, width).tolist(), strict=True))
    theirs = list(zip(peer["input_ids"].tolist(), peer["completion_mask"].bool().tolist(), strict=True))
    half = len(LENGTHS)
    assert sorted(mine[:half]) == sorted(theirs[:half])
    assert sorted(mine[half:]) == sorted(theirs[half:])
    assert tokens.num_real_tokens == peer["attention_mask"].sum() == sum(2 * p + c + r for p, c, r in LENGTHS)


@pytest.mark.parametrize("case", [(family, torch.float64) for family in FAMILIES], indirect=True, ids=FAMILIES)
@pytest.mark.parametrize(("beta", "label_smoothing"), SETTINGS)
def test_float64(case, beta, label_smoothing, monkeypatch):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", PlainHead)
    our, peer = both(case, beta, label_smoothing)
    assert_same(our, peer, loss=1e-9, metric=1e-7, gradient=1e-6)  # Llama's norms stay in fp32


@pytest.mark.parametrize("case", [(family, torch.float32) for family in FAMILIES], indirect=True, ids=FAMILIES)
@pytest.mark.parametrize(("beta", "label_smoothing"), [(0.1, 0.0), (0.5, 0.2)])
def test_fp32_as_trl_ships(case, beta, label_smoothing):
    our, peer = both(case, beta, label_smoothing)
    assert_same(our, peer, loss=1e-5, metric=1e-5, gradient=1e-5)


@pytest.mark.parametrize("case", [("llama", torch.float32, "unmoved")], indirect=True)
def test_at_the_start_both_log_ties_as_wrong(case):
    our = ours(case)
    trainer = trl_trainer(case, beta=0.1)
    peer = trl(trainer, list(trainer.train_dataset))
    assert our.loss == pytest.approx(math.log(2), abs=1e-6)
    assert peer.loss == pytest.approx(math.log(2), abs=1e-6)
    assert our.metrics["reward/accuracy"] == peer.metrics["rewards/accuracies"] == 0.0


@pytest.mark.parametrize("case", [("llama", torch.float32)], indirect=True)
def test_trls_sigmoid_takes_no_notice_of_label_smoothing(case):
    """The reason for holding smoothed losses against ``aot``: if TRL changes, this says so."""
    losses = []
    for smoothing in (0.0, 0.2):
        trainer = trl_trainer(case, beta=0.5, label_smoothing=smoothing)
        losses.append(trl(trainer, list(trainer.train_dataset)).loss)
    assert losses[0] == losses[1]
    assert ours(case, "method.beta=0.5", "method.loss.label_smoothing=0.2").loss != pytest.approx(losses[1], rel=1e-3)
