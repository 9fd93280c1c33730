"""T31: prompts with completions of other prompts, the same ones for every run, epoch and layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from alignment.data.datamodule import DataModule
from alignment.data.mismatch import partners
from alignment.data.plan import Geometry, plan_epoch, plan_once
from alignment.data.reference_cache import ReferenceCache
from alignment.models.references import fill_cache
from alignment.types import BinaryBatch, Mismatched, TokenBatch, TokenLogps
from alignment.utils.errors import DataError

Make = Callable[..., DataModule]
Pairs = dict[str, tuple[list[int], list[int]]]


@given(st.lists(st.integers(0, 6), min_size=2, max_size=60))
def test_everybody_gets_another_prompt_and_every_completion_is_used_once(numbers: list[int]) -> None:
    prompts = np.array(numbers)
    assume(2 * np.bincount(prompts).max() <= len(prompts))
    found = partners(prompts, where="train data")
    assert sorted(found) == list(range(len(prompts)))
    assert (prompts[found] != prompts).all()


def test_the_pairs_are_random_and_for_good() -> None:
    """A cache of today is read with tomorrow's numpy; neighbours in the file are no neighbours here."""
    prompts = np.repeat(np.arange(4), 2)
    assert partners(prompts, where="train data").tolist() == GOLDEN
    many = np.arange(2000)
    steps = np.abs(partners(many, where="train data") - many)
    assert 500 < steps.mean() < 800  # a third of the length for random pairs, 1 for neighbours


GOLDEN = [2, 3, 5, 4, 7, 6, 0, 1]


@pytest.mark.parametrize(("same", "others", "possible"), [(3, 3, True), (4, 3, False), (2, 0, False), (1, 0, False)])
def test_a_prompt_of_more_than_half_the_records_is_refused(same: int, others: int, possible: bool) -> None:
    prompts = np.array([0] * same + list(range(1, others + 1)))
    if possible:
        assert (partners(prompts, where="train data")[:same] >= same).all()
        return
    message = rf"train data: {same} of {same + others} records have the same prompt.*z0=zero"
    with pytest.raises(DataError, match=message):
        partners(prompts, where="train data")


def rows(number: int) -> list[dict[str, Any]]:
    """Thumbs up and down of uneven lengths; every third prompt comes twice."""
    found = []
    for index in range(number):
        asked = index - index % 3 // 2
        prompt = f"Question {asked}:" + " why" * (asked % 5)
        found.append(
            {"prompt": prompt, "completion": f" answer {index}" + " yes" * (index % 7), "label": index % 3 > 0}
        )
    return found


@pytest.fixture
def make(make_module: Make) -> Make:
    def with_pairs(number: int = 13, **changes: Any) -> DataModule:
        settings = {"batch_type": BinaryBatch, "mismatched": True, "batch_size": 4, "micro_batch_size": 2}
        return make_module(rows(number), **(settings | changes))

    return with_pairs


