"""Rows of a token table into the typed batches of ``alignment.types``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.data.collate import TokenSequence, token_batch
from alignment.data.mismatch import Mismatch
from alignment.data.plan import MicroBatchPlan
from alignment.data.records import RecordKind
from alignment.data.reference_cache import ReferenceCache
from alignment.data.table import TokenTable
from alignment.types import (
    Batch,
    BinaryBatch,
    Layout,
    Mismatched,
    PreferenceBatch,
    PromptBatch,
    SFTBatch,
    StepwiseBatch,
    TokenBatch,
)
from alignment.utils.errors import DataError

Rows = dict[str, list[Any]]
LayOut = Callable[[Sequence[TokenSequence]], TokenBatch]
Collator = Callable[[Rows, MicroBatchPlan, LayOut, ReferenceCache | None], Batch]

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
        layout: How sequences lie in rows.
        reference: Cached log-probs to put beside the tokens, or ``None``.
        mismatch: For binary batches: what the step's mismatched pairs are made of, or ``None``.
    """

    table: TokenTable
    batch_type: type[Batch]
    pad_id: int
    layout: Layout
    reference: ReferenceCache | None = None
    mismatch: Mismatch | None = None

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, plan: MicroBatchPlan) -> Batch:
        """Makes the micro-batch that a plan describes."""
        lay_out = self._lay_out(prompts_scored=len(plan.indices) if self.table.score_prompt else 0)
        batch = _COLLATORS[self.batch_type](self.table.read(plan.indices), plan, lay_out, self.reference)
        if self.mismatch is None:
            return batch
        assert isinstance(batch, BinaryBatch)
        return replace(batch, mismatched=tuple(self._mismatched(part, self.mismatch) for part in plan.step))

    def _mismatched(self, plan: MicroBatchPlan, mismatch: Mismatch) -> Mismatched:
        rows = self.table.read(plan.indices)
        others = self.table.read(mismatch.partners[list(plan.indices)].tolist())
        crossed = _sequences({**others, "prompt_ids": rows["prompt_ids"]}, "completion_ids")
        tokens = self._lay_out(prompts_scored=0)([sequence.head(mismatch.max_length) for sequence in crossed])
        return Mismatched(
            ids=tuple(rows["id"]),
            weights=_weights(plan),
            tokens=tokens,
            reference_token_logps=_cached(self.reference, rows["id"], tokens.targets, sides=slice(1, 2)),
        )

    def _lay_out(self, *, prompts_scored: int) -> LayOut:
        return partial(token_batch, pad_id=self.pad_id, prompts_scored=prompts_scored, layout=self.layout)


def _weights(plan: MicroBatchPlan) -> Tensor:
    return torch.tensor(plan.weights, dtype=torch.float32)


def _sequences(rows: Rows, side: str) -> list[TokenSequence]:
    flags = rows["scored"] if side == "completion_ids" else [()] * len(rows["id"])
    return [
        TokenSequence(prompt, completion, scored if len(scored) else None)
        for prompt, completion, scored in zip(rows["prompt_ids"], rows[side], flags, strict=True)
    ]


def _demonstrations(rows: Rows, plan: MicroBatchPlan, lay_out: LayOut, reference: ReferenceCache | None) -> SFTBatch:
    tokens = lay_out(_sequences(rows, "completion_ids"))
    return SFTBatch(ids=tuple(rows["id"]), weights=_weights(plan), counts=dict(plan.counts), tokens=tokens)


def _preferences(
    rows: Rows, plan: MicroBatchPlan, lay_out: LayOut, reference: ReferenceCache | None
) -> PreferenceBatch:
    chosen, rejected = _sequences(rows, "completion_ids"), _sequences(rows, "rejected_ids")
    tokens = lay_out([*chosen, *rejected])
    return PreferenceBatch(
        ids=tuple(rows["id"]),
        weights=_weights(plan),
        counts=dict(plan.counts),
        tokens=tokens,
        margins=torch.tensor([margin or 0.0 for margin in rows["margin"]]),
        probabilities=None if rows["probability"][0] is None else torch.tensor(rows["probability"]),
        reference_token_logps=_cached(reference, rows["id"], tokens.targets, sides=slice(2)),
    )


def _binary(rows: Rows, plan: MicroBatchPlan, lay_out: LayOut, reference: ReferenceCache | None) -> BinaryBatch:
    tokens = lay_out(_sequences(rows, "completion_ids"))
    return BinaryBatch(
        ids=tuple(rows["id"]),
        weights=_weights(plan),
        counts=dict(plan.counts),
        tokens=tokens,
        labels=torch.tensor(rows["label"], dtype=torch.bool),
        reference_token_logps=_cached(reference, rows["id"], tokens.targets, sides=slice(1)),
    )


def _stepwise(rows: Rows, plan: MicroBatchPlan, lay_out: LayOut, reference: ReferenceCache | None) -> StepwiseBatch:
    tokens = lay_out(_sequences(rows, "completion_ids"))
    labels = torch.from_numpy(np.concatenate(rows["step_labels"]).astype(np.float32))
    weights = _weights(plan)
    return StepwiseBatch(ids=tuple(rows["id"]), weights=weights, counts=dict(plan.counts), tokens=tokens, labels=labels)


def _prompts(rows: Rows, plan: MicroBatchPlan, lay_out: LayOut, reference: ReferenceCache | None) -> PromptBatch:
    return PromptBatch(
        ids=tuple(rows["id"]),
        weights=_weights(plan),
        counts=dict(plan.counts),
        prompt_ids=tuple(tuple(ids.tolist()) for ids in rows["prompt_ids"]),
        prompts=tuple(json.loads(prompt) for prompt in rows["prompt"]),
        answers=tuple(json.loads(answer) for answer in rows["answer"]),
    )


def _cached(reference: ReferenceCache | None, ids: Sequence[str], targets: Tensor, *, sides: slice) -> Tensor | None:
    """The reference's log-probs of some of the records' sequences: all first ones, then all second ones."""
    if reference is None:
        return None
    by_side = zip(*(reference.read(name)[sides] for name in ids), strict=True)
    logps = torch.from_numpy(np.concatenate([values for side in by_side for values in side]))
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
