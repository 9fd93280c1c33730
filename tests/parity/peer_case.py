"""A method of ours and a trainer of TRL's on the same weights and records, each through its own code from text on.

A parity test makes a :class:`Case`, hands it to :func:`ours` with the overrides of a run, hands it to
:func:`trl_trainer` and :func:`trl` with TRL's settings, and compares the two :class:`Result` with :func:`assert_same`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from datasets import load_dataset
from equal_inputs import PairLengths, save_model, word_tokenizer, write_pairs
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig
from transformers import AutoModelForCausalLM

from alignment.config.compose import compose, task_config
from alignment.methods.base import Method, Parts
from alignment.models.bundle import ModelBundle

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
LENGTHS: tuple[PairLengths, ...] = ((5, 9, 4), (3, 2, 12), (11, 7, 7), (2, 3, 2), (4, 10, 6))
#: Metrics, ours -> TRL's.
REWARDS = {
    "reward/chosen": "rewards/chosen",
    "reward/rejected": "rewards/rejected",
    "reward/margin": "rewards/margins",
}
ACCURACY = {"reward/accuracy": "rewards/accuracies"}
SUMS = {"logps/chosen_sum_nats": "logps/chosen", "logps/rejected_sum_nats": "logps/rejected"}
#: Relative and absolute, for pytest's ``approx``, which takes the larger of the two; ``None`` is its own 1e-12.
Tolerance = tuple[float, float | None]


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
    dtype: torch.dtype
    moved: bool

    @property
    def start(self) -> Path:
        """The weights."""
        return self.folder / "start"

    @property
    def records(self) -> Path:
        """A record a line."""
        return self.folder / "records.jsonl"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The records."""
        return [json.loads(line) for line in self.records.read_text("utf-8").splitlines()]

    def rewrite(self, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
        """Changes each record, given its place."""
        rows = [change(place, row) for place, row in enumerate(self.rows)]
        self.records.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def move(self, model: torch.nn.Module) -> None:
        """Moves the policy away from its reference by the same steps for both systems."""
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters() if self.moved else ()):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter += (0.05 * noise).to(parameter.dtype)


def make_case(
    folder: Path,
    dtype: torch.dtype,
    *,
    family: str = "llama",
    moved: bool = False,
    lengths: tuple[PairLengths, ...] = LENGTHS,
    seed: int = 3,
) -> Case:
    """Writes weights, drawn from the seed, and pairs; unmoved, the policy is its reference."""
    case = Case(folder, dtype, moved)
    save_model(case.start, architecture=family, config=FAMILIES[family] | {"vocab_size": VOCABULARY}, seed=seed)
    write_pairs(case.records, lengths=lengths, vocab_size=VOCABULARY, seed=5)
    return case


def our_config(case: Case, *overrides: str) -> DictConfig:
    """The configuration of a run on the case's inputs, all records in one batch."""
    everything = len(case.rows)
    inputs = (
        "model=pretrained",
        f"model.path={case.start}",
        "model.chunk_tokens=7",
        "data=jsonl",
        f"data.train.path={case.records}",
        "data.validation_size=0",
        f"data.batch_size={everything}",
        f"data.micro_batch_size={everything}",
        "data.max_length=64",
        "data.max_prompt_length=null",
        "data.truncate_prompt=error",
        "data.truncate_completion=error",
        "data.shuffle=false",
    )
    return task_config(compose("train", [*inputs, *overrides]))


