"""Models that judge: where they read, what they export, what an adapter does to them (T27, T33)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedTokenizerFast

from alignment.data.collate import token_batch
from alignment.data.tokenizer import TokenizerOptions, with_own_pad_token
from alignment.models.adapters import adapter_for, apply_adapter
from alignment.models.backbone import PretrainedModel, draw_head
from alignment.models.export import export
from alignment.models.score_model import (
    SequenceScorer,
    StepScorer,
    check_score_head,
    last_token_index,
    score_head,
    score_head_name,
)
from alignment.types import Head
from alignment.utils.errors import ConfigError, UserError

from tiny import FAMILIES, LENGTHS, random_batch, random_sequences, tiny_causal_lm

#: Families for which transformers has classifiers of both kinds.
JUDGES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2"]
AUTO = {Head.SCORE: AutoModelForSequenceClassification, Head.STEPS: AutoModelForTokenClassification}
SCORER = {Head.SCORE: SequenceScorer, Head.STEPS: StepScorer}


def judge(family: str, head: Head, **fields):
    config = tiny_causal_lm(family).config
    config.num_labels = 1 if head is Head.SCORE else 2
    for name, value in fields.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = AUTO[head].from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.mul_(5.0)
    return model


def tokenizer(**special) -> PreTrainedTokenizerFast:
    words = Tokenizer(tokenizer_models.WordLevel({f"t{i}": i for i in range(64)}, unk_token="t3"))
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def left_padded(batch):
    width = batch.input_ids.shape[1]
    lengths = torch.tensor([prompt + completion for prompt, completion in LENGTHS])
    shift = width - lengths
    columns = torch.arange(width)
    mask = (columns >= shift[:, None]).long()
    source = (columns - shift[:, None]).clamp_min(0)
    return replace(
        batch,
        input_ids=batch.input_ids.gather(1, source) * mask,
        attention_mask=mask,
        position_ids=source,
        predictor_index=batch.predictor_index + shift[batch.predictor_index // width],
        target_index=batch.target_index + shift[batch.predictor_index // width],
    )


@pytest.mark.parametrize("family", JUDGES)
@pytest.mark.parametrize("head", AUTO)
def test_equals_each_sequence_alone(family, head):
    model = judge(family, head).eval()
    sequences = random_sequences(LENGTHS)
    got = SCORER[head](model)(token_batch(sequences, pad_id=0))
    alone = []
    for sequence in sequences:
        logits = model(input_ids=torch.tensor([[*sequence.prompt_ids, *sequence.completion_ids]])).logits[0]
        alone.append(logits if head is Head.SCORE else logits[len(sequence.prompt_ids) :])
    expected = torch.cat(alone)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert got.std() > 0.1


@pytest.mark.parametrize("family", JUDGES)
@pytest.mark.parametrize("head", AUTO)
def test_padding_side_changes_nothing(family, head):
    model, batch = SCORER[head](judge(family, head)).eval(), random_batch()
    torch.testing.assert_close(model(left_padded(batch)), model(batch), rtol=1e-5, atol=1e-5)


def test_an_end_that_is_also_padding_is_read():
    """T27: with pad == eos the value is that of the end-of-sequence token, in a batch of one too."""
    model = SequenceScorer(judge("llama", Head.SCORE)).eval()
    (sequence,) = random_sequences([(4, 3)])
    sequence = replace(sequence, completion_ids=(*sequence.completion_ids, 0))
    longer = random_sequences([(8, 6)], seed=3)[0]
    alone = model(token_batch([sequence], pad_id=0))
    among = model(token_batch([sequence, longer], pad_id=0))[:1]
    torch.testing.assert_close(among, alone, rtol=1e-5, atol=1e-5)
    hidden = model.hf_model.base_model(input_ids=torch.tensor([[*sequence.prompt_ids, *sequence.completion_ids]]))[0]
    torch.testing.assert_close(alone, score_head(model.hf_model)(hidden[:, -1])[:, 0])
    earlier = score_head(model.hf_model)(hidden[:, -2])[:, 0]
    assert (alone - earlier).abs().item() > 1e-3


def test_the_last_token_is_found_in_every_row():
    batch = random_batch()
    width = batch.input_ids.shape[1]
    ends = [row * width + prompt + completion - 1 for row, (prompt, completion) in enumerate(LENGTHS)]
    assert last_token_index(batch).tolist() == ends


def test_train_mode_equals_eval_mode():
    """Dropout in front of a classifier's head is left out (T14)."""
    batch = random_batch()
    for head, scorer in SCORER.items():
        model = scorer(judge("gpt2", head))
        torch.testing.assert_close(model.train()(batch), model.eval()(batch), rtol=0, atol=0)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) & set(JUDGES)))
