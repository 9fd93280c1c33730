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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from equal_inputs import save_model, word_tokenizer, write_pairs
from transformers import AutoModelForCausalLM
from trl_peer import dpo_config, dpo_trainer

from alignment.data.datamodule import DataModule
from alignment.data.sources import FileSource
from alignment.data.tokenizer import TokenizerOptions
from alignment.methods.base import Parts
from alignment.methods.dpo import DPO
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
SETTINGS = [(0.1, 0.0), (0.5, 0.0), (0.1, 0.2), (0.5, 0.2)]


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


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    family, dtype, *rest = request.param
    save_model(tmp_path / "start", architecture=family, config=FAMILIES[family] | {"vocab_size": VOCABULARY}, seed=3)
    write_pairs(tmp_path / "pairs.jsonl", lengths=LENGTHS, vocab_size=VOCABULARY, seed=5)
    return Case(tmp_path / "start", tmp_path / "pairs.jsonl", tmp_path / "work", dtype, moved=not rest)


def ours(case: Case, *, beta: float, label_smoothing: float) -> tuple[Result, PreferenceBatch]:
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
    method = DPO(beta=beta, label_smoothing=label_smoothing, parts=parts)
    method.configure_model()
    method.policy.to(case.dtype)
    assert bundle.reference is not None
    assert bundle.reference.frozen is not None
    bundle.reference.frozen.to(case.dtype)
    if case.moved:
        case.policy_weights(method.policy.causal_lm)
    method.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    batch = our_batch(case, bundle.tokenizer)
    loss = method.training_step(batch, 0)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in method.policy.causal_lm.named_parameters()}
    return Result(loss.item(), method.means(method.train_sums), gradients), batch


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
        return logps, *(nothing if name in outputs else None for name in ("entropy", "sq", "mean_logits")), flags


def assert_same(our: Result, peer: Result, *, loss: float, metric: float, gradient: float) -> None:
    assert our.loss == pytest.approx(peer.loss, rel=loss)
    for name, peer_name in METRICS.items():
        assert our.metrics[name] == pytest.approx(peer.metrics[peer_name], rel=metric, abs=metric), name
    assert set(our.gradients) == set(peer.gradients)
    scale = max(value.abs().max().item() for value in peer.gradients.values())
    assert scale > 1e-3
    for name, value in our.gradients.items():
        torch.testing.assert_close(
            value, peer.gradients[name], rtol=0, atol=gradient * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def both(case: Case, beta: float, label_smoothing: float) -> tuple[Result, Result]:
    our, _ = ours(case, beta=beta, label_smoothing=label_smoothing)
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
    our, _ = ours(case, beta=0.1, label_smoothing=0.0)
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
    assert ours(case, beta=0.5, label_smoothing=0.2)[0].loss != pytest.approx(losses[1], rel=1e-3)
