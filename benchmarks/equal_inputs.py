"""The same weights, the same token ids: inputs that two systems read with nothing left to differ in.

Text is made of words of a vocabulary in which every word is one token. Each system tokenises in its own way, and
all ways give the same ids.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<s>", "</s>")

#: Tokens of a prompt, its chosen and its rejected completion, with one BOS and one EOS counted in.
PairLengths = tuple[int, int, int]


def word_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Returns a tokenizer whose words are ``w3``, ``w4``, ...: word ``wN`` is token N, and BOS goes before a text."""
    vocabulary = {name: place for place, name in enumerate(SPECIAL)}
    vocabulary |= {f"w{place}": place for place in range(len(SPECIAL), vocab_size)}
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    rules.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rules.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=rules, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=4096
    )


def save_model(folder: Path, *, architecture: str, config: dict[str, Any], seed: int) -> None:
    """Draws weights and saves them with the tokenizer of their vocabulary, as a Hugging Face folder."""
    torch.manual_seed(seed)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **ids, **config), dtype=torch.float32)
    model.save_pretrained(folder)
    word_tokenizer(config["vocab_size"]).save_pretrained(folder)


def write_pairs(path: Path, *, lengths: Sequence[PairLengths], vocab_size: int, seed: int) -> None:
    """Writes a line a pair, as text: ``prompt``, ``chosen``, ``rejected``.

    Args:
        path: A ``.jsonl`` file.
        lengths: Of each pair, in order; at least 2 tokens each.
        vocab_size: Of the words.
        seed: Of the words.
    """
    draw = random.Random(seed)

    def words(count: int) -> str:
        return " ".join(f"w{draw.randrange(len(SPECIAL), vocab_size)}" for _ in range(count))

    with path.open("w", encoding="utf-8") as file:
        for prompt, chosen, rejected in lengths:
            # A BOS goes before the prompt and an EOS behind each completion; the space that parts them is no token.
            sides = {"chosen": f" {words(chosen - 1)}", "rejected": f" {words(rejected - 1)}"}
            file.write(json.dumps({"prompt": words(prompt - 1)} | sides) + "\n")
