"""The one data module: any source, any kind of batch, the same order everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from alignment.data.batches import KINDS, BatchMaker
from alignment.data.loader import PlannedLoader
from alignment.data.mismatch import MISMATCH_VERSION
from alignment.data.plan import Geometry, plan_epoch, plan_once
from alignment.data.prepare import HeldOutPrompt, Preparation, Prepared
from alignment.data.reference_cache import ReferenceCache
from alignment.data.sources import Source
from alignment.data.store import content_hash
from alignment.data.truncation import CompletionPolicy, PromptPolicy, Truncation
from alignment.types import Batch, Layout, PreferenceBatch, SFTBatch
from alignment.utils.errors import ConfigError


class TrainLoader(Protocol):
    """What training iterates over: it knows where it stands."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]:
        """Returns where training stands."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up training there."""
        ...


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
        num_workers: Worker processes that make batches ahead; ``None`` are two where training is on CUDA, else none.
        num_proc: Processes that tokenise; ``None`` is one for every second core where records are many.
        tokenizer: Of the policy.
        batch_type: What the method eats.
        seed: Of the order.
        cache_dir: Where parsed and tokenised records are kept.
        mismatched: Whether binary batches carry prompts with completions of other prompts.
        score_prompt: Whether every token before the last scored one is scored too, and marked as no completion's; of
            pairs before the chosen completion.
        soft_labels: Whether preferences keep how likely the chosen side is the better; else ties are dropped.
        layout: How sequences lie in rows.
        steps_a_batch: Optimiser steps for which a batch of prompts is read at once; a batch is whole on each rank.
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
        num_workers: int | None,
        num_proc: int | None,
        tokenizer: PreTrainedTokenizerBase,
        batch_type: type[Batch],
        seed: int,
        cache_dir: Path,
        mismatched: bool = False,
        score_prompt: bool = False,
        soft_labels: bool = False,
        layout: Layout = Layout.PADDED,
        steps_a_batch: int = 1,
    ) -> None:
        super().__init__()
        if score_prompt and batch_type not in (SFTBatch, PreferenceBatch):
            raise ValueError(f"prompts are scored for demonstrations and preferences only, not for {batch_type}")
        _check_positive(batch_size=batch_size, micro_batch_size=micro_batch_size, limit=limit)
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self._truncation = Truncation(max_length, max_prompt_length, truncate_prompt, truncate_completion)
        self._preparation = Preparation(
            train=train,
            validation=validation,
            validation_size=validation_size,
            limit=limit,
            truncation=self._truncation,
            on_bad_row=on_bad_row,
            num_proc=num_proc,
            tokenizer=tokenizer,
            cache_dir=cache_dir,
            mismatched=mismatched,
            score_prompt=score_prompt,
            soft_labels=soft_labels,
        )
        self._tokenizer, self._batch_type, self._seed = tokenizer, batch_type, seed
        self._shuffle, self._num_workers, self._layout = shuffle, num_workers, layout
        self._steps_a_batch = steps_a_batch
        self._wrap: Callable[[PlannedLoader], TrainLoader] | None = None
        self._prepared: Prepared | None = None
        self._reference: ReferenceCache | None = None
        self._position: dict[str, Any] | None = None
        self._train_loader: TrainLoader | None = None
        self._loaders: list[PlannedLoader] = []

    def prepare_data(self) -> None:
        """Parses and tokenises, so that the other processes of this machine find the result."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Reads or makes the tokenised records; a second call does nothing.

        Raises:
            DataError: A record is bad and ``on_bad_row`` is ``error``, or none is left.
            ConfigError: The data cannot be seen as what the method eats.
        """
        if self._prepared is None:
            self._prepared = self._preparation.run(KINDS[self._batch_type])

    @property
    def prepared(self) -> Prepared:
        """The tokenised records; the first to ask makes them."""
        self.setup()
        assert self._prepared is not None
        return self._prepared

    @property
    def statistics(self) -> dict[str, Any]:
        """What became of the records of each split."""
        return self.prepared.statistics

    @property
    def fingerprint(self) -> str:
        """Names the data: sources, split, view, tokenizer, template and truncation."""
        return self.prepared.fingerprint

    @property
    def scored_fingerprint(self) -> str:
        """Names every token that a reference scores: the data, how mismatched pairs are made, whether prompts count."""
        mismatched = MISMATCH_VERSION if self._preparation.mismatched else None
        return content_hash(data=self.fingerprint, mismatched=mismatched, score_prompt=self._preparation.score_prompt)

    @property
    def truncation(self) -> dict[str, Any]:
        """Limits and policies, for the manifest and the reference cache's key."""
        return asdict(self._truncation)

    @property
    def num_train_records(self) -> int:
        """Records to train on, after all drops."""
        return len(self.prepared.tables["train"])

    @property
    def num_validation_records(self) -> int:
        """Held-out records, after all drops; 0 where nothing is held out."""
        return len(self.prepared.tables.get("validation", ()))

    @property
    def train_labels(self) -> np.ndarray:
        """True for each record to train on with a thumbs up; for labelled completions."""
        return self.prepared.tables["train"].labels()

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest sequence, prompt and completion together, mismatched pairs included."""
        tables = self.prepared.tables
        lengths = [table.lengths for table in tables.values()]
        lengths += [mismatch.lengths(tables[split]) for split, mismatch in self.prepared.mismatches.items()]
        return max((int(found.max()) for found in lengths if len(found)), default=0)

    @property
    def record_ids(self) -> tuple[str, ...]:
        """Ids of the records to train on."""
        return self.prepared.tables["train"].ids

    def accumulate(self, world_size: int) -> int:
        """Micro-batches of each rank in an optimiser step."""
        return Geometry(self.batch_size, self.micro_batch_size, world_size).accumulate

    def train_dataloader(self) -> TrainLoader:
        """This rank's micro-batches, ``accumulate`` for each optimiser step."""
        if self._wrap is None:
            loader = self._loader("train", self.step_geometry, shuffle=self._shuffle, in_flight=self.in_flight)
        else:
            size = self.batch_size * self._steps_a_batch
            geometry = Geometry(size, math.ceil(size / self._world_size), self._world_size)
            loader = self._wrap(self._loader("train", geometry, shuffle=self._shuffle, in_flight=_none_in_flight))
        if self._position is not None:
            loader.load_state_dict(self._position)
        self._train_loader = loader
        return loader

    def wrap_training(self, wrap: Callable[[PlannedLoader], TrainLoader]) -> None:
        """Has what is trained on made from prompts: ``wrap`` turns batches of prompts into micro-batches."""
        self._wrap = wrap

    @property
    def step_geometry(self) -> Geometry:
        """How an optimiser step is cut up."""
        return Geometry(self.batch_size, self.micro_batch_size, self._world_size)

    def val_dataloader(self) -> PlannedLoader | list[Any]:
        """This rank's share of the held-out records, in a fixed order, cut into steps as in training.

        There are none of prompts, which have no loss: held-out prompts are for fresh samples.
        """
        if "validation" not in self.prepared.tables or self._wrap is not None:
            return []
        return self._loader("validation", self.step_geometry, shuffle=False, in_flight=_none_in_flight)

    def reference_batches(self, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yields every record of every split once: for filling the reference cache; see :meth:`batches_once`."""
        for split in self.prepared.tables:
            yield from self.batches_once(split, part, parts)

    def batches_once(self, split: str, part: int = 0, parts: int = 1) -> Iterator[Batch]:
        """Yields every record of a split once, in order, on any rank.

        Args:
            split: ``train`` or ``validation``.
            part: Which of the equal parts of the batches to give, from 0 on.
            parts: Into how many they are dealt out, one after the other.
        """
        table, mismatch = self.prepared.tables[split], self.prepared.mismatches.get(split)
        plans = plan_once(len(table), self.micro_batch_size, counted=table.counted())
        loader = PlannedLoader(
            maker=BatchMaker(table, self._batch_type, self._pad_id, self._layout, mismatch=mismatch),
            planner=lambda epoch: plans[part::parts],
            geometry={},
            num_workers=self.num_workers,
            pin_memory=self._on_cuda,
            in_flight=_none_in_flight,
        )
        try:
            yield from loader
        finally:
            loader.close()

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

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Moves a batch without waiting for it; Lightning by itself waits for each tensor of what is none."""
        return batch.to(device, non_blocking=True)

    def teardown(self, stage: str) -> None:
        """Ends worker processes and forgets the position: another fit begins anew."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()
        self._position = self._train_loader = self._wrap = None

    def attach_reference(self, cache: ReferenceCache) -> None:
        """Puts cached log-probs into every batch from now on.

        Raises:
            DataError: A record is missing from the cache.
        """
        for table in self.prepared.tables.values():
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
        records = self.prepared.records.get("validation")
        if records is None:
            raise ConfigError(
                "data.validation_size",
                got=self._preparation.validation_size,
                expected="more than 0, or data.validation",
                hint="evaluation needs prompts that were held out",
            )
        return self._preparation.held_out_prompts(records, limit)

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def in_flight(self) -> int:
        """1 between handing out a batch and the end of its step: an interrupted one was not trained on."""
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return progress.ready - progress.processed  # type: ignore[attr-defined]

    def _loader(self, split: str, geometry: Geometry, *, shuffle: bool, in_flight: Callable[[], int]) -> PlannedLoader:
        table = self.prepared.tables[split]
        planner = partial(
            plan_epoch,
            lengths=table.row_tokens(self._layout),
            packed=self._layout is not Layout.PADDED,
            counted=table.counted(),
            geometry=geometry,
            rank=self._rank,
            seed=self._seed,
            shuffle=shuffle,
            short_last_step=split == "validation",
        )
        settings = {f"data.{name}": value for name, value in asdict(geometry).items()}
        loader = PlannedLoader(
            maker=BatchMaker(
                table,
                self._batch_type,
                self._pad_id,
                self._layout,
                self._reference,
                self.prepared.mismatches.get(split),
            ),
            planner=planner,
            geometry=settings | {"data": self.fingerprint, "seed": self._seed},
            num_workers=self.num_workers,
            pin_memory=self._on_cuda,
            in_flight=in_flight,
        )
        self._loaders.append(loader)
        return loader

    @property
    def num_workers(self) -> int:
        """Worker processes that make batches ahead."""
        if self._num_workers is None:
            return 2 if self._on_cuda else 0
        return self._num_workers

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


def _check_positive(**values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"data.{name}", got=value, expected="at least 1")
