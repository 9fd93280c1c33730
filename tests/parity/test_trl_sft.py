"""SFT against TRL's SFTTrainer on the same weights and tokens: loss, gradients and what is logged.

Both take the cross-entropy of the same tokens: the completion's with its end-of-sequence token, or with
``train_on_prompt=true`` (TRL: ``completion_only_loss=False``) all but the first, which nothing predicts. Where the two
define something differently:

- Averages. TRL's cross-entropy has ``normaliser=token`` alone. In training it divides by the tokens of the whole
  optimiser step, as ours. In evaluation it takes the mean of each micro-batch's tokens, and of these means one that is
  weighted by records: that depends on how records are put together.
- What is logged. TRL's accuracy and entropy are of the tokens that are learnt; ours are of completions alone. They are
  the same without ``train_on_prompt``.
- Dropout. TRL leaves it on where the checkpoint has it, as GPT-2's; ours is always off. Here TRL's is switched off.
- Truncation. TRL cuts to 1024 tokens as it ships; ours to ``data.max_length``. All records here are shorter.
- Rounding. As in test_trl_dpo.py: the float64 cases replace TRL's fp32 head by a plain log-softmax.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from peer_case import FAMILIES, Case, assert_same, make_case, our_batch, ours, result, trl, trl_inputs, trl_trainer
from trl import SFTConfig, SFTTrainer

#: By what is learnt: our overrides, and TRL's setting.
LEARNT: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "completion": (("method=sft", "method.normaliser=token"), {}),
    "prompt too": (
        ("method=sft", "method.normaliser=token", "method.train_on_prompt=true"),
        {"completion_only_loss": False},
    ),
}
LOGGED = {"policy/token_accuracy": "mean_token_accuracy", "policy/entropy_nats": "entropy"}


def demonstrations(folder: Path, dtype: torch.dtype, family: str = "llama") -> Case:
    case = make_case(folder, dtype, family=family)
    case.rewrite(lambda _, row: {"prompt": row["prompt"], "completion": row["chosen"]})
    return case


def sft_trainer(case: Case, **fields: Any) -> Any:
    """TRL's trainer, with the model's dropout switched off."""
    trainer = trl_trainer(case, SFTTrainer, SFTConfig, **fields)
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return trainer


@pytest.mark.parametrize("learnt", LEARNT)
def test_both_learn_the_same_tokens(tmp_path, learnt):
    overrides, fields = LEARNT[learnt]
    case = demonstrations(tmp_path, torch.float64)
    inputs = trl_inputs(sft_trainer(case, **fields))
    theirs = [row[1:][row[1:] != -100].tolist() for row in inputs["labels"]]
    _, batch = our_batch(case, *overrides)
    tokens = batch.tokens
    mine = [tokens.targets[tokens.sequence_index == place].tolist() for place in range(tokens.num_sequences)]
    assert sorted(mine) == sorted(theirs)
    assert batch.counts["tokens"] == sum(map(len, theirs)) == {"completion": 31, "prompt too": 51}[learnt]
    assert batch.counts["real_tokens"] == inputs["attention_mask"].sum()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("learnt", LEARNT)
def test_float64(tmp_path, family, learnt):
    overrides, fields = LEARNT[learnt]
    case = demonstrations(tmp_path, torch.float64, family)
    trainer = sft_trainer(case, **fields)
    our, peer = ours(case, *overrides), trl(trainer, trl_inputs(trainer))
    # Llama's norms stay in fp32
    assert_same(our, peer, {}, loss=(1e-7, None), metric=(0, None), gradient=1e-6)


@pytest.mark.parametrize("learnt", LEARNT)
def test_fp32_as_trl_ships(tmp_path, learnt):
    overrides, fields = LEARNT[learnt]
    case = demonstrations(tmp_path, torch.float32)
    trainer = sft_trainer(case, **fields)
    our, peer = ours(case, *overrides), trl(trainer, trl_inputs(trainer))
    logged = LOGGED if learnt == "completion" else {}
    assert_same(our, peer, logged, loss=(1e-5, None), metric=(1e-5, 1e-5), gradient=1e-5)


@pytest.mark.parametrize("learnt", LEARNT)
def test_over_several_micro_batches_both_divide_by_the_tokens_of_the_step(tmp_path, learnt):
    overrides, fields = LEARNT[learnt]
    case = demonstrations(tmp_path, torch.float32)
    trainer = sft_trainer(case, **fields)
    rows = list(trainer.train_dataset)
    pieces, count = trainer.get_batch_samples(
        iter([trainer.data_collator(rows[start : start + 2]) for start in (0, 2, 4)]), 3, torch.device("cpu")
    )
    shares = [trainer.compute_loss(trainer.model, dict(piece), num_items_in_batch=count) for piece in pieces]
    our, peer = ours(case, *overrides), result(torch.stack(shares).sum(), {}, trainer.model)
    assert_same(our, peer, {}, loss=(1e-5, None), metric=(0, None), gradient=1e-5)


def test_trls_evaluation_depends_on_its_micro_batches(tmp_path):
    """As said above; ours is over all held-out tokens."""
    case = demonstrations(tmp_path, torch.float32)
    our, peers = ours(case, "method=sft", "method.normaliser=token").loss, {}
    for size in (2, 5):
        trainer = sft_trainer(case, per_device_eval_batch_size=size)
        peers[size] = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    assert peers[5] == pytest.approx(our, rel=1e-5)
    assert peers[2] != pytest.approx(our, rel=1e-3)


def test_trl_has_no_mean_over_demonstrations(tmp_path):
    """The reason for naming the normaliser: weighing demonstrations alike is another loss."""
    case = demonstrations(tmp_path, torch.float32)
    trainer = sft_trainer(case)
    our, peer = ours(case, "method=sft", "method.normaliser=sequence"), trl(trainer, trl_inputs(trainer))
    assert our.loss != pytest.approx(peer.loss, rel=1e-3)


def test_trl_leaves_dropout_on(tmp_path):
    """The reason for switching it off: if TRL changes, this says so."""
    case = demonstrations(tmp_path, torch.float32, "gpt2")
    trainer = trl_trainer(case, SFTTrainer, SFTConfig)
    inputs = trl_inputs(trainer)
    torch.manual_seed(0)
    losses = [trl(trainer, dict(inputs)).loss for _ in range(2)]
    assert losses[0] != losses[1]
