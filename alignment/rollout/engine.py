"""What a roll-out engine is, and what it is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from alignment.types import PromptBatch, Rollout, Sampling
from alignment.utils.errors import ConfigError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignment.models.logprob_model import LogprobModel


class TokenPrompt(Protocol):
    """A prompt to sample from, as the tokens that the model is to read."""

    @property
    def id(self) -> str:
        """Names the prompt; unique within one call, because it seeds the prompt's samples."""
        ...

    @property
    def prompt(self) -> Any:
        """Text or chat messages, carried along for rewards and tables."""
        ...

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Token ids, special tokens included."""
        ...

    @property
    def answer(self) -> dict[str, Any]:
        """What a verifier needs to judge the answer."""
        ...


@dataclass(frozen=True)
class EncodedPrompt:
    """A plain :class:`TokenPrompt`."""

    id: str
    prompt: Any
    prompt_ids: tuple[int, ...]
    answer: dict[str, Any] = field(default_factory=dict)


class EngineBuilder(Protocol):
    """Makes an engine."""

    def __call__(self, *, model: LogprobModel, tokenizer: PreTrainedTokenizerBase) -> RolloutEngine:
        """Makes one of a model and its tokenizer."""
        ...


@dataclass(frozen=True)
class RolloutOptions:
    """The rollout group of a configuration.

    Attributes:
        engine: Builds the engine from the policy and its tokenizer.
        sampling: How completions are drawn.
    """

    engine: EngineBuilder
    sampling: Sampling


class RolloutEngine(Protocol):
    """Samples completions from a model's present weights."""

    def generate(self, prompts: Sequence[TokenPrompt], sampling: Sampling) -> list[Rollout]:
        """Draws ``sampling.num_samples`` completions of each prompt: prompt by prompt, sample by sample."""
        ...


def encoded_prompts(batch: PromptBatch) -> list[EncodedPrompt]:
    """Takes a batch of prompts apart; fillers (weight 0) are left out."""
    rows = zip(batch.ids, batch.prompts, batch.prompt_ids, batch.answers, batch.weights.tolist(), strict=True)
    return [EncodedPrompt(name, prompt, ids, answer) for name, prompt, ids, answer, weight in rows if weight > 0]


def check_sampling(sampling: Sampling) -> None:
    """Raises ConfigError for a sampling that cannot be drawn from."""
    checks = (
        ("max_new_tokens", sampling.max_new_tokens >= 1, "at least 1"),
        ("temperature", 0 <= sampling.temperature < float("inf"), "0 (greedy) or more"),
        ("top_p", 0 < sampling.top_p <= 1, "more than 0 and at most 1 (1 keeps every token)"),
        ("top_k", sampling.top_k >= 0, "0 (keeps every token) or more"),
        ("min_p", 0 <= sampling.min_p < 1, "at least 0 (keeps every token) and less than 1"),
        ("stop", all(sampling.stop), "texts that are not empty"),
        ("bad_words", all(sampling.bad_words), "texts that are not empty"),
        ("num_samples", sampling.num_samples >= 1, "at least 1"),
        ("batch_size", sampling.batch_size >= 1, "at least 1"),
    )
    for name, holds, expected in checks:
        if not holds:
            raise ConfigError(f"rollout.sampling.{name}", got=getattr(sampling, name), expected=expected)
    if sampling.temperature == 0 and sampling.num_samples > 1:
        raise ConfigError(
            "rollout.sampling.num_samples",
            got=sampling.num_samples,
            expected="1 at temperature 0",
            hint="greedy decoding gives the same completion every time",
        )


#: The settings under which every token may come.
_WHOLE: dict[str, Any] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "bad_words": []}


def narrowed_by(sampling: Sampling) -> dict[str, Any]:
    """Returns the settings that keep some tokens from coming, each with its value under which all may come."""
    return {name: whole for name, whole in _WHOLE.items() if getattr(sampling, name) != whole}


def draws_from_own_distribution(sampling: Sampling) -> bool:
    """Says whether samples come from the model's own distribution: temperature 1, and every token may come."""
    return sampling.temperature == 1.0 and not narrowed_by(sampling)


def check_prompts(prompts: Sequence[TokenPrompt], *, context_tokens: int | None, max_new_tokens: int) -> None:
    """Raises UserError for a prompt that is empty, does not fit, or has another's id.

    Args:
        prompts: What is to be sampled from.
        context_tokens: The most tokens that the model can read, ``None`` where it has no limit.
        max_new_tokens: Room that must be left for the completion.
    """
    repeated = [name for name, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if repeated:
        raise UserError(
            f"prompt {repeated[0]}: {len(repeated)} ids name more than one prompt each; their samples would be equal"
        )
    for prompt in prompts:
        if not prompt.prompt_ids:
            raise UserError(f"prompt {prompt.id}: no tokens to continue from; begin it with a token, for example BOS")
        room = None if context_tokens is None else context_tokens - max_new_tokens
        if room is not None and len(prompt.prompt_ids) > room:
            raise UserError(
                f"prompt {prompt.id}: {len(prompt.prompt_ids)} tokens, and {max_new_tokens} new ones, do not fit the "
                f"model's context of {context_tokens}: shorten the prompt to {max(room, 0)} tokens, or lower "
                "rollout.sampling.max_new_tokens"
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turns dropout off in every submodule, and puts each back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def casts_kept() -> Iterator[None]:
    """Has autocast make each weight's half precision once, and not for every token: no weight changes meanwhile.

    Lightning switches that off. Autocast drops what it has made when the outermost of its contexts ends.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)
