"""Whole runs against TRL's DPOTrainer: same weights, records a step, optimiser and schedule; ours from its YAML.

Where the two define something differently, and what is done about it here:

- Warm-up. TRL's first step of a warm-up has a learning rate of zero, ours the first rung above it. Here nothing warms
  up; the decay to zero is the same line in both.
- Order. Ours sorts a step's records by length before it cuts them into micro-batches, TRL takes them as they come. With
  as many records in each micro-batch neither the loss nor the gradient of a step knows.
- Uneven micro-batches. TRL averages the micro-batches' means, ours divides by the step's records: with 5 records in
  micro-batches of 2, TRL weighs the fifth twice as much as any other. The last test shows it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from equal_inputs import save_model, word_tokenizer, write_pairs
from safetensors.torch import load_file
from trl_peer import dpo_config, dpo_trainer

from runs import exported, job, metrics, train

VOCABULARY = 128
EPOCHS, RECORDS, BATCH, MICRO = 5, 16, 4, 2
STEPS = EPOCHS * RECORDS // BATCH
LEARNING_RATE, BETA, CLIP = 2e-3, 0.5, 6.0
#: Adam divides a gradient by its own size: at the usual 1e-8 the rounding of a gradient near zero is a step of its own.
EPSILON = 1e-5
LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}
METRICS = {
    "train/loss/total": "loss",
    "train/reward/chosen": "rewards/chosen",
    "train/reward/rejected": "rewards/rejected",
    "train/reward/margin": "rewards/margins",
    "train/reward/accuracy": "rewards/accuracies",
    "train/logps/chosen_sum_nats": "logps/chosen",
    "train/logps/rejected_sum_nats": "logps/rejected",
}


def lengths(count: int) -> list[tuple[int, int, int]]:
    """Uneven pairs: the longest side is now the chosen, now the rejected."""
    return [(3 + 5 * i % 11, 2 + 7 * i % 13, 2 + 11 * i % 17) for i in range(count)]


def inputs(tmp_path: Path, count: int) -> tuple[Path, Path]:
    folder, pairs = tmp_path / "start", tmp_path / "pairs.jsonl"
    save_model(folder, architecture="llama", config=LLAMA, seed=3)
    write_pairs(pairs, lengths=lengths(count), vocab_size=VOCABULARY, seed=5)
    return folder, pairs


def our_run(tmp_path: Path, folder: Path, pairs: Path, *overrides: str) -> Path:
    cfg = job(
        tmp_path,
        "model=pretrained",
        f"model.path={folder}",
        "data=jsonl",
        f"data.train.path={pairs}",
        "data.validation_size=0",
        f"data.batch_size={BATCH}",
        f"data.micro_batch_size={MICRO}",
        "data.shuffle=false",
        "reference=frozen_copy",
        f"method.beta={BETA}",
        f"optim.lr={LEARNING_RATE}",
        "optim.betas=[0.9,0.98]",
        f"optim.eps={EPSILON}",
        "schedule=linear",
        "schedule.warmup=0",
        f"trainer.max_epochs={EPOCHS}",
        f"trainer.gradient_clip_val={CLIP}",
        "trainer.log_every_n_steps=1",
        "callbacks.fresh_samples=null",
        "callbacks.checkpoint=null",
        "hardware.threads=1",
        *overrides,
        small=False,
    )
    return train(cfg, tmp_path / "ours")


def trl_run(
    tmp_path: Path, folder: Path, pairs: Path, **fields
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Returns what TRL logged at each step, and its final weights."""
    settings = {
        "per_device_train_batch_size": MICRO,
        "gradient_accumulation_steps": BATCH // MICRO,
        "learning_rate": LEARNING_RATE,
        "adam_beta2": 0.98,
        "adam_epsilon": EPSILON,
        "lr_scheduler_type": "linear",
        "max_grad_norm": CLIP,
        "beta": BETA,
        "num_train_epochs": EPOCHS,
    }
    config = dpo_config(tmp_path / "trl", **(settings | fields))
    trainer = dpo_trainer(model=str(folder), tokenizer=word_tokenizer(VOCABULARY), pairs=pairs, config=config)
    trainer.train()
    trainer.save_model(str(tmp_path / "trl" / "model"))
    history = [row for row in trainer.state.log_history if "rewards/chosen" in row]
    return history, load_file(tmp_path / "trl" / "model" / "model.safetensors")


def test_twenty_steps(tmp_path):
    folder, pairs = inputs(tmp_path, RECORDS)
    history, weights = trl_run(tmp_path, folder, pairs)
    run_dir = our_run(tmp_path, folder, pairs)
    rows = metrics(run_dir)
    assert sorted(rows) == [row["step"] for row in history] == list(range(1, STEPS + 1))
    for peer in history:
        row = rows[peer["step"]]
        assert row["train/loss/total"] == pytest.approx(peer["loss"], rel=1e-4), peer["step"]
        for name, peer_name in METRICS.items():
            assert row[name] == pytest.approx(peer[peer_name], rel=1e-4, abs=1e-4), (peer["step"], name)
    # Something was learnt, the norm was clipped now and not then, and the schedule moved: the agreement is not idle.
    assert max(abs(row["rewards/margins"]) for row in history) > 0.5
    assert max(row["grad_norm"] for row in history) > CLIP > min(row["grad_norm"] for row in history)
    assert history[-1]["learning_rate"] < 0.1 * history[0]["learning_rate"]
    ours, start = exported(run_dir), load_file(folder / "model.safetensors")
    assert set(ours) == set(weights)
    for name, value in weights.items():
        moved = (value - start[name]).abs().max().item()
        assert moved > 5e-3, name
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-3 * moved, msg=lambda m, n=name: f"{n}: {m}")


def test_uneven_micro_batches_weigh_records_alike_here_and_not_in_trl(tmp_path):
    """Ours in micro-batches of 2, 2 and 1 is TRL's run in one piece; TRL's own run in such micro-batches is another."""
    folder, pairs = inputs(tmp_path, 5)
    whole, _ = trl_run(tmp_path / "whole", folder, pairs, gradient_accumulation_steps=1, per_device_train_batch_size=5)
    pieces, _ = trl_run(tmp_path / "pieces", folder, pairs, gradient_accumulation_steps=3)
    rows = metrics(our_run(tmp_path, folder, pairs, "data.batch_size=6", "export=null"))
    expected = [row["loss"] for row in whole]
    assert len(expected) == EPOCHS
    assert [rows[step]["train/loss/total"] for step in sorted(rows)] == pytest.approx(expected, rel=1e-4)
    assert [row["loss"] for row in pieces] != pytest.approx(expected, rel=1e-2)
