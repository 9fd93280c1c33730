"""A trained judge: a classifier from a folder or the hub, asked about records.

It sees what it saw in training: its own tokenizer and chat template render the text, and its values are read at the
last real token, or at the last token of each step, found by length. The weights load when it is first asked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from alignment.data.chat import prompt_text
from alignment.data.collate import TokenSequence, token_batch
from alignment.data.encoding import Encoder
from alignment.data.records import PromptLike, Record, RecordError, to_row
from alignment.data.tokenise import Tokeniser
from alignment.data.tokenizer import TokenizerOptions
from alignment.data.truncation import Truncation, truncate_prompt
from alignment.data.views import view
from alignment.models.backbone import DType, PretrainedModel, auto_class
from alignment.models.score_model import NUM_LABELS, SequenceScorer, StepScorer, check_score_head
from alignment.rewards.errors import BlamedError
from alignment.types import Head
from alignment.utils.errors import BrokenJudgeError, ConfigError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_FILLER_ID = 0  # fills rows up on the right, where nothing sees it
_CLASSES = {Head.SCORE: "ForSequenceClassification", Head.STEPS: "ForTokenClassification"}
_OUTPUTS = {
    Head.SCORE: "a sequence classifier with one output",
    Head.STEPS: "a token classifier with two outputs, wrong and right",
}
_METHODS = {Head.SCORE: "reward_model", Head.STEPS: "prm"}
# Nothing is cut when a record is tokenised: what does not fit is known when both its parts are.
_WHOLE = Truncation(max_length=2**31, max_prompt_length=None, prompt="keep_end", completion="error")


@dataclass(frozen=True)
class JudgeOptions:
    """How a judge is loaded and asked.

    Attributes:
        revision: The hub's commit, branch or tag; ``None`` for the default branch.
        dtype: Type of the weights in memory.
        device: ``cuda`` is the device that this process uses.
        batch_size: Sequences of a forward pass.
        max_length: The most tokens of prompt and completion together; ``None`` is as many as the model can read.
        tokenizer: What the judge's tokenizer lacks.
    """

    revision: str | None
    dtype: DType
    device: Literal["cpu", "cuda"]
    batch_size: int
    max_length: int | None
    tokenizer: TokenizerOptions

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError("reward.batch_size", got=self.batch_size, expected="at least 1")
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError("reward.max_length", got=self.max_length, expected="at least 2 tokens, or null")


@dataclass(frozen=True)
class Rendered:
    """What a judge reads of one roll-out.

    Attributes:
        tokens: The sequence; its scored tokens are those at which a step ends.
        prompt_cut: Whether the prompt's beginning was cut off.
    """

    tokens: TokenSequence
    prompt_cut: bool

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.tokens.prompt_ids) + len(self.tokens.completion_ids)


class TrainedJudge:
    """One classifier.

    Args:
        path: A folder, or a hub name.
        key: The configuration key that holds the path, for messages.
        head: ``SCORE`` reads one value a sequence, ``STEPS`` two logits a step.
        options: How it is loaded and asked.
    """

    def __init__(self, path: str, *, key: str, head: Head, options: JudgeOptions) -> None:
        self.key, self.head, self.options = key, head, options
        self._source = PretrainedModel(
            path=path,
            revision=options.revision,
            dtype=options.dtype,
            attention="sdpa",
            quantization=None,
            gradient_checkpointing=False,
            compile=False,
            chunk_tokens=1,
            layout="padded",
            tokenizer=options.tokenizer,
        )

    @property
    def path(self) -> str:
        """Where the weights come from."""
        return self._source.path

    def render(self, records: Sequence[Record]) -> list[Rendered]:
        """Turns records of one kind into tokens as training does; a prompt that does not fit loses its beginning.

        Raises:
            UserError: A record cannot be rendered, or its completion alone does not fit.
        """
        if not records:
            return []
        kind, rows = records[0].kind, [to_row(record) for record in records]
        tokeniser = Tokeniser(
            tokenizer=self._tokenizer,
            have=kind,
            want=kind,
            seen_as=partial(view, want=kind),
            truncation=_WHOLE,
            on_bad_row="drop",
        )
        with self._own_keys():
            table = tokeniser({name: [row[name] for row in rows] for name in rows[0]})
        return [self._rendered(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True)]

    def render_empty(self, prompt: PromptLike, *, name: str) -> Rendered:
        """Turns a prompt into tokens with nothing but the end-of-sequence token behind it.

        Args:
            prompt: Text or chat messages.
            name: Names the roll-out in messages.
        """
        encoder = Encoder(self._tokenizer)
        with self._own_keys():
            try:
                text = prompt_text(self._tokenizer, prompt)
                prompt_ids = encoder.prompt(encoder.encode([text])[text])
            except RecordError as error:
                raise self._cannot_read(name, str(error)) from error
        return self._fit(prompt_ids, [encoder.eos_id], None, name=name)

    @torch.no_grad()
    def read(self, rendered: Sequence[Rendered]) -> list[Tensor]:
        """Returns what the model says of each sequence, fp32 on the CPU: a value, or the logits (steps, 2).

        Sequences of like length share a forward pass; the result does not depend on it but for rounding.
        """
        order = sorted(range(len(rendered)), key=lambda place: -rendered[place].length)
        values: dict[int, Tensor] = {}
        for first in range(0, len(order), self.options.batch_size):
            places = order[first : first + self.options.batch_size]
            batch = token_batch([rendered[place].tokens for place in places], pad_id=_FILLER_ID)
            # In the judge's own precision, whatever the caller's: a score is no matter of the policy's.
            with torch.autocast(self.options.device, enabled=False):
                output = self._scorer(batch.to(self.options.device)).cpu()
            sizes = torch.bincount(batch.sequence_index, minlength=batch.num_sequences).tolist()
            parts = output.unbind() if self.head is Head.SCORE else output.split(sizes)
            values.update(zip(places, parts, strict=True))
        self._check_finite(values)
        return [values[place] for place in range(len(rendered))]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        with self._own_keys():
            return self._source.tokenizer()

    @cached_property
    def _config(self) -> PreTrainedConfig:
        """The architecture.

        Raises:
            ConfigError: It is no classifier of this kind.
        """
        with self._own_keys():
            config = self._source.config()
        names: list[str] = config.architectures or []
        if not any(name.endswith(_CLASSES[self.head]) for name in names):
            raise self._refused(f"it is a {' or '.join(names) or 'model without a named architecture'}")
        if config.num_labels != NUM_LABELS[self.head]:
            raise self._refused(f"it has {config.num_labels} outputs")
        return config

    @cached_property
    def _scorer(self) -> SequenceScorer | StepScorer:
        if self.options.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("reward.device", got="cuda", expected="cpu: there is no CUDA device on this machine")
        wrap = SequenceScorer if self.head is Head.SCORE else StepScorer
        scorer = wrap(self._load()).requires_grad_(False).eval().to(self.options.device)
        try:
            check_score_head(scorer)
        except UserError as error:
            raise BrokenJudgeError(f"{self.key}={self.path}: {error}") from error
        log.info("loaded the judge %s", self._source.describe())
        return scorer

    def _load(self) -> PreTrainedModel:
        """Loads the weights, and refuses to invent any.

        Raises:
            BrokenJudgeError: Some are missing, misshapen, or not in safetensors.
        """
        config = self._config
        try:
            loaded: Any = auto_class(self.head).from_pretrained(
                self.path,
                revision=self.options.revision,
                config=config,
                dtype=getattr(torch, self.options.dtype),
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BrokenJudgeError(f"{self.key}={self.path}: the weights cannot be loaded: {reason}") from error
        model, report = loaded
        tied = set(getattr(model, "all_tied_weights_keys", ()) or ())
        problems = [f"{name} is missing" for name in sorted(set(report["missing_keys"]) - tied)]
        problems += [f"{name}: {have} in the file, {want} wanted" for name, have, want in report["mismatched_keys"]]
        if problems:
            raise BrokenJudgeError(
                f"{self.key}={self.path}: {len(problems)} weights do not fit config.json: {'; '.join(problems[:5])}. "
                f"They would be random, and so would be the scores: {_remedy(self.head)}"
            )
        return model

    @cached_property
    def _limit(self) -> int | None:
        """The most tokens of a sequence."""
        context = getattr(self._config.get_text_config(), "max_position_embeddings", None)
        limit = self.options.max_length
        if limit is not None and context is not None and limit > context:
            raise ConfigError("reward.max_length", got=limit, expected=f"at most {context}, what {self.path} can read")
        return context if limit is None else limit

    def _rendered(self, row: dict[str, Any]) -> Rendered:
        if row["dropped"]:
            raise self._cannot_read(row["id"], row["dropped"])
        return self._fit(row["prompt_ids"], row["completion_ids"], row["scored"] or None, name=row["id"])

    def _fit(self, prompt_ids: list[int], ids: list[int], scored: list[bool] | None, *, name: str) -> Rendered:
        room = max(len(prompt_ids), 1) if self._limit is None else self._limit - len(ids)
        if room < 1:
            raise self._cannot_read(
                name,
                f"its completion has {len(ids)} tokens and its prompt needs one, but {self._limit} are read at most: "
                "raise reward.max_length if the model can read more, or lower rollout.sampling.max_new_tokens",
            )
        bos_id: Any = self._tokenizer.bos_token_id
        kept = truncate_prompt(prompt_ids, _WHOLE, limit=room, bos_id=bos_id, name=name)
        return Rendered(TokenSequence(kept, ids, scored), prompt_cut=len(kept) < len(prompt_ids))

    def _check_finite(self, values: dict[int, Tensor]) -> None:
        broken = sum(not bool(value.isfinite().all()) for value in values.values())
        if broken:
            raise UserError(
                f"{self.key}={self.path}: {broken} of {len(values)} scores are not finite; try reward.dtype=float32"
            )

    def _refused(self, what: str) -> ConfigError:
        return ConfigError(
            self.key, got=self.path, expected=_OUTPUTS[self.head], hint=f"but {what}: {_remedy(self.head)}"
        )

    def _cannot_read(self, name: str, reason: str) -> BlamedError:
        return BlamedError(f"{self.key}={self.path} cannot read the roll-out of prompt {name}: {reason}")

    @contextmanager
    def _own_keys(self) -> Iterator[None]:
        """Names the judge's own keys in what goes wrong with its path or its tokenizer."""
        try:
            yield
        except ConfigError as error:
            key = error.key.replace("model.tokenizer", "reward.tokenizer").replace("model.path", self.key)
            raise ConfigError(key, got=error.got, expected=error.expected, hint=error.hint) from error


def _remedy(head: Head) -> str:
    return f"train one with align train method={_METHODS[head]}, or name {_OUTPUTS[head]}"
