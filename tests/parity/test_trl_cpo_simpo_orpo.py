"""CPO, SimPO and ORPO against TRL's trainers on the same weights and tokens: loss, gradients and what is logged.

Where the two define something differently:

- Likelihood. TRL's is the mean over a micro-batch's tokens: ``nll_normaliser=token``. ORPO's is over prompts too:
  ``nll_over=prompt_and_completion``. CPO's and SimPO's are over completions in both.
- SimPO is a loss type of TRL's CPO. It gives the margin as gamma itself.
- Averages. On one micro-batch both average alike. Over several, TRL averages the micro-batches' averages and ours
  divides by the pairs, or the tokens, of the whole step.
- Rounding. TRL casts ORPO's log-probs to fp32 even in a float64 model. The float64 cases run all of TRL but that cast.
- Certainty. At a chosen completion of probability 1 TRL's ORPO has a gradient of NaN; ours is finite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from alignment.data.datamodule import DataModule
from alignment.data.sources import FileSource
from alignment.data.tokenizer import TokenizerOptions
from alignment.losses.orpo import orpo_loss
from alignment.methods.base import Parts
from alignment.methods.cpo import CPO
from alignment.methods.orpo import ORPO
from alignment.methods.simpo import SimPO
from alignment.models.backbone import PretrainedModel
from alignment.models.bundle import ModelBundle
from alignment.types import PreferenceBatch

VOCABULARY = 64
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
#: Tokens of prompt, chosen and rejected: the longest side is now the one, now the other.
LENGTHS = ((5, 9, 4), (3, 2, 12), (11, 7, 7), (2, 3, 2), (4, 10, 6))
#: Ours -> TRL's.
REWARDS = {
    "reward/chosen": "rewards/chosen",
    "reward/rejected": "rewards/rejected",
    "reward/margin": "rewards/margins",
    "reward/accuracy": "rewards/accuracies",
}
SUMS = {"logps/chosen_sum_nats": "logps/chosen", "logps/rejected_sum_nats": "logps/rejected"}
MEANS = {"logps/chosen_mean_nats": "logps/chosen", "logps/rejected_mean_nats": "logps/rejected"}
NLL = {"loss/nll": "nll_loss"}


@dataclass(frozen=True)
class Pair:
    """A method of ours, with its fields, and what it is called in TRL."""

    method: Any
    fields: dict[str, Any]
    trainer: Any
    config: Any
    trl_fields: dict[str, Any]
    metrics: dict[str, str]


def cpo(*, beta: float, alpha: float, smoothing: float) -> Pair:
    ours = {"beta": beta, "nll_coefficient": alpha, "nll_normaliser": "token", "label_smoothing": smoothing}
    theirs = {"beta": beta, "cpo_alpha": alpha, "label_smoothing": smoothing, "loss_type": "sigmoid"}
    return Pair(CPO, ours, CPOTrainer, CPOConfig, theirs, REWARDS | SUMS | (NLL if alpha else {}))


def simpo(*, beta: float, gamma: float, alpha: float) -> Pair:
    margin = {"gamma": None, "gamma_beta_ratio": gamma / beta, "length_normalised": True, "nll_coefficient": alpha}
    theirs = {"beta": beta, "simpo_gamma": gamma, "cpo_alpha": alpha, "loss_type": "simpo"}
    return Pair(SimPO, {"beta": beta} | margin, CPOTrainer, CPOConfig, theirs, REWARDS | MEANS | (NLL if alpha else {}))


def orpo(*, weight: float) -> Pair:
    ours = {"odds_ratio_coefficient": weight, "nll_over": "prompt_and_completion", "nll_normaliser": "token"}
    odds = {"odds/log_ratio_nats": "log_odds_chosen"}
    return Pair(ORPO, ours, ORPOTrainer, ORPOConfig, {"beta": weight}, REWARDS | MEANS | NLL | odds)


PAIRS = {
    "cpo": cpo(beta=0.1, alpha=1.0, smoothing=0.0),
    "cpo_without_nll": cpo(beta=0.5, alpha=0.0, smoothing=0.0),
    "cpo_smoothed": cpo(beta=0.5, alpha=0.3, smoothing=0.2),
    "simpo": simpo(beta=2.0, gamma=1.0, alpha=0.0),
    "simpo_no_margin": simpo(beta=2.5, gamma=0.0, alpha=0.0),
    "simpo_with_nll": simpo(beta=2.0, gamma=1.6, alpha=1.0),
    "orpo": orpo(weight=0.1),
    "orpo_strong": orpo(weight=1.0),
}


@dataclass(frozen=True)
class Result:
    """What one system makes of the batch."""

    loss: float
    metrics: dict[str, float]
    gradients: dict[str, torch.Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "start", architecture="llama", config=LLAMA | {"vocab_size": VOCABULARY}, seed=3)
    write_pairs(tmp_path / "pairs.jsonl", lengths=LENGTHS, vocab_size=VOCABULARY, seed=5)
    return tmp_path


def our_result(folder: Path, pair: Pair, dtype: torch.dtype) -> Result:
    source = PretrainedModel(
        path=str(folder / "start"),
        revision=None,
        dtype="float32",
        attention="sdpa",
        quantization=None,
        gradient_checkpointing=False,
        compile=False,
        chunk_tokens=7,
        tokenizer=TokenizerOptions(None, None, None, None),
    )
    bundle = ModelBundle(source=source, adapter=None, reference=None, seed=0)
    parts = Parts(bundle=bundle, optimizer=torch.optim.AdamW, schedule=None, cache_dir=folder / "work")
    method = pair.method(**pair.fields, parts=parts)
    method.configure_model()
    method.policy.to(dtype)
    method.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    loss = method.training_step(our_batch(folder, bundle.tokenizer, score_prompt=method.scores_prompt), 0)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in method.policy.hf_model.named_parameters()}
    return Result(loss.item(), method.means(method.train_sums), gradients)


def our_batch(folder: Path, tokenizer: Any, *, score_prompt: bool) -> PreferenceBatch:
    data = DataModule(
        train=FileSource(path=str(folder / "pairs.jsonl")),
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
        cache_dir=folder / "work" / "cache",
        score_prompt=score_prompt,
    )
    (batch,) = data.train_dataloader()
    return batch


def trl_trainer(folder: Path, pair: Pair, dtype: torch.dtype) -> Any:
    config = pair.config(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=64,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        **pair.trl_fields,
    )
    trainer = pair.trainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "start", dtype=torch.float32).to(dtype),
        args=config,
        train_dataset=load_dataset(
            "json", data_files=str(folder / "pairs.jsonl"), split="train", cache_dir=str(folder / "datasets")
        ),
        processing_class=word_tokenizer(VOCABULARY),
    )
    trainer.model.train()
    return trainer


def trl_result(trainer: Any) -> Result:
    batch = trainer.data_collator(list(trainer.train_dataset))
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch, "train")
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    return Result(loss.item(), metrics, gradients)


def assert_same(ours: Result, peer: Result, metrics: dict[str, str], *, loss: float, gradient: float) -> None:
    assert ours.loss == pytest.approx(peer.loss, rel=loss)
    for name, peer_name in metrics.items():
        assert ours.metrics[name] == pytest.approx(peer.metrics[peer_name], rel=loss, abs=loss), name
    assert set(ours.gradients) == set(peer.gradients)
    scale = max(value.abs().max().item() for value in peer.gradients.values())
    assert scale > 1e-3
    for name, value in ours.gradients.items():
        torch.testing.assert_close(
            value, peer.gradients[name], rtol=0, atol=gradient * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


class KeepsFloat64(ORPOTrainer):
    """TRL's ORPO without its cast of log-probs to fp32."""

    def odds_ratio_loss(self, policy_chosen_logps, policy_rejected_logps):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            return super().odds_ratio_loss(policy_chosen_logps, policy_rejected_logps)


