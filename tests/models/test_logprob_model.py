"""The one log-prob path on every family (T6, T12, T14, T15, T16)."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig
from transformers import PhiConfig, PhiForCausalLM

from alignment.data.collate import token_batch
from alignment.models.adapters import apply_adapter
from alignment.models.logprob_model import LogprobModel, active_head, check_head
from alignment.utils.errors import UserError

from tiny import FAMILIES, LENGTHS, random_batch, random_sequences, tiny_causal_lm, tiny_model


def by_hand(model, sequence, temperature: float = 1.0) -> torch.Tensor:
    """One sequence alone, no padding, full logits from the model's own forward."""
    ids = torch.tensor([[*sequence.prompt_ids, *sequence.completion_ids]])
    logits = model(input_ids=ids).logits[0].double() / temperature
    logps = logits[:-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return logps[len(sequence.prompt_ids) - 1 :]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_each_sequence_alone(family, temperature):
    model = tiny_model(family).eval()
    sequences = random_sequences(LENGTHS)
    got = model(token_batch(sequences, pad_id=0), temperature=temperature)
    expected = torch.cat([by_hand(model.hf_model, sequence, temperature) for sequence in sequences])
    torch.testing.assert_close(got.token_logps.double(), expected, rtol=1e-4, atol=1e-4)
    assert got.token_logps.min() < -2.0, "the model must not be uniform, or the test could not fail"


@pytest.mark.parametrize("family", FAMILIES)
def test_train_mode_equals_eval_mode(family):
    """Dropout is off everywhere (T14)."""
    model, batch = tiny_model(family), random_batch()
    trained = model.train()(batch).token_logps
    torch.testing.assert_close(trained, model.eval()(batch).token_logps, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen2"])
def test_left_padding_agrees_with_right_padding(family):
    """T15: with a mask and positions, rows padded on the left give the same numbers."""
    model = tiny_model(family).eval()
    right = random_batch()
    rows, width = right.input_ids.shape
    lengths = torch.tensor([prompt + completion for prompt, completion in LENGTHS])
    shift = width - lengths
    columns = torch.arange(width)
    mask = (columns >= shift[:, None]).long()
    source = (columns - shift[:, None]).clamp_min(0)
    row_of_token = right.predictor_index // width
    left = replace(
        right,
        input_ids=right.input_ids.gather(1, source) * mask,
        attention_mask=mask,
        position_ids=source,
        predictor_index=right.predictor_index + shift[row_of_token],
        target_index=right.target_index + shift[row_of_token],
    )
    torch.testing.assert_close(model(left).token_logps, model(right).token_logps, rtol=1e-5, atol=1e-5)
    assert rows == len(LENGTHS)


def test_padding_content_and_amount_change_nothing():
    model, batch = tiny_model("llama").eval(), random_batch()
    expected = model(batch).token_logps
    rows, width = batch.input_ids.shape
    wider = torch.full((rows, width + 4), 9)
    wider[:, :width] = batch.input_ids
    lengths = torch.tensor([prompt + completion for prompt, completion in LENGTHS])
    wider[torch.arange(width + 4) >= lengths[:, None]] = 9
    index = batch.predictor_index // width * (width + 4) + batch.predictor_index % width
    got = model(replace(batch, input_ids=wider, predictor_index=index)).token_logps
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_first_completion_token_is_scored_and_the_last_prompt_token_is_not():
    """T6."""
    sequences = random_sequences([(4, 3)])
    batch = token_batch(sequences, pad_id=0)
    assert batch.targets.tolist() == list(sequences[0].completion_ids)
    assert batch.predictor_index.tolist() == [3, 4, 5]


def test_sums_and_means():
    model, batch = tiny_model().eval(), random_batch()
    got = model(batch)
    lengths = [completion for _, completion in LENGTHS]
    pieces = got.token_logps.split(lengths)
    torch.testing.assert_close(got.num_tokens, torch.tensor(lengths, dtype=torch.float32))
    torch.testing.assert_close(got.sum_logps, torch.stack([piece.sum() for piece in pieces]))
    torch.testing.assert_close(got.mean_logps, torch.stack([piece.mean() for piece in pieces]))


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma2"])
def test_gradient_equals_the_plain_path_with_tied_weights(family):
    sequences = random_sequences(LENGTHS)
    chunked = tiny_model(family)
    plain = copy.deepcopy(chunked)
    chunked(token_batch(sequences, pad_id=0)).token_logps.sum().backward()
    torch.cat([by_hand(plain.hf_model, sequence) for sequence in sequences]).sum().backward()
    for (name, got), expected in zip(chunked.named_parameters(), plain.parameters(), strict=True):
        assert got.grad is not None, name
        size = expected.grad.abs().max()
        torch.testing.assert_close(got.grad / size, expected.grad / size, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("frozen", [(), ("embed_tokens",)])
def test_gradient_checkpointing_gives_every_parameter_its_gradient(frozen):
    """T34, with frozen embeddings too."""
    plain = tiny_model("llama")
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    checkpointed = copy.deepcopy(plain)
    checkpointed.hf_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = random_batch()
    plain.train()(batch).token_logps.sum().backward()
    checkpointed.train()(batch).token_logps.sum().backward()
    for (name, parameter), expected in zip(checkpointed.named_parameters(), plain.parameters(), strict=True):
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-5, atol=1e-5)


def test_a_head_that_is_not_understood_is_refused_by_name():
    model = tiny_model("granite")
    check_head(model)
    model.hf_model.config.logits_scaling = 1.0  # the path no longer knows that Granite divides its logits by 4
    model.hf_model.forward = _divided(model.hf_model.forward)
    with pytest.raises(UserError, match="GraniteForCausalLM: log-probs of the chunked head differ"):
        check_head(model)


def _divided(forward):
    def changed(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 4
        return output

    return changed


def test_lora_on_the_head_is_refused():
    config = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    model = LogprobModel(apply_adapter(tiny_causal_lm("llama"), config, seed=0), chunk_tokens=4)
    with pytest.raises(UserError, match="LoRA on the head itself is not offered"):
        active_head(model.hf_model)


def test_a_heads_bias_counts():
    """Phi's head has one; a fresh one is zero, and would hide that it is forgotten."""
    config = PhiConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = PhiForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.bias)
    check_head(LogprobModel(model, chunk_tokens=4))
