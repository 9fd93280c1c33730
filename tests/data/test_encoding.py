"""T1: one BOS. T4: exact borders between prompt and completion, over any text."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.data.encoding import Encoder, tokenizer_hash
from alignment.data.records import RecordError

TEXT = st.text(max_size=24) | st.text("aeht \n.:,", max_size=24) | st.sampled_from([" the cat", "é", "e\u0301", "😀"])
ANY_TEXT = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def join(encoder: Encoder, prompt: str, completion: str) -> tuple[list[int], list[int], bool]:
    whole = prompt + completion
    encoded = encoder.encode([prompt, whole])
    ids, repaired = encoder.continuation(encoded[prompt], completion, encoded[whole])
    return encoded[prompt], ids, repaired


def check_border(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> None:
    """The prompt's tokens are what generation starts from, and the text is unchanged."""
    encoder = Encoder(tokenizer)
    prompt_ids, completion_ids, _ = join(encoder, prompt, completion)
    whole = encoder.encode([prompt + completion])[prompt + completion]
    assert prompt_ids == encoder.encode([prompt])[prompt]
    decode = [tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (prompt_ids + completion_ids, whole)]
    assert unicodedata.normalize("NFC", decode[0]) == unicodedata.normalize("NFC", decode[1])


@given(prompt=TEXT, completion=TEXT)
@ANY_TEXT
def test_border_byte_level(tokenizer: PreTrainedTokenizerFast, prompt: str, completion: str) -> None:
    check_border(tokenizer, prompt, completion)


@given(prompt=TEXT, completion=TEXT)
@ANY_TEXT
def test_border_stories(stories_tokenizer: Any, prompt: str, completion: str) -> None:
    check_border(stories_tokenizer, prompt, completion)


def test_a_token_across_the_border_is_split(tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = Encoder(tokenizer)
    assert len(tokenizer("the")["input_ids"]) == 1
    prompt_ids, completion_ids, repaired = join(encoder, "what t", "he cat")
    assert repaired
    assert prompt_ids == tokenizer("what t")["input_ids"]
    assert tokenizer.decode(completion_ids) == "he cat"


def test_stories_completion_behind_a_space(stories_tokenizer: Any) -> None:
    """Alone, the completion would be given a space that the text does not have."""
    _, completion_ids, _ = join(Encoder(stories_tokenizer), "Once upon ", "a time")
    alone = stories_tokenizer("a time", add_special_tokens=False)["input_ids"]
    assert stories_tokenizer.decode([1, *completion_ids]) != stories_tokenizer.decode([1, *alone])


def test_composing_normaliser() -> None:
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate("eé\u0301x")}, []))
    backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.Fuse()
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="x", pad_token="x"))
    assert join(encoder, "e", "\u0301") == ([0], [2], True)


def test_what_cannot_be_told_apart_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"ab": 0, "a": 1, "[U]": 2}, unk_token="[U]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[U]", pad_token="[U]"))
    with pytest.raises(RecordError, match="cannot be told apart"):
        join(encoder, "a", "b")


def test_one_bos(stories_tokenizer: Any) -> None:
    encoder = Encoder(stories_tokenizer)
    for text in ("Once", "<s>Once", "<s><s>Once", ""):
        ids = encoder.encode([text])[text]
        assert ids[0] == 1
        assert ids.count(1) == 1


def test_no_bos_where_the_tokenizer_uses_none(base_tokenizer: PreTrainedTokenizerFast) -> None:
    """It has a BOS token but does not put it there: like GPT-2."""
    encoder = Encoder(base_tokenizer)
    assert base_tokenizer.bos_token_id not in encoder.encode(["the"])["the"]
    assert encoder.prompt([]) == [base_tokenizer.bos_token_id]


def test_empty_prompt_without_any_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RecordError, match="empty prompt"):
        Encoder(tokenizer).prompt([])


def test_eos_that_the_tokenizer_adds_is_left_out(shared_data: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "weights" / "stories260K")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert tokenizer("a")["input_ids"][-1] == 2
    assert 2 not in Encoder(tokenizer).encode(["a"])["a"]


def test_tokenizer_hash(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> None:
    first = make_tokenizer(eos_token="<|end|>", pad_token="<|end|>")
    name = tokenizer_hash(first)
    first(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    first.chat_template = "{{ messages }}"
    assert tokenizer_hash(first) == name
    assert tokenizer_hash(make_tokenizer(eos_token="<|im_end|>", pad_token="<|end|>")) != name
    first.add_tokens(["<new>"])
    assert tokenizer_hash(first) != name
