"""Small tokenizers, small files, and a data module over them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from alignment.data.chat_templates import TEMPLATES
from alignment.data.datamodule import DataModule
from alignment.data.sources import FileSource
from alignment.types import Batch, PreferenceBatch

CORPUS = [
    "the cat sat on the mat and the dog ate the cake; what a lovely day it is for a walk in the park",
    "Human: hello there, how are you? Assistant: I am fine, thank you very much. " * 3,
]


@cache
def byte_level(vocab_size: int = 400) -> Tokenizer:
    """A byte-level BPE: every text has tokens, and merges straddle borders."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>", "<|begin|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _fast(**options: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options)


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Builds the byte-level tokenizer with any special tokens and template."""
    return _fast


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose pad is its eos, without BOS, with ChatML."""
    return _fast(eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=TEMPLATES["chatml"])


@pytest.fixture
def base_tokenizer() -> PreTrainedTokenizerFast:
    """The same with a BOS of its own, and no template."""
    return _fast(eos_token="<|end|>", pad_token="<|end|>", bos_token="<|begin|>")


@pytest.fixture(params=["stories260K", "stories15M"])
def stories_tokenizer(request: pytest.FixtureRequest, shared_data: Path) -> Any:
    """SentencePiece-like: a space before every text, and a BOS."""
    return AutoTokenizer.from_pretrained(shared_data / "weights" / request.param)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (or raw lines) to a file and returns its path."""

    def write(rows: Sequence[Mapping[str, Any] | str], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        return path

    return write


def pairs(number: int) -> list[dict[str, str]]:
    """Preferences of uneven lengths, each with its own prompt."""
    return [
        {
            "prompt": f"Question {index}:" + " why" * (index % 5),
            "chosen": f" good answer {index}" + " yes" * (index % 7),
            "rejected": f" bad answer {index}" + " no" * (index % 3),
        }
        for index in range(number)
    ]


@pytest.fixture
def preference_rows() -> Callable[[int], list[dict[str, str]]]:
    """Makes rows of preferences."""
    return pairs


@pytest.fixture
def make_module(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, write_jsonl: Any) -> Callable[..., DataModule]:
    """Builds a data module over rows; every field can be replaced."""

    def make(rows: Sequence[Mapping[str, Any]] | None = None, **changes: Any) -> DataModule:
        if "train" not in changes:
            changes["train"] = FileSource(path=str(write_jsonl(rows or pairs(20))))
        batch_type: type[Batch] = PreferenceBatch
        settings: dict[str, Any] = {
            "validation": None,
            "validation_size": 0,
            "batch_size": 4,
            "micro_batch_size": 2,
            "max_length": 64,
            "max_prompt_length": 32,
            "truncate_prompt": "keep_end",
            "truncate_completion": "truncate",
            "on_bad_row": "error",
            "limit": None,
            "shuffle": True,
            "num_workers": 0,
            "num_proc": None,
            "tokenizer": tokenizer,
            "batch_type": batch_type,
            "seed": 7,
            "cache_dir": tmp_path / "cache",
        }
        return DataModule(**(settings | changes))

    return make
