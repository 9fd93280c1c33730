"""Tiny random models of the families that are in use, and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.data.collate import TokenSequence, token_batch
from alignment.models.backbone import without_dropout
from alignment.models.logprob_model import LogprobModel
from alignment.types import TokenBatch

VOCABULARY = 64
_GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "llama_tied": _GROUPED | {"model_type": "llama", "tie_word_embeddings": True},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 8},
    "gemma": _GROUPED | {"head_dim": 8},
    "gemma2": _GROUPED | {"head_dim": 8},  # tied, soft-capped logits
    "gemma3_text": _GROUPED | {"head_dim": 8},
    "mistral": _GROUPED,
    "gpt2": {"attn_pdrop": 0.1, "resid_pdrop": 0.1},  # tied, absolute positions, Conv1D, dropout to switch off
    "gpt_neox": {"intermediate_size": 64},
    "granite": _GROUPED | {"logits_scaling": 4.0},
    "cohere": _GROUPED | {"logit_scale": 0.25},
}


def tiny_causal_lm(family: str, *, seed: int = 0, scale: float = 5.0, **fields: Any):
    """A two-layer model; weights are scaled up so that its predictions are far from uniform."""
    options = dict(FAMILIES[family])
    config = AutoConfig.for_model(
        options.pop("model_type", family),
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        **(options | fields),
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(without_dropout(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.mul_(scale)
    return model


def tiny_model(family: str = "llama", *, chunk_tokens: int = 5, **options: Any) -> LogprobModel:
    return LogprobModel(tiny_causal_lm(family, **options), chunk_tokens=chunk_tokens)


def random_sequences(lengths: list[tuple[int, int]], *, seed: int = 0) -> list[TokenSequence]:
    """Sequences with the given (prompt, completion) lengths."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (count,), generator=generator).tolist())

    return [TokenSequence(ids(prompt), ids(completion), None) for prompt, completion in lengths]


LENGTHS = [(3, 5), (7, 2), (1, 1), (4, 9)]


def random_batch(lengths: list[tuple[int, int]] | None = None, *, seed: int = 0) -> TokenBatch:
    return token_batch(random_sequences(lengths or LENGTHS, seed=seed), pad_id=0)
