"""Rows of a token table into the typed batches of ``alignment.types``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.data.collate import TokenSequence, token_batch
from alignment.data.plan import MicroBatchPlan
from alignment.data.records import RecordKind
from alignment.data.reference_cache import ReferenceCache
from alignment.data.table import TokenTable
from alignment.types import Batch, BinaryBatch, PreferenceBatch, PromptBatch, SFTBatch, StepwiseBatch
from alignment.utils.errors import DataError

Rows = dict[str, list[Any]]
Collator = Callable[[Rows, MicroBatchPlan, int, ReferenceCache | None], Batch]

KINDS: dict[type[Batch], RecordKind] = {
    SFTBatch: RecordKind.DEMONSTRATION,
    PreferenceBatch: RecordKind.PREFERENCE,
    BinaryBatch: RecordKind.BINARY,
    StepwiseBatch: RecordKind.STEPWISE,
    PromptBatch: RecordKind.PROMPT,
}
"""The records that each batch is made of."""


@dataclass
class BatchMaker:
    """A data set whose items are whole micro-batches; what worker processes run.

    Attributes:
        table: The records.
        batch_type: What to make of them.
        pad_id: Fills rows.
        reference: Cached log-probs to put beside the tokens, or ``None``.
    """

    table: TokenTable
    batch_type: type[Batch]
    pad_id: int
    reference: ReferenceCache | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, plan: MicroBatchPlan) -> Batch:
        """Makes the micro-batch that a plan describes."""
        return _COLLATORS[self.batch_type](self.table.read(plan.indices), plan, self.pad_id, self.reference)


def _weights(plan: MicroBatchPlan) -> Tensor:
    return torch.tensor(plan.weights, dtype=torch.float32)


def _sequences(rows: Rows, side: str) -> list[TokenSequence]:
    flags = rows["scored"] if side == "completion_ids" else [()] * len(rows["id"])
    return [
        TokenSequence(prompt, completion, scored if len(scored) else None)
        for prompt, completion, scored in zip(rows["prompt_ids"], rows[side], flags, strict=True)
    ]


def _demonstrations(rows: Rows, plan: MicroBatchPlan, pad_id: int, reference: ReferenceCache | None) -> SFTBatch:
    tokens = token_batch(_sequences(rows, "completion_ids"), pad_id=pad_id)
    return SFTBatch(ids=tuple(rows["id"]), weights=_weights(plan), counts=dict(plan.counts), tokens=tokens)


def _preferences(rows: Rows, plan: MicroBatchPlan, pad_id: int, reference: ReferenceCache | None) -> PreferenceBatch:
    chosen, rejected = _sequences(rows, "completion_ids"), _sequences(rows, "rejected_ids")
    tokens = token_batch([*chosen, *rejected], pad_id=pad_id)
    return PreferenceBatch(
        ids=tuple(rows["id"]),
        weights=_weights(plan),
        counts=dict(plan.counts),
        tokens=tokens,
        margins=torch.tensor([margin or 0.0 for margin in rows["margin"]]),
        reference_token_logps=_cached(reference, rows["id"], tokens.targets),
    )


def _binary(rows: Rows, plan: MicroBatchPlan, pad_id: int, reference: ReferenceCache | None) -> BinaryBatch:
    tokens = token_batch(_sequences(rows, "completion_ids"), pad_id=pad_id)
    return BinaryBatch(
        ids=tuple(rows["id"]),
        weights=_weights(plan),
        counts=dict(plan.counts),
        tokens=tokens,
        labels=torch.tensor(rows["label"], dtype=torch.bool),
        reference_token_logps=_cached(reference, rows["id"], tokens.targets),
    )


def _stepwise(rows: Rows, plan: MicroBatchPlan, pad_id: int, reference: ReferenceCache | None) -> StepwiseBatch:
    tokens = token_batch(_sequences(rows, "completion_ids"), pad_id=pad_id)
    labels = torch.from_numpy(np.concatenate(rows["step_labels"]).astype(np.float32))
    weights = _weights(plan)
    return StepwiseBatch(ids=tuple(rows["id"]), weights=weights, counts=dict(plan.counts), tokens=tokens, labels=labels)


def _prompts(rows: Rows, plan: MicroBatchPlan, pad_id: int, reference: ReferenceCache | None) -> PromptBatch:
    return PromptBatch(
        ids=tuple(rows["id"]),
        weights=_weights(plan),
        counts=dict(plan.counts),
        prompt_ids=tuple(tuple(ids.tolist()) for ids in rows["prompt_ids"]),
        prompts=tuple(json.loads(prompt) for prompt in rows["prompt"]),
        answers=tuple(json.loads(answer) for answer in rows["answer"]),
    )


def _cached(reference: ReferenceCache | None, ids: Sequence[str], targets: Tensor) -> Tensor | None:
    """The reference's log-probs in the order of the batch: first sides of all records, then second sides."""
    if reference is None:
        return None
    sides = zip(*(reference.read(name) for name in ids), strict=True)
    logps = torch.from_numpy(np.concatenate([values for side in sides for values in side]))
    if logps.shape != targets.shape:
        raise DataError(
            str(reference.path),
            f"the reference cache holds {len(logps)} log-probs for {list(ids)[:4]}, the batch has {len(targets)} "
            "scored tokens: it was made from other data. Delete the folder",
        )
    return logps


_COLLATORS: dict[type[Batch], Collator] = {
    SFTBatch: _demonstrations,
    PreferenceBatch: _preferences,
    BinaryBatch: _binary,
    StepwiseBatch: _stepwise,
    PromptBatch: _prompts,
}