def sequences(tokens: TokenBatch) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of each sequence."""
    width = tokens.input_ids.shape[1]
    found = []
    for number, row in enumerate(tokens.input_ids.tolist()):
        places = (tokens.predictor_index[tokens.sequence_index == number] + 1 - number * width).tolist()
        assert places == list(range(places[0], places[-1] + 1))
        found.append((row[: places[0]], row[places[0] : places[-1] + 1]))
    return found


def as_rank(data: DataModule, rank: int, world_size: int) -> DataModule:
    progress = SimpleNamespace(current=SimpleNamespace(ready=0, processed=0))
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=rank,
        world_size=world_size,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )
    return data


def real_pairs(batches: list[BinaryBatch]) -> Pairs:
    found: Pairs = {}
    for part in (part for batch in batches for part in batch.mismatched):
        for name, weight, pair in zip(part.ids, part.weights.tolist(), sequences(part.tokens), strict=True):
            assert weight in (0.0, 1.0)
            if weight:
                assert name not in found
                found[name] = pair
    return found


def test_a_pair_is_the_own_prompt_with_the_completion_of_another(make: Make) -> None:
    data = make(shuffle=False)
    batches = list(data.train_dataloader())
    own = {name: pair for batch in batches for name, pair in zip(batch.ids, sequences(batch.tokens), strict=True)}
    pairs = real_pairs(batches)
    assert pairs.keys() == own.keys() == set(data.record_ids)
    for name, (prompt, completion) in pairs.items():
        assert prompt == own[name][0]
        (owner,) = [other for other, pair in own.items() if pair[1] == completion]
        assert own[owner][0] != prompt


def test_the_first_micro_batch_of_a_step_carries_those_of_all(make: Make) -> None:
    batches = list(make(13, batch_size=6).train_dataloader())
    assert len(batches) == 9
    for start in range(0, 9, 3):
        step = batches[start : start + 3]
        assert [part.ids for part in step[0].mismatched] == [batch.ids for batch in step]
        assert all(torch.equal(a.weights, b.weights) for a, b in zip(step[0].mismatched, step, strict=True))
        assert step[1].mismatched == step[2].mismatched == ()


@pytest.mark.parametrize(
    "changes",
    [{"seed": 8}, {"batch_size": 13, "micro_batch_size": 1}, {"shuffle": False}, {"num_workers": 1}],
    ids=str,
)
def test_neither_seed_nor_cut_changes_a_pair(make: Make, changes: dict[str, Any]) -> None:
    data = make(**changes)
    loader = data.train_dataloader()
    first, second = real_pairs(list(loader)), real_pairs(list(loader))
    data.teardown("fit")
    assert first == second == real_pairs(list(make().train_dataloader()))
    assert len(first) == 13


@pytest.mark.parametrize("part", ["train_dataloader", "val_dataloader"])
def test_ranks_share_the_pairs_of_each_step(make: Make, part: str) -> None:
    """Step by step two ranks carry what one does; validation is cut into the same steps as training."""

    def steps(world: int, micro: int) -> list[Pairs]:
        found: list[Pairs] = [{} for _ in range(10)]
        for rank in range(world):
            data = as_rank(make(24, validation_size=10, micro_batch_size=micro), rank, world)
            number = -1
            for batch in getattr(data, part)():
                number += bool(batch.mismatched)
                found[number] |= real_pairs([batch])
        return [step for step in found if step]

    expected = steps(1, 4)
    assert [len(step) for step in expected] == ([4, 4, 4, 2] if part == "train_dataloader" else [4, 4, 2])
    assert steps(2, 1) == steps(1, 1) == steps(2, 3) == expected


def test_validation_has_no_micro_batch_of_fillers_alone() -> None:
    settings: dict[str, Any] = {"counted": {}, "seed": 0, "epoch": 0, "shuffle": False, "short_last_step": True}
    for rank in range(2):
        plans = plan_epoch(lengths=np.arange(1, 8), geometry=Geometry(64, 2, 2), rank=rank, **settings)
        assert [plan.weights for plan in plans] == [(1.0, 1.0), (1.0, 1.0) if rank == 1 else (1.0,)][: len(plans)]
        assert len(plans) == 2
        assert [len(plan.step) for plan in plans] == [2, 0]


def test_every_batch_of_the_reference_carries_its_own(make: Make) -> None:
    for batch in make().reference_batches():
        assert [part.ids for part in batch.mismatched] == [batch.ids]
    assert [len(plan.step) for plan in plan_once(5, 2, counted={})] == [1, 1, 1]


def test_what_is_too_long_loses_the_end_of_its_completion(make: Make) -> None:
    data = make(max_length=64)
    whole = real_pairs(list(data.train_dataloader()))
    limit = max(len(prompt) + len(completion) for prompt, completion in whole.values())
    assert data.longest_tokens == limit > make(mismatched=False).longest_tokens, "no record itself is cut"
    cut = make(max_length=limit - 1, truncate_completion="error")
    found = real_pairs(list(cut.train_dataloader()))
    shorter = [name for name in whole if found[name] != whole[name]]
    assert shorter
    assert cut.longest_tokens == limit - 1
    for name in shorter:
        assert found[name][0] == whole[name][0]
        assert found[name][1] == whole[name][1][: len(found[name][1])]


def test_not_asked_for_nothing_is_made(make: Make) -> None:
    data = make(mismatched=False)
    assert all(batch.mismatched == () for batch in data.train_dataloader())
    same = make(2, mismatched=False, limit=1)
    assert next(iter(same.train_dataloader())).mismatched == ()
    assert data.fingerprint == make().fingerprint
    assert data.scored_fingerprint != make().scored_fingerprint, "its reference cache holds half of what is needed"


def scores(tokens: TokenBatch) -> TokenLogps:
    """A reference that tells every sequence from every other: each token counts itself and its place in the row."""
    width = tokens.input_ids.shape[1]
    values = tokens.targets.float() + 1000.0 * (tokens.predictor_index % width)
    return TokenLogps(values, tokens.sequence_index, tokens.num_sequences)


def filled(data: DataModule, path: Path) -> ReferenceCache:
    return fill_cache(path, meta={}, batches=data.reference_batches, score=scores, device=torch.device("cpu"))


def test_the_reference_cache_holds_both_sequences_of_a_record(make: Make, tmp_path: Path) -> None:
    data = make(24, validation_size=10)
    cache = filled(data, tmp_path / "reference")
    assert {len(cache.read(name)) for name in data.record_ids} == {2}
    data.attach_reference(cache)
    seen = 0
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        for part in (batch, *batch.mismatched):
            assert torch.equal(part.reference_token_logps, scores(part.tokens).token_logps)
            seen += isinstance(part, Mismatched)
    assert seen == 13  # of 4 steps of 2 micro-batches, and held out of 2, 2 and 1


def test_without_pairs_the_cache_holds_one(make: Make, tmp_path: Path) -> None:
    data = make(mismatched=False)
    cache = filled(data, tmp_path / "reference")
    assert {len(cache.read(name)) for name in data.record_ids} == {1}
    data.attach_reference(cache)
    for batch in data.train_dataloader():
        assert torch.equal(batch.reference_token_logps, scores(batch.tokens).token_logps)


def test_batches_go_to_another_device_whole(make: Make) -> None:
    batch = next(iter(make().train_dataloader()))
    moved = batch.to("meta")
    assert {part.tokens.input_ids.device.type for part in moved.mismatched} == {"meta"}
    assert len(moved.mismatched) == len(batch.mismatched) == 2
