"""Sampling with the Hugging Face model itself, in the process that trains it.

The decoding loop is short and its own: it keeps a row's random numbers apart from every other row's, so that
a sample depends on the seed, its prompt and its number alone and on no batch, and finished rows leave the
batch. The process's own random state is never touched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignment.models.logprob_model import LogprobModel
from alignment.rollout.cache import growing_cache
from alignment.rollout.engine import TokenPrompt, check_prompts, check_sampling, evaluating
from alignment.types import Rollout, Sampling

if TYPE_CHECKING:
    from transformers import NoBadWordsLogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria


@dataclass(frozen=True)
class Decoded:
    """One completion as it was sampled.

    Attributes:
        token_ids: The completion, its end-of-sequence token included.
        token_logps: Log-prob in nats of each token under the distribution that it was drawn from: after
            temperature, top-k, top-p, min-p and bad words. Zeros for greedy decoding.
        stopped: Whether a stop text was written.
    """

    token_ids: tuple[int, ...]
    token_logps: tuple[float, ...]
    stopped: bool = False


@dataclass(frozen=True)
class TextRules:
    """What a sampling says of texts, as transformers has it.

    Attributes:
        stop: Says of each row whether it has come to a stop text; ``None`` without any.
        bad_words: Takes away what would complete a bad word; ``None`` without any.
    """

    stop: StopStringCriteria | None = None
    bad_words: NoBadWordsLogitsProcessor | None = None


class HFEngine:
    """Samples from a model as it is now: no copy of the weights, nothing kept between calls.

    Args:
        model: The policy; its ``backbone`` is a Hugging Face model, with or without an adapter.
        tokenizer: Turns completions into text.
    """

    def __init__(self, model: LogprobModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def generate(self, prompts: Sequence[TokenPrompt], sampling: Sampling) -> list[Rollout]:
        """Draws ``sampling.num_samples`` completions of each prompt: prompt by prompt, sample by sample.

        Raises:
            UserError: A prompt does not fit the model's context; the sampling cannot be drawn from.
        """
        check_sampling(sampling)
        limit = context_tokens(self.model.hf_model)
        check_prompts(prompts, context_tokens=limit, max_new_tokens=sampling.max_new_tokens)
        jobs = [(prompt, sample) for prompt in prompts for sample in range(sampling.num_samples)]
        # Rows of like length share a batch: there is less padding to compute on.
        order = sorted(range(len(jobs)), key=lambda job: -len(jobs[job][0].prompt_ids))
        rollouts: list[Rollout | None] = [None] * len(jobs)
        stop_ids = end_of_sequence_ids(self.model.hf_model, self.tokenizer)
        texts = text_rules(self.tokenizer, sampling)
        with torch.no_grad(), evaluating(self.model):
            for start in range(0, len(order), sampling.batch_size):
                rows = order[start : start + sampling.batch_size]
                decoded = decode(
                    self.model.hf_model,
                    [jobs[row][0].prompt_ids for row in rows],
                    uniforms=[_uniforms(*jobs[row], sampling) for row in rows],
                    sampling=sampling,
                    stop_ids=stop_ids,
                    texts=texts,
                )
                for row, completion in zip(rows, decoded, strict=True):
                    rollouts[row] = self._rollout(*jobs[row], completion, sampling.seed, stop_ids)
        return [rollout for rollout in rollouts if rollout is not None]

    def _rollout(
        self, prompt: TokenPrompt, sample: int, decoded: Decoded, seed: int, stop_ids: frozenset[int]
    ) -> Rollout:
        token_ids = decoded.token_ids
        ended = token_ids[-1] in stop_ids
        text_ids = token_ids[:-1] if ended else token_ids
        return Rollout(
            prompt_id=prompt.id,
            prompt=prompt.prompt,
            prompt_ids=prompt.prompt_ids,
            completion_ids=token_ids,
            completion=completion_text(self.tokenizer, prompt.prompt_ids, text_ids),
            finish_reason="stop" if ended or decoded.stopped else "length",
            sample=sample,
            answer=prompt.answer,
            token_logps=decoded.token_logps,
            seed=seed,
        )


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    uniforms: Sequence[np.ndarray],
    sampling: Sampling,
    stop_ids: frozenset[int],
    texts: TextRules | None = None,
) -> list[Decoded]:
    """Samples one completion of each prompt, all in one batch.

    Args:
        model: In evaluation mode; the caller turns gradients off.
        prompts: Token ids; none is empty.
        uniforms: For each prompt ``max_new_tokens`` numbers in [0, 1), one for each token that may be drawn.
        sampling: Temperature, top-k, top-p, min-p and the most new tokens.
        stop_ids: Tokens that end a completion; they are kept as its last.
        texts: Stop texts and bad words; ``None`` for neither.
    """
    texts, device = texts or TextRules(), model.device
    # A prompt is read once, however many completions it gets here; what was read is then copied for each.
    unique = {tuple(prompt): place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    row_of = torch.tensor([unique[tuple(prompt)] for prompt in prompts], device=device)
    rows = _Rows(model, list(unique))
    noise = torch.from_numpy(np.stack(uniforms)).to(device)
    stops = torch.tensor(sorted(stop_ids), device=device)
    alive = torch.arange(len(prompts), device=device)
    tokens = torch.full((len(prompts), sampling.max_new_tokens), -1, device=device)
    logps = torch.zeros(len(prompts), sampling.max_new_tokens, device=device)
    stopped = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for step in range(sampling.max_new_tokens):
        logits = rows.read()
        if step == 0 and len(unique) < len(prompts):
            logits = logits[row_of]
            rows.take(row_of)
        if texts.bad_words is not None:
            logits = texts.bad_words(cast("Any", tokens[alive, :step]), cast("Any", logits))
        drawn, drawn_logps = draw(logits, noise[alive, step], sampling=sampling)
        tokens[alive, step], logps[alive, step] = drawn, drawn_logps
        if texts.stop is not None:
            stopped[alive] = texts.stop(cast("Any", tokens[alive, : step + 1]), cast("Any", logits))
        kept = closed_up(~torch.isin(drawn, stops) & ~stopped[alive])
        if len(kept) == 0:
            break
        if len(kept) < len(alive):
            alive, drawn = alive[kept], drawn[kept]
            rows.take(kept)
        rows.go_on(drawn)
    return [
        Decoded(tuple(ids[: (n := sum(token >= 0 for token in ids))]), tuple(values[:n]), has_stopped)
        for ids, values, has_stopped in zip(tokens.tolist(), logps.tolist(), stopped.tolist(), strict=True)
    ]


class _Rows:
    """What the model has read of each row, and what it is to read next: the prompts, then a token at a time."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model, self._cache = model, growing_cache(model.config)
        width, device = max(len(prompt) for prompt in prompts), model.device
        # All end in the last column. Padding is never seen: which id fills it does not matter.
        self._next = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        self._mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
        self._places = (self._mask.cumsum(1) - 1).clamp_min(0)

    def read(self) -> Float[Tensor, "rows vocabulary"]:
        """Returns logits of the token behind each row, fp32."""
        output = self._model(
            input_ids=self._next,
            attention_mask=self._mask,
            position_ids=self._places,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    def take(self, rows: Int[Tensor, "taken"]) -> None:
        """Goes on with these rows; a row may be taken more than once."""
        self._mask, self._places = self._mask[rows], self._places[rows]
        self._cache.batch_select_indices(rows)

    def go_on(self, tokens: Int[Tensor, "rows"]) -> None:
        """Puts a token behind each row, to be read next."""
        self._next, self._places = tokens[:, None], self._places[:, -1:] + 1
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)


