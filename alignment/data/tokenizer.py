"""Loading a tokenizer, and filling in what it lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignment.data.chat_templates import chat_template
from alignment.utils.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizerOptions:
    """What to set on a tokenizer; ``None`` keeps its own.

    Attributes:
        pad_token: Padding. Without one the end-of-sequence token pads: masks come from lengths, so it stays a label.
        eos_token: What ends a completion.
        bos_token: What begins a sequence.
        chat_template: A shipped template's name, a Jinja template, or the path of a file that holds one.
    """

    pad_token: str | None
    eos_token: str | None
    bos_token: str | None
    chat_template: str | None


def load_tokenizer(path: str, *, revision: str | None, options: TokenizerOptions) -> PreTrainedTokenizerBase:
    """Loads a tokenizer and completes it.

    Raises:
        ConfigError: If it cannot be loaded, or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "model.path",
            got=path,
            expected="a folder or hub name that holds a tokenizer",
            hint=str(error).splitlines()[0],
        ) from error
    return complete_tokenizer(tokenizer, options)


def complete_tokenizer(tokenizer: PreTrainedTokenizerBase, options: TokenizerOptions) -> PreTrainedTokenizerBase:
    """Sets the tokens of ``options`` that are given; all must already be in the vocabulary."""
    for name in ("pad_token", "eos_token", "bos_token"):
        token = getattr(options, name)
        if token is None:
            continue
        if token not in tokenizer.get_vocab():
            raise ConfigError(
                f"model.tokenizer.{name}",
                got=token,
                expected="a token of the vocabulary",
                hint="new tokens would need new embeddings, which are not made here",
            )
        setattr(tokenizer, name, token)
    if tokenizer.eos_token is None:
        raise ConfigError(
            "model.tokenizer.eos_token",
            got=None,
            expected="a token that ends a completion",
            hint="the tokenizer has none of its own",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if options.chat_template is not None:
        tokenizer.chat_template = chat_template(options.chat_template)
    return tokenizer


def with_own_pad_token(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Gives a tokenizer that pads with its end-of-sequence token its unknown token as padding instead.

    Here masks come from lengths. But other tools find the end of a text that they classify by searching for the pad
    token, and would stop one token early at an end of sequence that is the pad token too.

    Raises:
        ConfigError: If there is no other token to take.
    """
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id == tokenizer.eos_token_id:
        raise ConfigError(
            "model.tokenizer.pad_token",
            got=tokenizer.pad_token,
            expected="another token than the end-of-sequence token, for a model that judges",
            hint=f"the tokenizer's special tokens are {', '.join(map(str, tokenizer.all_special_tokens))}",
        )
    tokenizer.pad_token = tokenizer.unk_token
    return tokenizer
