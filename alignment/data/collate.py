"""Sequences into rows, and records into the typed batches of ``alignment.types``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from alignment.types import Layout, Segments, TokenBatch

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


def token_batch(
    sequences: Sequence[TokenSequence], *, pad_id: int, prompts_scored: int = 0, layout: Layout = Layout.PADDED
) -> TokenBatch:
    """Lays sequences out in rows.

    Padded rows are filled up on the right: causality alone keeps real tokens from seeing padding, so that no
    attention mask is needed. What is padding follows from lengths, never from ids: with pad == eos the last
    end-of-sequence token stays a target.

    Args:
        sequences: One or more.
        pad_id: Fills the rows.
        prompts_scored: Of so many sequences, the first ones, what stands before the last scored token is scored too:
            the prompt, and turns of others between answers. All but the first token, which nothing predicts.
        layout: How sequences lie in rows.

    Raises:
        ValueError: A prompt or completion is empty: its first token would have no predictor.
    """
    prompts = np.array([len(item.prompt_ids) for item in sequences], dtype=np.int64)
    completions = np.array([len(item.completion_ids) for item in sequences], dtype=np.int64)
    if not len(sequences) or prompts.min() < 1 or completions.min() < 1:
        raise ValueError(f"every sequence needs a prompt and a completion token, got {prompts}, {completions}")
    lengths = prompts + completions
    column = np.arange(int(lengths.max()))
    is_real = column < lengths[:, None]
    ids = np.full(is_real.shape, pad_id, dtype=np.int64)
    ids[is_real] = np.concatenate(
        [np.asarray(part) for item in sequences for part in (item.prompt_ids, item.completion_ids)]
    )
    in_completion = np.zeros(is_real.shape, dtype=bool)
    in_completion[is_real & (column >= prompts[:, None])] = np.concatenate([_flags(item) for item in sequences])
    scored = in_completion.copy()
    before = np.logical_or.accumulate(in_completion[:prompts_scored, ::-1], axis=1)[:, ::-1]
    scored[:prompts_scored] = before & (column > 0)

    places, segments, input_ids, position_ids = np.arange(ids.size).reshape(ids.shape), None, ids, None
    if layout is not Layout.PADDED:
        groups = _groups(sequences, share=layout is Layout.PREFIX_SHARED)
        places, sizes = _places(groups, prompts, completions, ids.shape)
        width = sum(map(sum, sizes))
        # A shared prompt is written once for each of its sequences: the same tokens at the same places.
        input_ids, position_ids, home = (np.empty((1, width), dtype=np.int64) for _ in range(3))
        input_ids[0, places[is_real]] = ids[is_real]
        position_ids[0, places[is_real]] = np.broadcast_to(column, ids.shape)[is_real]
        home[0, places[is_real]] = np.flatnonzero(is_real)
        segments = Segments(sizes, torch.from_numpy(places), torch.from_numpy(home[0]))
    return TokenBatch(
        input_ids=torch.from_numpy(input_ids),
        attention_mask=None,
        position_ids=None if position_ids is None else torch.from_numpy(position_ids),
        predictor_index=torch.from_numpy(places[:, :-1][scored[:, 1:]]),
        target_index=torch.from_numpy(places[scored]),
        targets=torch.from_numpy(ids[scored]),
        sequence_index=torch.from_numpy(np.nonzero(scored)[0]),
        num_sequences=len(sequences),
        num_real_tokens=int(lengths.sum()),
        in_completion=torch.from_numpy(in_completion[scored]) if prompts_scored else None,
        segments=segments,
    )


def _groups(sequences: Sequence[TokenSequence], *, share: bool) -> list[list[int]]:
    """Which sequences have their prompt in common, in order of first appearance; each alone if nothing is shared."""
    if not share:
        return [[place] for place in range(len(sequences))]
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, item in enumerate(sequences):
        groups.setdefault(tuple(item.prompt_ids), []).append(place)
    return list(groups.values())


def _places(
    groups: list[list[int]], prompts: np.ndarray, completions: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
    """Where in the row each sequence's tokens are, and the sizes of each group's trunk and branches."""
    places = np.empty(shape, dtype=np.int64)
    sizes: list[tuple[int, ...]] = []
    start = 0
    for members in groups:
        prompt = int(prompts[members[0]])
        at = start + prompt
        for member in members:
            end = prompt + int(completions[member])
            places[member, :prompt] = np.arange(start, start + prompt)
            places[member, prompt:end] = np.arange(at, at + end - prompt)
            at += end - prompt
            # Not one place for all: a GPU adds up gradients of what is read often, zeros too, one after the other.
            places[member, end:] = at - 1
        branches = tuple(int(completions[member]) for member in members)
        sizes.append((prompt, *branches) if len(members) > 1 else (prompt + branches[0],))
        start = at
    return places, tuple(sizes)


def _flags(item: TokenSequence) -> np.ndarray:
    if item.scored is None:
        return np.ones(len(item.completion_ids), dtype=bool)
    return np.asarray(item.scored, dtype=bool)
