"""DPO and TRL's DPOTrainer on the same weights and the same pairs, each through its own code from the text on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from equal_inputs import save_model, word_tokenizer, write_pairs
from hydra.utils import instantiate
from transformers import AutoModelForCausalLM
from trl_peer import dpo_config, dpo_trainer

from alignment.config.compose import compose, task_config
from alignment.data.datamodule import DataModule
from alignment.data.sources import FileSource
from alignment.data.tokenizer import TokenizerOptions
from alignment.methods.base import Parts
from alignment.models.backbone import PretrainedModel
from alignment.models.bundle import ModelBundle
from alignment.models.references import FrozenCopy
from alignment.types import PreferenceBatch

VOCABULARY = 64
#: Of the architecture's own configuration. GPT-2 has tied weights, absolute positions and a dropout to switch off.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2, "resid_pdrop": 0.1},
}
#: Tokens of prompt, chosen and rejected: the longest side is now the one, now the other.
LENGTHS = ((5, 9, 4), (3, 2, 12), (11, 7, 7), (2, 3, 2), (4, 10, 6))
#: Ours -> TRL's.
METRICS = {
    "reward/chosen": "rewards/chosen",
    "reward/rejected": "rewards/rejected",
    "reward/margin": "rewards/margins",
    "reward/accuracy": "rewards/accuracies",
    "logps/chosen_sum_nats": "logps/chosen",
    "logps/rejected_sum_nats": "logps/rejected",
}


@dataclass(frozen=True)
class Result:
    """What one system makes of the batch."""

    loss: float
    metrics: dict[str, float]
    gradients: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """Inputs on disk, read by both systems, and the arithmetic."""

    folder: Path
    pairs: Path
    work: Path
    dtype: torch.dtype
    moved: bool

    def policy_weights(self, model: torch.nn.Module) -> None:
        """Moves the policy away from its reference by the same steps for both systems."""
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter += (0.05 * noise).to(parameter.dtype)


def make_case(tmp_path: Path, family: str, dtype: torch.dtype, *rest: str) -> Case:
    """Writes weights and pairs; ``unmoved`` leaves the policy where its reference is."""
    save_model(tmp_path / "start", architecture=family, config=FAMILIES[family] | {"vocab_size": VOCABULARY}, seed=3)
    write_pairs(tmp_path / "pairs.jsonl", lengths=LENGTHS, vocab_size=VOCABULARY, seed=5)
    return Case(tmp_path / "start", tmp_path / "pairs.jsonl", tmp_path / "work", dtype, moved=not rest)


def ours(case: Case, *overrides: str) -> Result:
    """Runs the method as its YAML stands, with these overrides, on all pairs at once."""
    source = PretrainedModel(
        path=str(case.folder),
        revision=None,
        dtype="float32",
        attention="sdpa",
        quantization=None,
        gradient_checkpointing=False,
        compile=False,
        chunk_tokens=7,
        tokenizer=TokenizerOptions(None, None, None, None),
    )
    frozen = partial(FrozenCopy, refresh_every_n_steps=None, refresh_mix=1.0)
    bundle = ModelBundle(source=source, adapter=None, reference=frozen, seed=0)
    parts = Parts(bundle=bundle, optimizer=torch.optim.AdamW, schedule=None, cache_dir=case.work)
    cfg = task_config(compose("train", ["method=dpo", *overrides]))
    method = instantiate(cfg.method, _convert_="all")(parts=parts)
    method.configure_model()
    method.policy.to(case.dtype)
    assert bundle.reference is not None
    assert bundle.reference.frozen is not None
    bundle.reference.frozen.to(case.dtype)
    if case.moved:
        case.policy_weights(method.policy.hf_model)
    method.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    batch = our_batch(case, bundle.tokenizer)
    loss = method.training_step(batch, 0)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in method.policy.hf_model.named_parameters()}
    return Result(loss.item(), method.means(method.train_sums), gradients)


def our_batch(case: Case, tokenizer: Any) -> PreferenceBatch:
    data = DataModule(
        train=FileSource(path=str(case.pairs)),
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
        tokenizer=tokenizer,
        batch_type=PreferenceBatch,
        seed=0,
        cache_dir=case.work / "cache",
    )
    (batch,) = data.train_dataloader()
    return batch


def trl_trainer(case: Case, **fields: Any) -> Any:
    load = partial(AutoModelForCausalLM.from_pretrained, case.folder, dtype=torch.float32)
    policy, reference = load().to(case.dtype), load().to(case.dtype)
    if case.moved:
        case.policy_weights(policy)
    trainer = dpo_trainer(
        model=policy,
        reference=reference,
        tokenizer=word_tokenizer(VOCABULARY),
        pairs=case.pairs,
        config=dpo_config(case.work, model_init_kwargs=None, **fields),
    )
    trainer.model.train()
    return trainer


def trl(trainer: Any, rows: list[dict[str, Any]]) -> Result:
    """Runs TRL's collator and loss on some of its own tokenised rows."""
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    gradients = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}
    return Result(loss.item(), metrics, gradients)


def trl_smoothed(trainer: Any) -> Result:
    """Averages TRL's conservative DPO over pairs, one at a time."""
    results = [trl(trainer, [row]) for row in trainer.train_dataset]
    count = len(results)
    return Result(
        sum(result.loss for result in results) / count,
        {name: sum(result.metrics[name] for result in results) / count for name in results[0].metrics},
        {name: sum(result.gradients[name] for result in results) / count for name in results[0].gradients},
    )


class PlainHead:
    """Stands in for TRL's fused head: the same log-probs from a log-softmax in the model's own precision."""

    @staticmethod
    def apply(hidden, weight, bias, targets, temperature, chunk_size, softcap, scale, outputs):
        assert (temperature, softcap, scale) == (1.0, None, 1.0)
        logits = torch.nn.functional.linear(hidden, weight, bias)
        logps = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        # Entropy and the like are logged by TRL only; zeros of the right type keep it going.
        flags = torch.zeros(len(targets), dtype=torch.bool)
        nothing = torch.zeros(len(targets), dtype=hidden.dtype)
        collision = (2 * logits.log_softmax(-1)).logsumexp(-1) if "log_sum_sq_probs" in outputs else None
        entropy, mean_logits = (nothing if name in outputs else None for name in ("entropy", "mean_logits"))
        return logps, entropy, collision, mean_logits, flags


def assert_same(
    our: Result, peer: Result, *, loss: float, metric: float, gradient: float, metrics: tuple[str, ...] = tuple(METRICS)
) -> None:
    """Compares losses, those metrics that both define alike, and every gradient in units of the largest."""
    assert our.loss == pytest.approx(peer.loss, rel=loss, abs=loss)
    for name in metrics:
        peer_name = METRICS[name]
        assert our.metrics[name] == pytest.approx(peer.metrics[peer_name], rel=metric, abs=metric), name
    assert set(our.gradients) == set(peer.gradients)
    scale = max(value.abs().max().item() for value in peer.gradients.values())
    assert scale > 1e-3
    for name, value in our.gradients.items():
        torch.testing.assert_close(
            value, peer.gradients[name], rtol=0, atol=gradient * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
