"""Typed values that cross the borders between layers.

A *sequence* is a prompt and its completion as token ids. A *scored* token is one whose log-prob
counts: the completion's tokens, its end-of-sequence token included, the prompt's never. Everything
that depends on how sequences are laid out in rows is inside :class:`TokenBatch`; what leaves the
log-prob path is flat over scored tokens, so that no loss knows about layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Self, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Role(StrEnum):
    """What a model is for. A method declares the roles that it needs; no other model is loaded."""

    POLICY = "policy"
    REFERENCE = "reference"
    REWARD = "reward"
    CRITIC = "critic"


class Head(StrEnum):
    """What sits on the trained model's trunk, and so what its forward gives."""

    LANGUAGE = "language"
    """Log-probs of scored tokens: :class:`TokenLogps`."""
    SCORE = "score"
    """One value a sequence, read at its last real token: a reward model."""
    STEPS = "steps"
    """The two logits (wrong, right) of each scored token: a process reward model."""


class OnDevice:
    """Moves every tensor of a dataclass, nested ones included (Lightning calls ``to``)."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Returns the same value with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Returns the same value with every tensor in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            value: Any = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = function(value)
            elif isinstance(value, OnDevice):
                changed[item.name] = value._map(function)
            elif isinstance(value, tuple):
                entries = cast("tuple[Any, ...]", value)
                changed[item.name] = tuple(e._map(function) if isinstance(e, OnDevice) else e for e in entries)
        return replace(self, **changed)  # type: ignore[type-var]


class Layout(StrEnum):
    """How sequences lie in rows. All three give the same numbers and gradients."""

    PADDED = "padded"
    """A sequence a row, filled up on the right: the reference."""
    PACKED = "packed"
    """One row, sequence behind sequence, no padding."""
    PREFIX_SHARED = "prefix_shared"
    """One row without padding, and a prompt that several sequences begin with is in it once."""


@dataclass(frozen=True)
class Segments(OnDevice):
    """Which places of a batch's one row attend to which: a sequence's tokens to those before them in it.

    A *group* is a trunk and its branches. The trunk is a prompt, a branch a completion that sees the trunk and
    itself; a sequence that shares nothing is a trunk without branches. Groups fill the row in order, a trunk
    before its branches.

    Attributes:
        groups: Tokens of each group's trunk and of its branches.
        places: For each sequence the places of its tokens in order, the trunk's first; shorter ones are filled up
            with their last one.
        home: For each place of the row the flat index into ``places`` at which its own output is read.
    """

    groups: tuple[tuple[int, ...], ...]
    places: Int[Tensor, "sequences length"]
    home: Int[Tensor, "width"]


@dataclass(frozen=True)
class TokenBatch(OnDevice):
    """Sequences laid out in rows, with the places at which their scored tokens are predicted.

    Attributes:
        input_ids: Token ids, rows x width.
        attention_mask: 1 at real tokens, 0 at padding; ``None`` where causality alone keeps real
            tokens from seeing padding (right padding), which leaves the fast attention path open.
        position_ids: Positions, or ``None`` for 0..width-1 in every row.
        predictor_index: For each scored token the flat index ``row * width + column`` of the
            position whose hidden state predicts it: the sequence's token before it.
        target_index: For each scored token its own flat index.
        targets: For each scored token its id.
        sequence_index: For each scored token the sequence that it belongs to; ascending.
        num_sequences: How many sequences the batch holds.
        num_real_tokens: Tokens that are not padding, prompts included.
        in_completion: Which scored tokens belong to a completion; ``None`` where all do. A method that also
            learns from prompts (``scores_prompt``) has the prompt's tokens scored, and marked False here.
        segments: How the one row of a packed or prefix-shared batch is cut; ``None`` where a sequence has its own row.
    """

    input_ids: Int[Tensor, "rows width"]
    attention_mask: Int[Tensor, "rows width"] | None
    position_ids: Int[Tensor, "rows width"] | None
    predictor_index: Int[Tensor, "tokens"]
    target_index: Int[Tensor, "tokens"]
    targets: Int[Tensor, "tokens"]
    sequence_index: Int[Tensor, "tokens"]
    num_sequences: int
    num_real_tokens: int
    in_completion: Bool[Tensor, "tokens"] | None = None
    segments: Segments | None = None


@dataclass(frozen=True)
class Batch(OnDevice):
    """What every training batch carries.

    Attributes:
        ids: The records' ids, for error messages and dumps.
        weights: 1 for a record, 0 for a filler that evens out the last step over ranks.
        counts: Denominators over the whole optimiser step, all micro-batches and ranks together:
            ``records``, and ``tokens`` (scored tokens) where there are any.
    """

    ids: tuple[str, ...]
    weights: Float[Tensor, "records"]
    counts: dict[str, float] = field(kw_only=True)


@dataclass(frozen=True)
class SFTBatch(Batch):
    """Demonstrations: one sequence a record."""

    tokens: TokenBatch


@dataclass(frozen=True)
class PreferenceBatch(Batch):
    """Pairs: sequences 0..n-1 are the chosen, n..2n-1 the rejected completions.

    ``counts`` also holds ``chosen_tokens``. ``reference_token_logps`` is there when they come from
    the reference cache. ``probabilities`` says how likely it is that the chosen one is the better, in [.5, 1]:
    ties and divided votes are below 1; ``None`` where every label is hard.
    """

    tokens: TokenBatch
    margins: Float[Tensor, "records"]
    reference_token_logps: Float[Tensor, "tokens"] | None = None
    probabilities: Float[Tensor, "records"] | None = None


@dataclass(frozen=True)
class Mismatched(OnDevice):
    """The prompts of a micro-batch's records, each followed by the completion of another prompt.

    Attributes:
        ids: The records' ids.
        weights: 1 for a record, 0 for a filler.
        tokens: One sequence a record.
        reference_token_logps: There when they come from the reference cache.
    """

    ids: tuple[str, ...]
    weights: Float[Tensor, "records"]
    tokens: TokenBatch
    reference_token_logps: Float[Tensor, "tokens"] | None = None


@dataclass(frozen=True)
class BinaryBatch(Batch):
    """Completions with a thumbs up (True) or down: one sequence a record.

    ``mismatched`` is there for KTO's baseline: the first micro-batch of an optimiser step carries those of all of
    this rank's micro-batches of the step, the others none.
    """

    tokens: TokenBatch
    labels: Bool[Tensor, "records"]
    reference_token_logps: Float[Tensor, "tokens"] | None = None
    mismatched: tuple[Mismatched, ...] = ()


@dataclass(frozen=True)
class StepwiseBatch(Batch):
    """Solutions in steps: one sequence a record, its scored tokens are the last ones of its steps.

    ``labels`` holds one value in [0, 1] for each scored token of ``tokens``, in the same order.
    """

    tokens: TokenBatch
    labels: Float[Tensor, "steps"]


@dataclass(frozen=True)
class PromptBatch(Batch):
    """Prompts to roll out, as token ids without padding, and the answer fields of their records."""

    prompt_ids: tuple[tuple[int, ...], ...]
    prompts: tuple[Any, ...]
    answers: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class RolloutBatch(Batch):
    """Completions that the policy wrote, group by group: one sequence each.

    What is said of tokens is flat over the scored tokens of ``tokens``. ``counts`` also holds ``sequences`` (those of
    weight 1), ``tokens`` (theirs), and ``new_prompts``: those that no earlier step has trained on.

    Attributes:
        tokens: The sequences.
        sequence_weights: 1 for a completion that is learnt from; 0 in a filler, and for one that is masked.
        advantages: Of each token.
        sampler_logps: Log-probs in nats under the engine that drew the tokens.
        old_logps: Under the policy as it was then; ``None`` where this step is the first since.
        reference_logps: Under the reference; ``None`` where no term takes it.
        old_values: What the critic said then of the state before each token; ``None`` without a critic.
        returns: What the critic is to say of it; ``None`` without a critic.
    """

    tokens: TokenBatch
    sequence_weights: Float[Tensor, "sequences"]
    advantages: Float[Tensor, "tokens"]
    sampler_logps: Float[Tensor, "tokens"]
    old_logps: Float[Tensor, "tokens"] | None = None
    reference_logps: Float[Tensor, "tokens"] | None = None
    old_values: Float[Tensor, "tokens"] | None = None
    returns: Float[Tensor, "tokens"] | None = None

    @property
    def token_weights(self) -> Float[Tensor, "tokens"]:
        """Its sequence's weight for each token."""
        return self.sequence_weights[self.tokens.sequence_index]