def closed_up(stays: Bool[Tensor, "rows"]) -> Int[Tensor, "kept"]:
    """Returns the rows that stay, the last of them in the places of those that leave: few have to be moved.

    >>> closed_up(torch.tensor([True, False, True, False, True])).tolist()
    [0, 4, 2]
    """
    kept = stays.nonzero()[:, 0]
    rows = torch.arange(len(kept), device=stays.device)
    rows[~stays[: len(kept)]] = kept[kept >= len(kept)]
    return rows


def draw(
    logits: Float[Tensor, "rows vocabulary"], uniforms: Float[Tensor, "rows"], *, sampling: Sampling
) -> tuple[Int[Tensor, "rows"], Float[Tensor, "rows"]]:
    """Draws a token of each row by inverting its cumulative distribution at a given number in [0, 1).

    One number a token makes a row's draw its own. The sum is in float64, in which no token that has any
    probability in fp32 is lost.

    Returns:
        Token ids, and their log-probs in nats under the distribution drawn from.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1), torch.zeros_like(uniforms, dtype=logits.dtype)
    kept = filtered(logits / sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p)
    logps = kept.log_softmax(-1)
    cumulative = logps.double().exp().cumsum(-1)
    # Right of every equal value: a token without probability adds nothing to the sum and is never drawn.
    chosen = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1])[:, None], right=True)
    chosen = chosen.clamp_max(logits.shape[-1] - 1)
    return chosen[:, 0], logps.gather(-1, chosen)[:, 0]


def filtered(
    logits: Float[Tensor, "rows vocabulary"], *, top_k: int, top_p: float, min_p: float
) -> Float[Tensor, "rows vocabulary"]:
    """Sets to minus infinity what top-k, then min-p and top-p among the rest, leave out; one token always stays.

    Min-p (Nguyen et al. 2024, arXiv 2407.01082) keeps tokens with at least so much of the likeliest one's probability.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    if min_p > 0:
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), float("-inf"))
    if top_p < 1.0:
        ordered, places = logits.sort(descending=True)
        probabilities = ordered.softmax(-1)
        # Out goes what lies behind the first tokens that already reach top_p together.
        beyond: Bool[Tensor, "rows vocabulary"] = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(beyond.scatter(-1, places, beyond), float("-inf"))
    return logits


