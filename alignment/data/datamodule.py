"""The one data module: any source, any kind of batch, the same order everywhere."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from alignment.data.batches import KINDS, BatchMaker
from alignment.data.loader import PlannedLoader
from alignment.data.mismatch import MISMATCH_VERSION, Mismatch, partners
from alignment.data.plan import Geometry, plan_epoch, plan_once
from alignment.data.records import PromptLike, Record, RecordKind
from alignment.data.reference_cache import ReferenceCache
from alignment.data.sources import Source
from alignment.data.splits import RecordSet, cached_records, soft_labels, split_by_prompt
from alignment.data.statistics import token_statistics
from alignment.data.store import content_hash
from alignment.data.table import TokenTable
from alignment.data.tokenise import Tokeniser, tokenise
from alignment.data.truncation import CompletionPolicy, PromptPolicy, Truncation
from alignment.data.views import check_view, prompt_of, view
from alignment.types import Batch, PreferenceBatch, SFTBatch
from alignment.utils.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOutPrompt:
    """A prompt for measuring on.

    Attributes:
        id: Of the record that it is from.
        prompt: Text or chat messages.
        prompt_ids: Its tokens, as the model sees it before it answers.
        answer: What a verifier needs.
    """

    id: str
    prompt: PromptLike
    prompt_ids: tuple[int, ...]
    answer: dict[str, Any]


class DataModule(pl.LightningDataModule):
    """Records from a source, tokenised once, in batches of the type that a method eats.

    Args:
        train: Where the records come from.
        validation: Where held-out records come from; ``None`` splits them off ``train``.
        validation_size: Records to split off where ``validation`` is ``None``: a number, or a share
            below 1. Records of one prompt stay on one side. 0 holds nothing out.
        batch_size: Records an optimiser step, over all accumulated micro-batches and ranks.
        micro_batch_size: Records of one forward pass of one rank.
        max_length: The most tokens of prompt and completion together.
        max_prompt_length: The most tokens of a prompt, or ``None``.
        truncate_prompt: What to do with a longer one.
        truncate_completion: What to do with a completion that does not fit behind its prompt.
        on_bad_row: What to do with a record that the template or the tokenizer cannot do.
        limit: Use only the first so many training records, or ``None``.
        shuffle: Whether each epoch has its own order.
        num_workers: Worker processes that make batches ahead.
        num_proc: Processes that tokenise; ``None`` is this one.
        tokenizer: Of the policy.
        batch_type: What the method eats.
        seed: Of the order.
        cache_dir: Where parsed and tokenised records are kept.
        mismatched: Whether binary batches carry prompts with completions of other prompts.
        score_prompt: Whether every token before the last scored one is scored too, and marked as no completion's.
        soft_labels: Whether preferences keep how likely the chosen side is the better; else ties are dropped.
    """

    def __init__(
        self,
        *,
        train: Source,
        validation: Source | None,
        validation_size: int | float,
        batch_size: int,
        micro_batch_size: int,
        max_length: int,
        max_prompt_length: int | None,
        truncate_prompt: PromptPolicy,
        truncate_completion: CompletionPolicy,
        on_bad_row: Literal["error", "drop"],
        limit: int | None,
        shuffle: bool,
        num_workers: int,
        num_proc: int | None,
        tokenizer: PreTrainedTokenizerBase,
        batch_type: type[Batch],
        seed: int,
        cache_dir: Path,
        mismatched: bool = False,
        score_prompt: bool = False,
        soft_labels: bool = False,
    ) -> None:
        super().__init__()
        if score_prompt and batch_type not in (SFTBatch, PreferenceBatch):
            raise ValueError(f"prompts are scored for demonstrations and preferences only, not for {batch_type}")
        _check_positive(batch_size=batch_size, micro_batch_size=micro_batch_size, limit=limit)
        self._sources = {"train": train, "validation": validation}
        self._validation_size = validation_size
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self._truncation = Truncation(max_length, max_prompt_length, truncate_prompt, truncate_completion)
        self._on_bad_row: Literal["error", "drop"] = on_bad_row
        self._limit, self._shuffle, self._num_workers, self._num_proc = limit, shuffle, num_workers, num_proc
        self._tokenizer, self._batch_type, self._seed, self._cache_dir = tokenizer, batch_type, seed, cache_dir
        self._records: dict[str, RecordSet] = {}
        self._tables: dict[str, TokenTable] = {}
        self._fingerprints: dict[str, str] = {}
        self._mismatched, self._score_prompt, self._soft_labels = mismatched, score_prompt, soft_labels
        self._mismatches: dict[str, Mismatch] = {}
        self._reference: ReferenceCache | None = None
        self._position: dict[str, Any] | None = None
        self._train_loader: PlannedLoader | None = None
        self._loaders: list[PlannedLoader] = []
        self.statistics: dict[str, Any] = {}

    def prepare_data(self) -> None:
        """Parses and tokenises, so that the other processes of this machine find the result."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Reads or makes the tokenised records; a second call does nothing.

        Raises:
            DataError: A record is bad and ``on_bad_row`` is ``error``, or none is left.
            ConfigError: The data cannot be seen as what the method eats.
        """
        if self._tables:
            return
        self._records = self._split()
        want = KINDS[self._batch_type]
        for split, records in self._records.items():
            check_view(records.kind, want)
            seen_as = partial(view, want=want, soft_labels=self._soft_labels)
            rows = self._tokenise(records, want, seen_as, split)
            taken = self._tables["train"].ids if split == "validation" else ()
            self._tables[split] = TokenTable(
                rows, prefix="validation/", taken=frozenset(taken), score_prompt=self._score_prompt
            )
            if not len(self._tables[split]):
                reasons = ", ".join(sorted(set(rows["dropped"])))
                raise DataError(f"{split} data", f"no record is left, all were dropped: {reasons}")
            if self._mismatched:
                found = partners(self._tables[split].prompts(), where=f"{split} data")
                self._mismatches[split] = Mismatch(found, self._truncation.max_length)
            read_as_hard = 0 if self._soft_labels or want is RecordKind.PROMPT else soft_labels(records)
            self.statistics[split] = {
                "source": records.report,
                **token_statistics(rows, self._tables[split]),
                "soft_labels_read_as_hard": read_as_hard,
            }
            _report(split, self.statistics[split])

    @property
    def fingerprint(self) -> str:
        """Names the data: sources, split, view, tokenizer, template and truncation."""
        self.setup()
        parts = {split: records.fingerprint for split, records in self._records.items()}
        return content_hash(parts=parts, tokeniser=self._fingerprints["train"])

    @property
    def scored_fingerprint(self) -> str:
        """Names every token that a reference scores: the data, how mismatched pairs are made, whether prompts count."""
        mismatched = MISMATCH_VERSION if self._mismatched else None
        return content_hash(data=self.fingerprint, mismatched=mismatched, score_prompt=self._score_prompt)

    @property
    def truncation(self) -> dict[str, Any]:
        """Limits and policies, for the manifest and the reference cache's key."""
        return asdict(self._truncation)

    @property
    def num_train_records(self) -> int:
        """Records to train on, after all drops."""
        self.setup()
        return len(self._tables["train"])

    @property
    def num_validation_records(self) -> int:
        """Held-out records, after all drops; 0 where nothing is held out."""
        self.setup()
        return len(self._tables["validation"]) if "validation" in self._tables else 0

    @property
    def train_labels(self) -> np.ndarray:
        """True for each record to train on with a thumbs up; for labelled completions."""
        self.setup()
        return self._tables["train"].labels()

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest sequence, prompt and completion together, mismatched pairs included."""
        self.setup()
        lengths = [table.lengths for table in self._tables.values()]
        lengths += [mismatch.lengths(self._tables[split]) for split, mismatch in self._mismatches.items()]
        return max((int(found.max()) for found in lengths if len(found)), default=0)

    @property
    def record_ids(self) -> tuple[str, ...]:
        """Ids of the records to train on."""
        self.setup()
        return self._tables["train"].ids

    def accumulate(self, world_size: int) -> int:
        """Micro-batches of each rank in an optimiser step."""
        return Geometry(self.batch_size, self.micro_batch_size, world_size).accumulate

    def train_dataloader(self) -> PlannedLoader:
        """This rank's micro-batches, ``accumulate`` for each optimiser step."""
        self.setup()
        geometry = Geometry(self.batch_size, self.micro_batch_size, self._world_size)
        loader = self._loader("train", geometry, shuffle=self._shuffle, in_flight=self._in_flight)
        if self._position is not None:
            loader.load_state_dict(self._position)
        self._train_loader = loader
        return loader

    def val_dataloader(self) -> PlannedLoader | list[Any]:
        """This rank's share of the held-out records, in a fixed order, cut into steps as in training."""
        self.setup()
        if "validation" not in self._tables:
            return []
        geometry = Geometry(self.batch_size, self.micro_batch_size, self._world_size)
        return self._loader("validation", geometry, shuffle=False, in_flight=_none_in_flight)

    def reference_dataloaders(self) -> dict[str, PlannedLoader]:
        """Every record once, in order, on any rank: for filling the reference cache."""
        self.setup()
        return {
            split: PlannedLoader(
                maker=BatchMaker(table, self._batch_type, self._pad_id, mismatch=self._mismatches.get(split)),
                planner=partial(plan_once, len(table), self.micro_batch_size, counted=table.counted()),
                geometry={},
                num_workers=0,
                pin_memory=False,
                in_flight=_none_in_flight,
            )
            for split, table in self._tables.items()
        }

    def start_at(self, micro_batches_done: int, epoch: int) -> None:
        """Makes training begin in the middle of an epoch, behind what was trained on."""
        self.load_state_dict({"epoch": epoch, "done": micro_batches_done, "geometry": {}})

    def state_dict(self) -> dict[str, Any]:
        """Where training stands; Lightning puts it into every checkpoint."""
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up training where a checkpoint was saved.

        Lightning may have asked for the loader before it restores this module, or ask for it later.
        """
        self._position = state_dict
        if self._train_loader is not None:
            self._train_loader.load_state_dict(state_dict)

    def teardown(self, stage: str) -> None:
        """Ends worker processes and forgets the position: another fit begins anew."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()
        self._position = self._train_loader = None

    def attach_reference(self, cache: ReferenceCache) -> None:
        """Puts cached log-probs into every batch from now on.

        Raises:
            DataError: A record is missing from the cache.
        """
        self.setup()
        for table in self._tables.values():
            missing = [name for name in table.ids if name not in cache]
            if missing:
                cache.read(missing[0])
        self._reference = cache
        for loader in self._loaders:
            loader.maker.reference = cache

    def held_out_prompts(self, limit: int | None) -> list[HeldOutPrompt]:
        """The held-out records' prompts, each once, in a fixed order.

        Args:
            limit: The most to give, or ``None`` for all.

        Raises:
            ConfigError: Nothing is held out.
        """
        self.setup()
        if "validation" not in self._records:
            raise ConfigError(
                "data.validation_size",
                got=self._validation_size,
                expected="more than 0, or data.validation",
                hint="evaluation needs prompts that were held out",
            )
        rows = self._tokenise(self._records["validation"], RecordKind.PROMPT, prompt_of, "held-out prompts")
        unique: dict[str, HeldOutPrompt] = {}
        row: dict[str, Any]
        for row in rows:  # type: ignore[assignment]
            if len(unique) == limit:
                break
            if not row["dropped"]:
                unique.setdefault(row["prompt"], _held_out(row))
        return list(unique.values())

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def _in_flight(self) -> int:
        """1 between handing out a batch and the end of its step: an interrupted one was not trained on."""
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.ready - progress.processed  # type: ignore[attr-defined]

    def _split(self) -> dict[str, RecordSet]:
        train, validation = self._sources["train"], self._sources["validation"]
        assert train is not None
        records = cached_records(train, self._cache_dir)
        if validation is not None:
            parts = {"train": records, "validation": cached_records(validation, self._cache_dir)}
        else:
            rows, held_out = split_by_prompt(records, self._validation_size)
            parts = {"train": _part(records, rows, f"train/{self._validation_size}")}
            if len(held_out):
                parts["validation"] = _part(records, held_out, f"validation/{self._validation_size}")
        if self._limit is not None:
            first = np.arange(min(self._limit, len(parts["train"].rows)))
            parts["train"] = _part(parts["train"], first, f"limit/{self._limit}")
        return parts

    def _tokenise(
        self, records: RecordSet, want: RecordKind, seen_as: Callable[[Record], tuple[Record, ...]], name: str
    ) -> Dataset:
        tokeniser = Tokeniser(
            tokenizer=self._tokenizer,
            have=records.kind,
            want=want,
            seen_as=seen_as,
            truncation=self._truncation,
            on_bad_row=self._on_bad_row,
            soft_labels=self._soft_labels,
        )
        self._fingerprints[name] = tokeniser.fingerprint
        return tokenise(
            records.rows,
            tokeniser,
            fingerprint=records.fingerprint,
            cache_dir=self._cache_dir,
            num_proc=self._num_proc,
            description=f"Tokenising {name}",
        )

    def _loader(self, split: str, geometry: Geometry, *, shuffle: bool, in_flight: Callable[[], int]) -> PlannedLoader:
        table = self._tables[split]
        planner = partial(
            plan_epoch,
            lengths=table.lengths,
            counted=table.counted(),
            geometry=geometry,
            rank=self._rank,
            seed=self._seed,
            shuffle=shuffle,
            short_last_step=split == "validation",
        )
        settings = {f"data.{name}": value for name, value in asdict(geometry).items()}
        loader = PlannedLoader(
            maker=BatchMaker(table, self._batch_type, self._pad_id, self._reference, self._mismatches.get(split)),
            planner=planner,
            geometry=settings | {"data": self.fingerprint, "seed": self._seed},
            num_workers=self._num_workers,
            pin_memory=self._on_cuda,
            in_flight=in_flight,
        )
        self._loaders.append(loader)
        return loader

    @property
    def _pad_id(self) -> int:
        pad_id = self._tokenizer.pad_token_id
        assert isinstance(pad_id, int), "the tokenizer was completed when it was loaded"
        return pad_id

    @property
    def _on_cuda(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"


def _none_in_flight() -> int:
    return 0


def _part(records: RecordSet, rows: np.ndarray, name: str) -> RecordSet:
    """Some of the records, named by what was taken of which."""
    return replace(records, rows=records.rows.select(rows), fingerprint=content_hash(of=records.fingerprint, part=name))


def _held_out(row: dict[str, Any]) -> HeldOutPrompt:
    return HeldOutPrompt(row["id"], json.loads(row["prompt"]), tuple(row["prompt_ids"]), json.loads(row["answer"]))


def _report(split: str, statistics: dict[str, Any]) -> None:
    """Says once what became of the records."""
    for reason, count in statistics["dropped"].items():
        logger.warning("%s: dropped %d records: %s", split, count, reason)
    if statistics["given_tokens"]["ignored"]:
        logger.warning(
            "%s: %d records bring token ids of another tokenizer; their text was tokenised anew",
            split,
            statistics["given_tokens"]["ignored"],
        )
    if statistics["soft_labels_read_as_hard"]:
        logger.warning(
            "%s: %d preferences are not certain (a probability, or divided votes); this method takes the likelier side "
            "for the better one. A reward model (method=reward_model) learns from the probabilities",
            split,
            statistics["soft_labels_read_as_hard"],
        )
    logger.info("%s: %d records, %d scored tokens", split, statistics["records"], statistics["scored_tokens"])


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"data.{name}", got=value, expected="at least 1")
