"""T2 and T6: targets and predictors come from lengths; fillers and cached references in their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.collate import TokenSequence, token_batch
from alignment.types import TokenBatch

PAD = 2  # also the end of sequence
IDS = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@st.composite
def sequences(draw: st.DrawFn) -> TokenSequence:
    completion = draw(IDS)
    flags = st.lists(st.booleans(), min_size=len(completion), max_size=len(completion))
    return TokenSequence(draw(IDS), completion, draw(st.none() | flags))


def by_hand(items: list[TokenSequence]) -> tuple[list[tuple[int, int, int]], list[list[int]]]:
    """(sequence, column of the predictor, target) one by one, and the rows."""
    places = []
    for number, item in enumerate(items):
        whole = [*item.prompt_ids, *item.completion_ids]
        for step, token in enumerate(item.completion_ids):
            if item.scored is None or item.scored[step]:
                places.append((number, len(item.prompt_ids) + step - 1, token))
        assert len(whole) > step
    return places, [[*item.prompt_ids, *item.completion_ids] for item in items]


def check(batch: TokenBatch, items: list[TokenSequence]) -> None:
    places, rows = by_hand(items)
    width = max(map(len, rows))
    assert batch.input_ids.tolist() == [row + [PAD] * (width - len(row)) for row in rows]
    assert batch.predictor_index.tolist() == [row * width + column for row, column, _ in places]
    assert batch.targets.tolist() == [target for _, _, target in places]
    assert batch.sequence_index.tolist() == [row for row, _, _ in places]
    assert (batch.num_sequences, batch.num_real_tokens) == (len(rows), sum(map(len, rows)))
    assert batch.attention_mask is None
    assert batch.position_ids is None


@given(st.lists(sequences(), min_size=1, max_size=5))
def test_against_a_loop(items: list[TokenSequence]) -> None:
    check(token_batch(items, pad_id=PAD), items)


@given(st.lists(sequences(), min_size=1, max_size=5), st.integers(1, 5))
def test_scored_prompts_against_a_loop(items: list[TokenSequence], prompts_scored: int) -> None:
    batch = token_batch(items, pad_id=PAD, prompts_scored=prompts_scored)
    width = batch.input_ids.shape[1]
    places = []
    for number, item in enumerate(items):
        counts = [False] * len(item.prompt_ids) + (item.scored or [True] * len(item.completion_ids))
        whole = [*item.prompt_ids, *item.completion_ids]
        last = max((column for column, flag in enumerate(counts) if flag), default=0)
        scored = [at for at in range(1, last + 1) if counts[at] or number < prompts_scored]
        places += [(number, number * width + at - 1, whole[at], counts[at]) for at in scored]
    assert batch.in_completion is not None
    found = (batch.sequence_index, batch.predictor_index, batch.targets, batch.in_completion)
    assert list(zip(*(value.tolist() for value in found), strict=True)) == places


def test_scored_prompt_by_hand() -> None:
    """Two answers with another's turn (21, 22) between them, and a cut turn (24) behind, which is not scored."""
    sequence = TokenSequence([10, 11, 12], [20, 21, 22, 23, 24], [True, False, False, True, False])
    batch = token_batch([sequence], pad_id=PAD, prompts_scored=1)
    assert batch.targets.tolist() == [11, 12, 20, 21, 22, 23]
    assert batch.in_completion is not None
    assert batch.in_completion.tolist() == [False, False, True, False, False, True]
    assert batch.predictor_index.tolist() == [0, 1, 2, 3, 4, 5]
    without = token_batch([sequence], pad_id=PAD)
    assert without.in_completion is None
    assert without.targets.tolist() == [20, 23]


def test_last_eos_is_a_target_though_it_is_the_pad() -> None:
    batch = token_batch([TokenSequence([5], [7, PAD]), TokenSequence([5, 5, 5], [8, PAD])], pad_id=PAD)
    assert batch.targets.tolist() == [7, PAD, 8, PAD]


def test_first_completion_token_is_scored_and_the_last_prompt_token_is_not() -> None:
    batch = token_batch([TokenSequence([10, 11], [12, 13])], pad_id=PAD)
    assert batch.targets.tolist() == [12, 13]
    assert batch.predictor_index.tolist() == [1, 2]
    assert batch.input_ids.reshape(-1)[batch.predictor_index].tolist() == [11, 12]


def test_numpy_input_and_types() -> None:
    batch = token_batch([TokenSequence(np.array([1], np.int32), np.array([2], np.int32), np.array([True]))], pad_id=0)
    for value in (batch.input_ids, batch.targets, batch.predictor_index, batch.sequence_index):
        assert value.dtype == torch.int64


@pytest.mark.parametrize("item", [TokenSequence([], [1]), TokenSequence([1], [])])
def test_nothing_to_predict_from_or_to_predict(item: TokenSequence) -> None:
    with pytest.raises(ValueError, match="prompt and a completion token"):
        token_batch([item], pad_id=PAD)
    with pytest.raises(ValueError, match="prompt and a completion token"):
        token_batch([], pad_id=PAD)