def completion_text(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
    """Returns what a completion adds to its prompt's text, a space at its beginning included.

    A tokenizer that writes a word's space into its first token drops that space from the first word of
    whatever it decodes: a completion that is decoded alone would stick to its prompt.
    """
    before, whole = _text(tokenizer, prompt_ids), _text(tokenizer, [*prompt_ids, *ids])
    # A character whose bytes are spread over prompt and completion makes the beginnings differ.
    return whole.removeprefix(before) if whole.startswith(before) else _text(tokenizer, ids)


def context_tokens(model: PreTrainedModel) -> int | None:
    """Returns the most tokens that a model can read, or ``None`` where its configuration names no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def end_of_sequence_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Returns every token that ends a completion: the generation configuration's, and the tokenizer's own."""
    configured = model.generation_config.eos_token_id
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*listed, tokenizer.eos_token_id] if isinstance(token, int))


def text_rules(tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> TextRules:
    """Builds transformers' own rules for stop texts and bad words; these count with and without a space before them."""
    from transformers import NoBadWordsLogitsProcessor, StopStringCriteria

    stop = StopStringCriteria(tokenizer, list(sampling.stop)) if sampling.stop else None
    spellings = [text for word in sampling.bad_words for text in (word, f" {word}")]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in spellings]
    bad = NoBadWordsLogitsProcessor([row for row in ids if row]) if spellings else None
    return TextRules(stop=stop, bad_words=bad)


def _uniforms(prompt: TokenPrompt, sample: int, sampling: Sampling) -> np.ndarray:
    """The random numbers of one completion, a function of seed, prompt and sample number only."""
    name = f"{sampling.seed}/{sample}/{prompt.id}".encode("utf-8", "surrogatepass")
    entropy = int.from_bytes(hashlib.sha256(name).digest())
    return np.random.default_rng(entropy).random(sampling.max_new_tokens)


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text