@pytest.mark.parametrize("head", AUTO)
def test_a_merged_adapter_is_the_adapted_judge(tmp_path, family, head):
    """What plain transformers loads from the export gives the same values."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    base = judge(family, head)
    backbone = apply_adapter(base, adapter_for(config, base, head), seed=1)
    model = SCORER[head](backbone).eval()
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any(score_head_name(base) in name for name in trainable)
    assert not any(score_head_name(base) in name and "lora" in name for name in trainable)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    export(
        model,
        tokenizer(pad_token="t0", eos_token="t2"),
        tmp_path / "model",
        adapter="merged",
        card="",
        is_writer=True,
    )
    loaded = AUTO[head].from_pretrained(tmp_path / "model").eval()
    assert loaded.config.num_labels == (1 if head is Head.SCORE else 2)
    batch = random_batch()
    with torch.no_grad():
        got = SCORER[head](loaded)(batch)
        torch.testing.assert_close(got, model(batch), rtol=1e-4, atol=1e-4)
        if head is Head.SCORE:  # its own search for the end, by the pad token
            torch.testing.assert_close(loaded(batch.input_ids).logits[:, 0], got, rtol=1e-4, atol=1e-4)


def folder_source(path) -> PretrainedModel:
    return PretrainedModel(
        path=str(path),
        revision=None,
        dtype="float32",
        attention="sdpa",
        quantization=None,
        gradient_checkpointing=False,
        compile=False,
        chunk_tokens=16,
        layout="auto",
        tokenizer=TokenizerOptions(None, None, None, None),
    )


@pytest.mark.parametrize("head", AUTO)
def test_a_language_model_gets_a_head_and_a_judge_keeps_its_own(tmp_path, head):
    tiny_causal_lm("llama").save_pretrained(tmp_path / "lm")
    tokenizer(pad_token="t0", eos_token="t2").save_pretrained(tmp_path / "lm")
    first, again, other = (score_head(folder_source(tmp_path / "lm").load(head, seed=s)).weight for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0.5 < first.std() * 33**0.5 < 1.5
    trained = folder_source(tmp_path / "lm").load(head, seed=0)
    trunk = tiny_causal_lm("llama").model.layers[0].mlp.up_proj.weight
    assert torch.equal(trained.model.layers[0].mlp.up_proj.weight, trunk)
    draw_head(trained, seed=7)
    trained.save_pretrained(tmp_path / "judge")
    tokenizer(pad_token="t0", eos_token="t2").save_pretrained(tmp_path / "judge")
    kept = score_head(folder_source(tmp_path / "judge").load(head, seed=0)).weight
    assert torch.equal(kept, score_head(trained).weight)


def test_a_pad_token_that_ends_sequences_is_replaced_or_refused():
    own = with_own_pad_token(tokenizer(pad_token="t2", eos_token="t2", unk_token="t3"))
    assert own.pad_token == "t3"
    assert with_own_pad_token(tokenizer(pad_token="t0", eos_token="t2")).pad_token == "t0"
    with pytest.raises(ConfigError, match=r"model\.tokenizer\.pad_token.*another token"):
        with_own_pad_token(tokenizer(pad_token="t2", eos_token="t2"))


def test_a_head_that_does_more_than_a_projection_is_refused():
    model = judge("llama", Head.SCORE)
    check_score_head(SequenceScorer(model).eval())
    plain = model.forward
    model.forward = lambda **inputs: type("Output", (), {"logits": plain(**inputs).logits * 2})()
    with pytest.raises(UserError, match="scores differ"):
        check_score_head(SequenceScorer(model).eval())