@pytest.mark.parametrize("name", PAIRS)
def test_float64(folder, name):
    pair = PAIRS[name]
    if pair.trainer is ORPOTrainer:
        pair = replace(pair, trainer=KeepsFloat64)
    peer = trl_result(trl_trainer(folder, pair, torch.float64))
    ours = our_result(folder, pair, torch.float64)
    assert_same(ours, peer, pair.metrics, loss=1e-7, gradient=1e-6)  # Llama's norms stay in fp32
    if "log_odds_ratio" in peer.metrics:
        assert ours.metrics["loss/odds_ratio"] == pytest.approx(-peer.metrics["log_odds_ratio"], rel=1e-7)


@pytest.mark.parametrize("name", ["cpo_smoothed", "simpo_with_nll", "orpo"])
def test_fp32_as_trl_ships(folder, name):
    peer = trl_result(trl_trainer(folder, PAIRS[name], torch.float32))
    assert_same(our_result(folder, PAIRS[name], torch.float32), peer, PAIRS[name].metrics, loss=1e-5, gradient=1e-5)


def test_trls_orpo_is_not_the_papers(folder):
    """The reason for ``nll_over``: over completions alone the likelihood is another one."""
    pair = PAIRS["orpo"]
    peer = trl_result(trl_trainer(folder, pair, torch.float32))
    ours = our_result(folder, replace(pair, fields=pair.fields | {"nll_over": "completion"}), torch.float32)
    assert ours.metrics["loss/nll"] != pytest.approx(peer.metrics["nll_loss"], rel=1e-3)
    assert ours.metrics["odds/log_ratio_nats"] == pytest.approx(peer.metrics["log_odds_chosen"], rel=1e-5)


def test_at_certainty_ours_is_finite_where_trls_is_not(folder):
    trainer = trl_trainer(folder, PAIRS["orpo"], torch.float32)
    ours = partial(orpo_loss, policy_rejected_mean_logps=torch.tensor([-1.0]))
    gradients = []
    for system in ("ours", "trl"):
        chosen = torch.zeros(1, requires_grad=True)
        if system == "ours":
            ours(policy_chosen_mean_logps=chosen).sum().backward()
        else:
            trainer.odds_ratio_loss(chosen, torch.tensor([-1.0]))[0].sum().backward()
        gradients.append(chosen.grad.item())
    assert gradients[0] == pytest.approx(0, abs=1)
    assert gradients[1] != gradients[1]
