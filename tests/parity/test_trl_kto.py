"""KTO against TRL's KTOTrainer on the same weights and tokens: loss, gradients and what is logged.

Where the two define something differently:

- Mismatched pairs. TRL gives each prompt the completion of the row before it in its batch, which may be of the same
  prompt. Ours are fixed for the whole data set and never of one prompt. Here TRL's rows get ours in place of its own.
- z0 over several micro-batches. TRL has one for each micro-batch of all ranks, ours is one for the whole optimiser
  step. On one micro-batch, as here, they are the same.
- APO-zero-unpaired is a loss of its own in TRL and ``z0=zero`` here.
- Averages. TRL averages over the records of a micro-batch, ours divides by those of the whole step.
- Rounding. As in test_trl_dpo.py: the float64 cases replace TRL's fp32 head by a plain log-softmax.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from peer_case import (
    FAMILIES,
    REWARDS,
    SUMS,
    Case,
    Result,
    assert_same,
    make_case,
    our_batch,
    ours,
    trl,
    trl_trainer,
)
from trl import KTOConfig, KTOTrainer

from alignment.types import BinaryBatch, Mismatched

#: Tokens of prompt and completion (the third is not used), and the labels: more up than down.
LENGTHS = ((5, 9, 2), (3, 2, 2), (11, 7, 2), (2, 3, 2), (4, 10, 2), (6, 4, 2), (3, 8, 2))
LABELS = (True, False, True, True, False, True, True)
METRICS = REWARDS | SUMS | {"kl/z0_nats": "kl"}
SETTINGS = {
    "plain": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "weighted": {"beta": 0.5, "desirable_weight": 0.6, "undesirable_weight": 1.4},
}
#: Weights whose z0 is above 0, and such whose mean on mismatched pairs is below 0 and clamped.
ABOVE = {"llama": 5, "gpt2": 3}
CLAMPED = {"llama": 3, "gpt2": 4}


def thumbs(tmp_path: Path, dtype: torch.dtype, family: str, seed: int) -> Case:
    case = make_case(tmp_path, dtype, family=family, moved=True, lengths=LENGTHS, seed=seed)
    case.rewrite(lambda i, row: {"prompt": row["prompt"], "completion": row["chosen"], "label": LABELS[i]})
    return case


def completions(batch: BinaryBatch | Mismatched) -> dict[int, list[int]]:
    """The completion's ids by the record's line in the file, counted from 0."""
    tokens = batch.tokens
    lines = [int(name.rsplit(":", 1)[1]) - 1 for name in batch.ids]
    return {line: tokens.targets[tokens.sequence_index == place].tolist() for place, line in enumerate(lines)}


def crossed_rows(trainer: KTOTrainer, batch: BinaryBatch) -> list[dict]:
    """TRL's own tokenised rows, with our mismatched pairs."""
    rows = [dict(row) for row in trainer.train_dataset]
    own = completions(batch)
    assert [row["completion_ids"] for row in rows] == [own[line] for line in range(len(rows))]
    if "KL_completion_ids" in rows[0]:
        crossed = completions(batch.mismatched[0])
        rows = [row | {"KL_completion_ids": crossed[line]} for line, row in enumerate(rows)]
    return rows


def both(case: Case, loss_type: str, setting: str) -> tuple[Result, Result]:
    fields = SETTINGS[setting]
    z0 = "mismatched" if loss_type == "kto" else "zero"
    overrides = ("method=kto", f"method.z0={z0}", *(f"method.{name}={value}" for name, value in fields.items()))
    settings = {"loss_type": loss_type, "per_device_train_batch_size": len(LENGTHS)} | fields
    trainer = trl_trainer(case, KTOTrainer, KTOConfig, has_reference=True, **settings)
    _, batch = our_batch(case, *overrides)
    return ours(case, *overrides), trl(trainer, trainer.data_collator(crossed_rows(trainer, batch)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_float64(tmp_path, family, loss_type, setting):
    our, peer = both(thumbs(tmp_path, torch.float64, family, ABOVE[family]), loss_type, setting)
    assert_same(our, peer, METRICS, loss=(1e-6, None), metric=(1e-6, 1e-6), gradient=1e-6)
    assert (our.metrics["kl/z0_nats"] > 0.1) == (loss_type == "kto")


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_clamped(tmp_path, family):
    our, peer = both(thumbs(tmp_path, torch.float64, family, CLAMPED[family]), "kto", "weighted")
    assert_same(our, peer, METRICS, loss=(1e-6, None), metric=(1e-6, 1e-6), gradient=1e-6)
    assert our.metrics["kl/z0_nats"] == 0.0


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_fp32_as_trl_ships(tmp_path, loss_type):
    our, peer = both(thumbs(tmp_path, torch.float32, "llama", ABOVE["llama"]), loss_type, "weighted")
    assert_same(our, peer, METRICS, loss=(2e-5, None), metric=(2e-5, 2e-5), gradient=2e-5)