@dataclass(frozen=True)
class Values(OnDevice):
    """What a critic says.

    Attributes:
        before: Of the state before each scored token: what it predicts from (flat, fp32).
        after: Of the state after each sequence's last token.
    """

    before: Float[Tensor, "tokens"]
    after: Float[Tensor, "sequences"]


@dataclass(frozen=True)
class TokenLogps(OnDevice):
    """The log-prob path's result, flat over the batch's scored tokens.

    Sums and means a sequence are over the completion's tokens only, also where prompts are scored.

    Attributes:
        token_logps: log p(token | prefix) in nats, fp32.
        sequence_index: As in the batch.
        num_sequences: As in the batch.
        in_completion: As in the batch.
        is_greedy: Whether no other token is likelier than the scored one; ``None`` for log-probs from a cache.
        collision_logps: log of the sum over the vocabulary of p(. | prefix)^2, in nats, without gradient: the
            log-probability that two draws are the same token. There when it was asked for.
        entropies: Of p(. | prefix), in nats, without gradient. There when they were asked for.
        ranks: How many tokens are likelier than the scored one: 0 is greedy. There when they were asked for.
        values: Of the value head on the same trunk. There when they were asked for.
    """

    token_logps: Float[Tensor, "tokens"]
    sequence_index: Int[Tensor, "tokens"]
    num_sequences: int
    in_completion: Bool[Tensor, "tokens"] | None = None
    is_greedy: Bool[Tensor, "tokens"] | None = None
    collision_logps: Float[Tensor, "tokens"] | None = None
    entropies: Float[Tensor, "tokens"] | None = None
    ranks: Int[Tensor, "tokens"] | None = None
    values: Values | None = None

    @property
    def num_tokens(self) -> Float[Tensor, "sequences"]:
        """Completion tokens of each sequence."""
        return self.sum_by_sequence(torch.ones_like(self.token_logps))

    @property
    def sum_logps(self) -> Float[Tensor, "sequences"]:
        """S(y): the sum over each completion's tokens, in nats."""
        return self.sum_by_sequence(self.token_logps)

    @property
    def mean_logps(self) -> Float[Tensor, "sequences"]:
        """M(y): the mean over each completion's tokens, in nats a token."""
        return self.sum_logps / self.num_tokens

    def sum_by_sequence(self, values: Float[Tensor, "tokens"]) -> Float[Tensor, "sequences"]:
        """Adds up any value that is flat over scored tokens, completion by completion."""
        total = values.new_zeros(self.num_sequences)
        kept = values if self.in_completion is None else torch.where(self.in_completion, values, 0.0)
        return total.index_add(0, self.sequence_index, kept)


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. Temperature 0 is greedy decoding.

    Attributes:
        max_new_tokens: The most tokens that a completion may have.
        temperature: Divides the logits; scoring must use the same.
        top_p: Keep the smallest set of tokens with this much probability; 1.0 keeps all.
        top_k: Keep this many of the most likely tokens; 0 keeps all.
        min_p: Keep tokens with at least this part of the likeliest one's probability; 0 keeps all.
        stop: Texts that end a completion, and stay in it.
        bad_words: Texts that are never written.
        num_samples: Completions for each prompt.
        seed: Seeds the draw, which leaves the process's own random state untouched.
        batch_size: Completions generated at a time.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    num_samples: int
    seed: int
    batch_size: int
    min_p: float
    stop: list[str]
    bad_words: list[str]


@dataclass(frozen=True)
class Rollout:
    """One sampled completion; its tokens are kept as they were generated, never re-tokenised.

    ``finish_reason`` is ``stop`` when an end-of-sequence token was drawn (it is the last of ``completion_ids``) or a
    stop text written, and ``length`` when the completion was cut off. ``token_logps`` are the log-probs in nats of the
    completion's tokens under the distribution that they were drawn from; ``seed`` is the sampling's.
    """

    prompt_id: str
    prompt: Any
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    completion: str
    finish_reason: str
    sample: int
    answer: dict[str, Any] = field(default_factory=dict[str, Any])
    token_logps: tuple[float, ...] = ()
    seed: int = 0

    @property
    def is_truncated(self) -> bool:
        """Whether the completion was cut off."""
        return self.finish_reason == "length"


@dataclass(frozen=True)
class Rewards:
    """One value for each roll-out: the total, and the named components that it was made from."""

    total: tuple[float, ...]
    components: dict[str, tuple[float, ...]]
