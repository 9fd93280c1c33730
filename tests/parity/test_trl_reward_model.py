"""The reward model against TRL's RewardTrainer on the same weights and tokens: loss, gradients and what is logged.

Where the two define something differently:

- Soft labels. TRL has none: ties and divided votes are held against a NumPy twin only (tests/losses).
- The place that is read. TRL leaves it to transformers, which searches for the pad token; ours comes from lengths. They
  are the same wherever the pad token is no end-of-sequence token, which ours requires of a model that judges.
- Centering. Both add coefficient * mean((r_w + r_l)^2). TRL's default is off, as ours.
"""

from __future__ import annotations

import json

import lightning.pytorch as pl
import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from datasets import load_dataset
from equal_inputs import save_model, word_tokenizer, write_pairs
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from alignment.data.datamodule import DataModule
from alignment.data.sources import FileSource
from alignment.data.tokenizer import TokenizerOptions
from alignment.methods.base import Parts
from alignment.methods.reward_model import RewardModel
from alignment.models.backbone import PretrainedModel
from alignment.models.bundle import ModelBundle
from alignment.types import Head, PreferenceBatch

VOCABULARY = 64
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
LENGTHS = ((5, 9, 4), (3, 2, 12), (11, 7, 7), (2, 3, 2), (4, 10, 6))
METRICS = {"reward/accuracy": "accuracy", "reward/margin": "margin"}


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path / "start", architecture="llama", config=LLAMA | {"vocab_size": VOCABULARY}, seed=3)
    source(tmp_path / "start").load(Head.SCORE, seed=4).save_pretrained(tmp_path / "start")
    write_pairs(tmp_path / "plain.jsonl", lengths=LENGTHS, vocab_size=VOCABULARY, seed=5)
    rows = [json.loads(line) for line in (tmp_path / "plain.jsonl").read_text("utf-8").splitlines()]
    rows = [row | {"margin": 0.3 * place} for place, row in enumerate(rows)]
    (tmp_path / "margins.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return tmp_path


def source(path) -> PretrainedModel:
    return PretrainedModel(
        path=str(path),
        revision=None,
        dtype="float32",
        attention="sdpa",
        quantization=None,
        gradient_checkpointing=False,
        compile=False,
        chunk_tokens=7,
        tokenizer=TokenizerOptions(None, None, None, None),
    )


def ours(folder, file, dtype, coefficient):
    bundle = ModelBundle(source=source(folder / "start"), adapter=None, reference=None, seed=0, head=Head.SCORE)
    parts = Parts(bundle=bundle, optimizer=torch.optim.AdamW, schedule=None, cache_dir=folder)
    method = RewardModel(centering_coefficient=coefficient, parts=parts)
    method.configure_model()
    method.reward.to(dtype)
    method.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    data = DataModule(
        train=FileSource(path=str(folder / file)),
        validation=None,
        validation_size=0,
        batch_size=len(LENGTHS),
        micro_batch_size=len(LENGTHS),
        max_length=64,
        max_prompt_length=None,
        truncate_prompt="error",
        truncate_completion="error",
        on_bad_row="error",
        limit=None,
        shuffle=False,
        num_workers=0,
        num_proc=None,
        tokenizer=bundle.tokenizer,
        batch_type=PreferenceBatch,
        seed=0,
        cache_dir=folder / "cache",
        soft_labels=True,
    )
    (batch,) = data.train_dataloader()
    loss = method.training_step(batch, 0)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in method.reward.hf_model.named_parameters()}
    return loss.item(), method.means(method.train_sums), gradients


def trl(folder, file, dtype, coefficient):
    model = AutoModelForSequenceClassification.from_pretrained(folder / "start", dtype=torch.float32).to(dtype)
    config = RewardConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        max_length=64,
        disable_dropout=True,
        center_rewards_coefficient=coefficient or None,
        dataloader_pin_memory=False,
    )
    rows = load_dataset("json", data_files=str(folder / file), split="train", cache_dir=str(folder / "datasets"))
    trainer = RewardTrainer(model=model, args=config, train_dataset=rows, processing_class=word_tokenizer(VOCABULARY))
    model.train()
    inputs = trainer.data_collator(list(trainer.train_dataset))
    if "margin" in inputs:
        inputs["margin"] = inputs["margin"].to(dtype)
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items() if isinstance(values, list)}
    return loss.item(), metrics, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("coefficient", [0.0, 0.01])
@pytest.mark.parametrize("file", ["plain.jsonl", "margins.jsonl"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)], ids=["64", "32"])
def test_loss_gradients_and_metrics(folder, dtype, tolerance, file, coefficient):
    our_loss, our_metrics, our_gradients = ours(folder, file, dtype, coefficient)
    loss, metrics, gradients = trl(folder, file, dtype, coefficient)
    assert our_loss == pytest.approx(loss, rel=tolerance)
    for name, peer in METRICS.items():
        assert our_metrics[name] == pytest.approx(metrics[peer], rel=10 * tolerance), name
    assert set(our_gradients) == set(gradients)
    scale = max(value.abs().max().item() for value in gradients.values())
    assert scale > 1e-3
    for name, value in our_gradients.items():
        torch.testing.assert_close(
            value, gradients[name], rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