def our_batch(case: Case, *overrides: str) -> tuple[Method, Any]:
    """The method as its YAML stands, with these overrides and no weights yet, and its batch."""
    cfg = our_config(case, *overrides)
    bundle = ModelBundle(
        source=instantiate(cfg.model, _convert_="all"),
        adapter=None,
        reference=None if cfg.reference is None else instantiate(cfg.reference),
        seed=0,
        head=get_class(cfg.method._target_).head,
    )
    parts = Parts(
        bundle=bundle,
        optimizer=torch.optim.AdamW,
        schedule=None,
        cache_dir=case.folder / "work",
        reward=None,
        rollout=instantiate(cfg.rollout, _convert_="all"),
        seed=0,
    )
    method: Method = instantiate(cfg.method, _convert_="all")(parts=parts)
    data = instantiate(cfg.data, _convert_="all")(
        tokenizer=bundle.tokenizer,
        batch_type=method.batch_type,
        seed=0,
        cache_dir=case.folder / "cache",
        score_prompt=method.scores_prompt,
        soft_labels=method.uses_soft_labels,
        mismatched=method.needs_mismatched,
    )
    (batch,) = data.train_dataloader()
    return method, batch


def ours(case: Case, *overrides: str) -> Result:
    """Runs the method on all records at once."""
    method, batch = our_batch(case, *overrides)
    method.configure_model()
    method.trained.to(case.dtype)
    reference = method.bundle.reference
    if reference is not None:
        assert reference.frozen is not None
        reference.frozen.to(case.dtype)
    case.move(method.trained.hf_model)
    method.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    loss = method.training_step(batch, 0)
    return result(loss, method.means(method.train_sums), method.trained.hf_model)


def trl_trainer(
    case: Case,
    trainer: Any,
    config: Any,
    *,
    has_reference: bool = False,
    auto_model: Any = AutoModelForCausalLM,
    **fields: Any,
) -> Any:
    """Builds TRL's trainer, for one process on the CPU in full precision, with these fields of its configuration."""
    policy, *reference = (
        auto_model.from_pretrained(case.start, dtype=torch.float32).to(case.dtype) for _ in range(1 + has_reference)
    )
    case.move(policy)
    args = config(
        output_dir=str(case.folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **fields,
    )
    cache = str(case.folder / "datasets")
    built = trainer(
        model=policy,
        args=args,
        train_dataset=load_dataset("json", data_files=str(case.records), split="train", cache_dir=cache),
        processing_class=word_tokenizer(VOCABULARY),
        **({"ref_model": reference[0]} if has_reference else {}),
    )
    built.model.train()
    return built


def trl_inputs(trainer: Any) -> Any:
    """All of TRL's own tokenised rows, through its collator."""
    return trainer.data_collator(list(trainer.train_dataset))


def trl(trainer: Any, inputs: Any) -> Result:
    """Runs TRL's loss on what its collator made; in float64 without the rounding of its head."""
    trainer.model.zero_grad()
    trainer._metrics["train"].clear()
    with pytest.MonkeyPatch.context() as patch:
        if trainer.model.dtype is torch.float64:
            patch.setattr("trl.trainer.utils._ChunkedLogProbFunction", PlainHead)
        loss = trainer.compute_loss(trainer.model, inputs)
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    return result(loss, metrics, trainer.model)


def result(loss: Any, metrics: dict[str, float], model: Any) -> Result:
    """Takes the loss's gradients; each parameter must have one."""
    loss.backward()
    return Result(loss.item(), metrics, {name: value.grad.clone() for name, value in model.named_parameters()})


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
    our: Result,
    peer: Result,
    metrics: dict[str, str],
    *,
    loss: Tolerance,
    metric: Tolerance,
    gradient: float,
) -> None:
    """Compares losses, those metrics that both define alike, and every gradient in units of the largest.

    Args:
        our: From :func:`ours`.
        peer: From :func:`trl`.
        metrics: Ours -> TRL's.
        loss: Of the loss.
        metric: Of each metric.
        gradient: Absolute, as a share of the largest.
    """
    assert our.loss == pytest.approx(peer.loss, *loss)
    for name, peer_name in metrics.items():
        assert our.metrics[name] == pytest.approx(peer.metrics[peer_name], *metric), name
    assert set(our.gradients) == set(peer.gradients)
    scale = max(value.abs().max().item() for value in peer.gradients.values())
    assert scale > 1e-3
    for name, value in our.gradients.items():
        torch.testing.assert_close(
            value, peer.gradients[name], rtol=0, atol=gradient * scale, msg=lambda m, n=name: f"{n}: {m}"
        )
