"""The worlds' tokenizers: byte-level BPE trained on a world's own texts, in about a second."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alignment.data.worlds import chains, reviews

VOCABULARY_SIZE = 1024
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
ROLES = ("system", "user", "assistant")
CONTEXT_TOKENS = 128

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""One BOS in front of the conversation; an assistant's turn ends with EOS, as a completion does."""


def world_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer of the reviews world; the same one every time.

    Any text can be encoded (its alphabet is all 256 bytes) and decodes to itself. BOS, EOS and PAD
    are three different tokens, and nothing but the chat template puts BOS in front of a text.
    """
    return _trained(_reviews(), pre_tokenizers.ByteLevel(add_prefix_space=False))


def chains_tokenizer() -> PreTrainedTokenizerFast:
    """Trains the tokenizer of the chains world; the same one every time.

    As :func:`world_tokenizer`, but a digit is always a token of its own, and so is the end of a line: a number
    looks the same wherever it stands, and a step ends where its last digit does.
    """
    alone = pre_tokenizers.Split(Regex(r"[0-9\n]"), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return _trained(_chains(), pre_tokenizers.Sequence([alone, bytes_only]))


def _trained(texts: Iterable[str], pre_tokenizer: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def _reviews() -> list[str]:
    requests = reviews.prompts("train")
    random = Random(0)  # noqa: S311
    reviewed = [reviews.sample_completion(reviews.parse_prompt(request), random=random) for request in requests]
    return [*requests, *reviewed]


def _chains() -> list[str]:
    random = Random(0)  # noqa: S311
    solver = chains.Solver(forget=0.0, slip=0.0)
    drawn = [chains.sample_chain("train", num_operations=(2, 4), random=random) for _ in range(200)]
    solved = ["\n".join(chains.sample_solution(chain, solver=solver, random=random)) for chain in drawn]
    return [*map(chains.prompt_text, drawn), *solved]
