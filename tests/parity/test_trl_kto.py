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

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from datasets import load_dataset
from equal_inputs import save_model, word_tokenizer, write_pairs
from transformers import AutoModelForCausalLM
from trl import KTOConfig, KTOTrainer

from alignment.data.datamodule import DataModule
from alignment.data.sources import FileSource
from alignment.data.tokenizer import TokenizerOptions
from alignment.methods.base import Parts
from alignment.methods.kto import KTO
from alignment.models.backbone import PretrainedModel
from alignment.models.bundle import ModelBundle
from alignment.models.references import FrozenCopy
from alignment.types import BinaryBatch, Mismatched

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
#: Tokens of prompt and completion (the third is not used), and the labels: more up than down.
LENGTHS = ((5, 9, 2), (3, 2, 2), (11, 7, 2), (2, 3, 2), (4, 10, 2), (6, 4, 2), (3, 8, 2))
LABELS = (True, False, True, True, False, True, True)
#: Ours -> TRL's.
METRICS = {
    "reward/chosen": "rewards/chosen",
    "reward/rejected": "rewards/rejected",
    "reward/margin": "rewards/margins",
    "logps/chosen_sum_nats": "logps/chosen",
    "logps/rejected_sum_nats": "logps/rejected",
    "kl/z0_nats": "kl",
}
SETTINGS = {
    "plain": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "weighted": {"beta": 0.5, "desirable_weight": 0.6, "undesirable_weight": 1.4},
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
    thumbs: Path
    work: Path
    dtype: torch.dtype

    def move(self, model: torch.nn.Module) -> None:
        """Moves the policy away from its reference by the same steps for both systems."""
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter += (0.05 * noise).to(parameter.dtype)


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
        return logps, *(nothing if name in outputs else None for name in ("entropy", "sq", "mean_logits")), flags


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    family, dtype, seed = request.param
    save_model(tmp_path / "start", architecture=family, config=FAMILIES[family] | {"vocab_size": VOCABULARY}, seed=seed)
    write_pairs(tmp_path / "words.jsonl", lengths=LENGTHS, vocab_size=VOCABULARY, seed=5)
    pairs = [json.loads(line) for line in (tmp_path / "words.jsonl").read_text().splitlines()]
    path = tmp_path / "thumbs.jsonl"
    rows = [
        {"prompt": p["prompt"], "completion": p["chosen"], "label": up} for p, up in zip(pairs, LABELS, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Case(tmp_path / "start", path, tmp_path / "work", dtype)


def ours(case: Case, *, z0: str, **fields: float) -> tuple[Result, BinaryBatch]:
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
    method = KTO(z0=z0, parts=parts, **fields)  # type: ignore[arg-type]
    method.configure_model()
    method.policy.to(case.dtype)
    assert bundle.reference is not None
    assert bundle.reference.frozen is not None
    bundle.reference.frozen.to(case.dtype)
    case.move(method.policy.hf_model)
    method.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    data = DataModule(
        train=FileSource(path=str(case.thumbs)),
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
        batch_type=BinaryBatch,
        seed=0,
        cache_dir=case.work / "cache",
        mismatched=True,
    )
    (batch,) = data.train_dataloader()
    loss = method.training_step(batch, 0)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in method.policy.hf_model.named_parameters()}
    return Result(loss.item(), method.means(method.train_sums), gradients), batch


def completions(batch: BinaryBatch | Mismatched) -> dict[int, list[int]]:
    """The completion's ids by the record's line in the file, counted from 0."""
    tokens = batch.tokens
    lines = [int(name.rsplit(":", 1)[1]) - 1 for name in batch.ids]
    return {line: tokens.targets[tokens.sequence_index == place].tolist() for place, line in enumerate(lines)}


def trl_trainer(case: Case, **fields: Any) -> KTOTrainer:
    load = partial(AutoModelForCausalLM.from_pretrained, case.folder, dtype=torch.float32)
    policy, reference = load().to(case.dtype), load().to(case.dtype)
    case.move(policy)
    config = KTOConfig(
        output_dir=str(case.work),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=len(LENGTHS),
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **fields,
    )
    data = load_dataset("json", data_files=str(case.thumbs), split="train", cache_dir=str(case.work / "datasets"))
    trainer = KTOTrainer(
        model=policy, ref_model=reference, args=config, train_dataset=data, processing_class=word_tokenizer(VOCABULARY)
    )
    trainer.model.train()
    return trainer


def trl(trainer: KTOTrainer, batch: BinaryBatch) -> Result:
    """Runs TRL's collator and loss on its own tokenised rows, with our mismatched pairs."""
    rows = [dict(row) for row in trainer.train_dataset]
    own = completions(batch)
    assert [row["completion_ids"] for row in rows] == [own[line] for line in range(len(rows))]
    if "KL_completion_ids" in rows[0]:
        crossed = completions(batch.mismatched[0])
        rows = [row | {"KL_completion_ids": crossed[line]} for line, row in enumerate(rows)]
    trainer._metrics["train"].clear()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    loss.backward()
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    return Result(loss.item(), metrics, {name: p.grad.clone() for name, p in trainer.model.named_parameters()})


def both(case: Case, loss_type: str, setting: str) -> tuple[Result, Result]:
    fields = SETTINGS[setting]
    our, batch = ours(case, z0="mismatched" if loss_type == "kto" else "zero", **fields)
    return our, trl(trl_trainer(case, loss_type=loss_type, **fields), batch)


def assert_same(our: Result, peer: Result, tolerance: float) -> None:
    assert our.loss == pytest.approx(peer.loss, rel=tolerance)
    for name, peer_name in METRICS.items():
        assert our.metrics[name] == pytest.approx(peer.metrics[peer_name], rel=tolerance, abs=tolerance), name
    assert set(our.gradients) == set(peer.gradients)
    scale = max(value.abs().max().item() for value in peer.gradients.values())
    assert scale > 1e-3
    for name, value in our.gradients.items():
        torch.testing.assert_close(
            value, peer.gradients[name], rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


#: Weights whose z0 is above 0, and such whose mean on mismatched pairs is below 0 and clamped.
ABOVE = {"llama": 5, "gpt2": 3}
CLAMPED = {"llama": 3, "gpt2": 4}


@pytest.mark.parametrize(
    "case", [(family, torch.float64, seed) for family, seed in ABOVE.items()], indirect=True, ids=ABOVE
)
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_float64(case, loss_type, setting, monkeypatch):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", PlainHead)
    our, peer = both(case, loss_type, setting)
    assert_same(our, peer, 1e-6)
    assert (our.metrics["kl/z0_nats"] > 0.1) == (loss_type == "kto")


@pytest.mark.parametrize(
    "case", [(family, torch.float64, seed) for family, seed in CLAMPED.items()], indirect=True, ids=CLAMPED
)
def test_float64_clamped(case, monkeypatch):
    monkeypatch.setattr("trl.trainer.utils._ChunkedLogProbFunction", PlainHead)
    our, peer = both(case, "kto", "weighted")
    assert_same(our, peer, 1e-6)
    assert our.metrics["kl/z0_nats"] == 0.0


@pytest.mark.parametrize("case", [("llama", torch.float32, ABOVE["llama"])], indirect=True)
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_fp32_as_trl_ships(case, loss_type):
    our, peer = both(case, loss_type, "weighted")
    assert_same(our, peer, 2e-5)
