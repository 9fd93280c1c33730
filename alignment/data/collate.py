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

    def head(self, length: int) -> TokenSequence:
        """The sequence without what is beyond ``length`` tokens of prompt and completion together."""
        room = length - len(self.prompt_ids)
        scored = None if self.scored is None else self.scored[:room]
        return TokenSequence(self.prompt_ids, self.completion_ids[:room], scored)


def token_batch(sequences: Sequence[TokenSequence], *, pad_id: int, score_prompt: bool = False) -> TokenBatch:
    """Lays sequences out one a row, padded on the right.

    Causality alone keeps real tokens from seeing padding on their right, so that no attention mask is
    needed. What is padding follows from lengths, never from ids: with pad == eos the last
    end-of-sequence token stays a target.

    Args:
        sequences: One or more.
        pad_id: Fills the rows.
        score_prompt: Also score what stands before a sequence's last scored token: its prompt, and turns of others
            between its answers. All but the first token of the row, which nothing predicts.

    Raises:
        ValueError: A prompt or completion is empty: its first token would have no predictor.
    """
    prompts = np.array([len(item.prompt_ids) for item in sequences], dtype=np.int64)
    completions = np.array([len(item.completion_ids) for item in sequences], dtype=np.int64)
    if not len(sequences) or prompts.min() < 1 or completions.min() < 1:
        raise ValueError(f"every sequence needs a prompt and a completion token, got {prompts}, {completions}")
    lengths = prompts + completions
    width = int(lengths.max())
    column = np.arange(width)
    is_real = column < lengths[:, None]
    parts = [np.asarray(ids) for item in sequences for ids in (item.prompt_ids, item.completion_ids)]
    input_ids = np.full((len(sequences), width), pad_id, dtype=np.int64)
    input_ids[is_real] = np.concatenate(parts)

    in_completion = np.zeros((len(sequences), width), dtype=bool)
    in_completion[is_real & (column >= prompts[:, None])] = np.concatenate([_flags(item) for item in sequences])
    scored = in_completion
    if score_prompt:
        scored = np.logical_or.accumulate(in_completion[:, ::-1], axis=1)[:, ::-1] & (column > 0)
    target_index = np.flatnonzero(scored)
    return TokenBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=None,
        position_ids=None,
        predictor_index=torch.from_numpy(target_index - 1),
        targets=torch.from_numpy(input_ids.reshape(-1)[target_index]),
        sequence_index=torch.from_numpy(target_index // width),
        num_sequences=len(sequences),
        num_real_tokens=int(lengths.sum()),
        in_completion=torch.from_numpy(in_completion.reshape(-1)[target_index]) if score_prompt else None,
    )


def _flags(item: TokenSequence) -> np.ndarray:
    if item.scored is None:
        return np.ones(len(item.completion_ids), dtype=bool)
    return np.asarray(item.scored, dtype=bool)
