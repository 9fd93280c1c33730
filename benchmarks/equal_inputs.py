"""The same weights, the same token ids: inputs that two systems read with nothing left to differ in.

Text is made of words of a vocabulary in which every word is one token. Each system tokenises in its own way, and
all ways give the same ids.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from shapes import PairLengths
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

SPECIAL = ("<pad>", "<s>", "</s>")


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


def save_model(
    folder: Path,
    *,
    architecture: str,
    config: dict[str, Any],
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    judge: bool = False,
) -> None:
    """Draws weights and saves them with the tokenizer of their vocabulary, as a Hugging Face folder.

    Args:
        folder: To make.
        architecture: As transformers calls it.
        config: Of that architecture.
        seed: Of the weights.
        dtype: Of the weights.
        device: Where they are drawn.
        judge: Whether the head gives one value a sequence instead of the next token.
    """
    torch.manual_seed(seed)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    described = AutoConfig.for_model(architecture, **(ids | config), **({"num_labels": 1} if judge else {}))
    kind: Any = AutoModelForSequenceClassification if judge else AutoModelForCausalLM
    with torch.device(device):
        model = kind.from_config(described, dtype=dtype)
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


def write_singles(path: Path, *, lengths: Sequence[PairLengths], vocab_size: int, seed: int, labels: bool) -> None:
    """Writes the two sides of each pair as records of their own, each behind another prompt of the pair's length.

    Args:
        path: A ``.jsonl`` file.
        lengths: Of the pairs.
        vocab_size: Of the words.
        seed: Of the words.
        labels: Whether to add ``label``: True for the chosen sides.
    """
    write_pairs(path, lengths=[pair for pair in lengths for _ in range(2)], vocab_size=vocab_size, seed=seed)
    pairs = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side]} | ({"label": side == "chosen"} if labels else {})
        for pair, side in zip(pairs, ["chosen", "rejected"] * len(lengths), strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def save_endless_model(folder: Path, *, architecture: str, config: dict[str, Any], seed: int) -> None:
    """Saves a model that is asked for an end of sequence after every token and can never write one.

    The end of sequence is a token that the tokenizer has and the head has not: completions are all as long as they may
    be, without anything in the way of sampling that another system would do in another way.

    Args:
        folder: To make.
        architecture: As transformers calls it.
        config: Of that architecture.
        seed: Of the weights.
    """
    beyond = config["vocab_size"]
    save_model(folder, architecture=architecture, config=config | {"eos_token_id": beyond}, seed=seed)
    tokenizer = word_tokenizer(beyond + 1)
    tokenizer.eos_token = f"w{beyond}"
    tokenizer.save_pretrained(folder)


def write_prompts(path: Path, *, steps: int, prompts: int, tokens: int, vocab_size: int, seed: int) -> None:
    """Writes a line a prompt: ``prompt``, words that are so many tokens with their BOS.

    Args:
        path: A ``.jsonl`` file.
        steps: Of a run.
        prompts: Of a step.
        tokens: Of a prompt.
        vocab_size: Of the words.
        seed: Of the words.
    """
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(steps * prompts):
            words = [f"w{draw.randrange(len(SPECIAL), vocab_size)}" for _ in range(tokens - 1)]
            file.write(json.dumps({"prompt": " ".join(words)}) + "\n")


def even_tokens(completion_ids: list[list[int]], **_columns: Any) -> list[float]:
    """Rewards a completion with the number of its tokens whose ids are even; called alike here and by TRL."""
    return [float(sum(token % 2 == 0 for token in ids)) for ids in completion_ids]


def hh_lengths(path: Path, count_tokens: Callable[[str], int]) -> tuple[PairLengths, ...]:
    """Draws 32 pairs of a file of HH-RLHF and returns their lengths; :data:`shapes.HH_LENGTHS` holds them.

    Args:
        path: The raw format: ``chosen`` and ``rejected``, whole dialogues, in a ``.jsonl.gz`` file.
        count_tokens: Of a text, without BOS and EOS.
    """
    found: list[PairLengths] = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            (prompt, chosen), (other, rejected) = (
                _last_turn(json.loads(line)[side]) for side in ("chosen", "rejected")
            )
            if prompt == other and chosen.strip() and rejected.strip():
                tokens = min(1 + count_tokens(prompt), 512)
                sides = [min(1 + count_tokens(side), 768 - tokens) for side in (chosen, rejected)]
                found.append((tokens, sides[0], sides[1]))
    return tuple(random.Random(1).sample(found, 32))


def _last_turn(dialogue: str) -> tuple[str, str]:
    cut = dialogue.rindex("\n\nAssistant:") + len("\n\nAssistant:")
    return dialogue[:cut], dialogue[cut:]
