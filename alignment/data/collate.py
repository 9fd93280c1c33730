"""Sequences into rows, and records into the typed batches of ``alignment.types``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from alignment.types import TokenBatch

Ids = Sequence[int] | np.ndarray
Flags = Sequence[bool] | np.ndarray


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and what follows it.

    Attributes:
        prompt_ids: At least one token.
        completion_ids: At least one token.
        scored: Which tokens of the completion count; ``None`` for all.
    """

    prompt_ids: Ids
    completion_ids: Ids
    scored: Flags | None = None


def token_batch(sequences: Sequence[TokenSequence], *, pad_id: int) -> TokenBatch:
    """Lays sequences out one a row, padded on the right.

    Causality alone keeps real tokens from seeing padding on their right, so that no attention mask is
    needed. What is padding follows from lengths, never from ids: with pad == eos the last
    end-of-sequence token stays a target.

    Args:
        sequences: One or more.
        pad_id: Fills the rows.

    Raises:
        ValueError: A prompt or completion is empty: its first token would have no predictor.
    """
    prompts = np.array([len(item.prompt_ids) for item in sequences], dtype=np.int64)
    completions = np.array([len(item.completion_ids) for item in sequences], dtype=np.int64)
    if not len(sequences) or prompts.min() < 1 or completions.min() < 1:
        raise ValueError(f"every sequence needs a prompt and a completion token, got {prompts}, {completions}")
    lengths = prompts + completions
    width = int(lengths.max())
    parts = [np.asarray(ids) for item in sequences for ids in (item.prompt_ids, item.completion_ids)]
    input_ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    input_ids[np.arange(width) < lengths[:, None]] = np.concatenate(parts)

    scored = np.concatenate([_flags(item) for item in sequences])
    sequence = np.repeat(np.arange(len(sequences)), completions)[scored]
    offset = np.arange(completions.sum()) - np.repeat(np.cumsum(completions) - completions, completions)
    target_index = sequence * width + prompts[sequence] + offset[scored]
    return TokenBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=None,
        position_ids=None,
        predictor_index=torch.from_numpy(target_index - 1),
        targets=torch.from_numpy(input_ids.reshape(-1)[target_index]),
        sequence_index=torch.from_numpy(sequence),
        num_sequences=len(sequences),
        num_real_tokens=int(lengths.sum()),
    )


def _flags(item: TokenSequence) -> np.ndarray:
    if item.scored is None:
        return np.ones(len(item.completion_ids), dtype=bool)
    return np.asarray(item.scored, dtype=bool)
