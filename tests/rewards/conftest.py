"""Checkpoints of tiny judges, as transformers writes them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from alignment.data.worlds.tokenizer import world_tokenizer

CLASSES = {
    "score": (AutoModelForSequenceClassification, 1),
    "steps": (AutoModelForTokenClassification, 2),
    "language": (AutoModelForCausalLM, 2),
}
Save = Callable[..., Path]


def tiny_config(family: str, *, num_labels: int, context: int):
    tokenizer = world_tokenizer()
    # Fifteen times the usual scale: scores that differ from text to text.
    sizes = {"initializer_range": 0.3, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if family != "gpt2":
        sizes |= {"intermediate_size": 64, "num_key_value_heads": 2}
    return AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        max_position_embeddings=context,
        num_labels=num_labels,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )


@pytest.fixture(scope="session")
def save(tmp_path_factory) -> Save:
    """Writes a tiny model with the reviews world's tokenizer."""

    def write(
        kind: str, family: str = "llama", *, seed: int = 0, num_labels: int | None = None, context: int = 256
    ) -> Path:
        folder = tmp_path_factory.mktemp(f"{kind}-{family}")
        auto, labels = CLASSES[kind]
        config = tiny_config(family, num_labels=num_labels or labels, context=context)
        torch.manual_seed(seed)
        auto.from_config(config).save_pretrained(folder)
        world_tokenizer().save_pretrained(folder)
        return folder

    return write
