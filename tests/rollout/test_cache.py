"""The cache that is written in place: the numbers of transformers' own, and what it copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

from alignment.rollout.cache import ROOM_TOKENS, GrowingLayer, growing_cache

torch.set_num_threads(1)
SHAPE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "initializer_range": 0.3,
}  # fmt: skip
GROWING, WINDOW = GrowingLayer, DynamicSlidingWindowLayer


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    if family == "mistral":
        return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)).eval()
    if family == "gemma":
        kinds = ["sliding_attention", "full_attention"] * 2
        return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, sliding_window=6, layer_types=kinds)).eval()
    shape = {name: value for name, value in SHAPE.items() if name != "head_dim"}
    return Qwen2ForCausalLM(Qwen2Config(**shape, use_sliding_window=True, sliding_window=6, max_window_layers=2)).eval()


def read(model: PreTrainedModel, cache: DynamicCache, *, steps: int) -> list[torch.Tensor]:
    """Logits of each step: two prompts of unequal length, three rows of each, and rows that leave on the way."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 64, (2, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    leaving = {2: [0, 5, 2, 3, 4], 3: [0, 1, 4, 3], 70: [3, 1, 2], 71: [1]}
    written = []
    for step in range(steps):
        places = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        output = model(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )  # fmt: skip
        written.append(output.logits[:, -1])
        if step == 0 or step in leaving:
            rows = torch.tensor([0, 0, 0, 1, 1, 1] if step == 0 else leaving[step])
            mask = mask[rows]
            cache.batch_select_indices(rows)
        ids = torch.randint(1, 64, (len(mask), 1), generator=generator)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
    return written


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        ("llama", [GROWING] * 4),
        ("mistral", [WINDOW] * 4),
        ("gemma", [WINDOW, GROWING] * 2),
        ("qwen", [GROWING] * 2 + [WINDOW] * 2),
    ],
)
@torch.no_grad()
def test_the_numbers_are_those_of_transformers_own_cache(family, layers):
    """Over more steps than there is room for at first, so that the room grows, with rows gone before and after."""
    model = model_of(family)
    cache = growing_cache(model.config)
    assert [type(layer) for layer in cache.layers] == layers
    steps = ROOM_TOKENS + 20
    own = read(model, DynamicCache(config=model.config), steps=steps)
    assert [len(logits) for logits in own] == [2, 6, 6, 5] + [4] * (71 - 4) + [3] + [1] * (steps - 72)
    for step, (one, other) in enumerate(zip(read(model, cache, steps=steps), own, strict=True)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0, msg=lambda text, step=step: f"{step}: {text}")


def states(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, tokens, 8), torch.randn(rows, 2, tokens, 4)


def test_tokens_are_written_in_place_and_the_room_grows_when_it_is_full():
    layer, (keys, values) = GrowingLayer(), states(3, 5)
    layer.update(keys, values)
    places = []
    for _ in range(ROOM_TOKENS + 1):
        new_keys, new_values = states(3, 1)
        keys, values = torch.cat([keys, new_keys], dim=-2), torch.cat([values, new_values], dim=-2)
        all_keys, all_values = layer.update(new_keys, new_values)
        assert torch.equal(all_keys, keys)
        assert torch.equal(all_values, values)
        assert layer.get_seq_length() == keys.shape[-2]
        places.append((all_keys.data_ptr(), all_values.data_ptr(), all_keys.untyped_storage().nbytes()))
    assert len(set(places[:ROOM_TOKENS])) == 1
    assert places[0][2] == 3 * 2 * (5 + ROOM_TOKENS) * 8 * 4, "no more than the room that is needed soon"
    assert places[-1][2] == 3 * 2 * (5 + 2 * ROOM_TOKENS) * 8 * 4
    # More tokens at once than there is room for.
    new_keys, new_values = states(3, 3 * ROOM_TOKENS)
    assert torch.equal(layer.update(new_keys, new_values)[0], torch.cat([keys, new_keys], dim=-2))


def test_rows_are_repeated_straight_into_the_room():
    layer, (keys, values) = GrowingLayer(), states(2, 5)
    layer.update(keys, values)
    rows = torch.tensor([0, 0, 1, 1, 1])
    layer.batch_select_indices(rows)
    repeated = layer.keys
    assert repeated is not None
    assert torch.equal(repeated, keys[rows])
    new_keys, new_values = states(5, 1)
    all_keys, all_values = layer.update(new_keys, new_values)
    assert torch.equal(all_keys, torch.cat([keys[rows], new_keys], dim=-2))
    assert torch.equal(all_values, torch.cat([values[rows], new_values], dim=-2))
    assert all_keys.data_ptr() == repeated.data_ptr(), "repeating made the room that is then written to"


@pytest.mark.parametrize("kept", [[0, 4, 2], [4, 3, 2, 1, 0], [1, 1, 0], [2], [0, 1, 2, 3, 4]])
def test_rows_that_stay_are_moved_within_the_room(kept):
    layer, (keys, values) = GrowingLayer(), states(5, 6)
    layer.update(keys[:, :, :5], values[:, :, :5])
    place = layer.update(keys[:, :, 5:], values[:, :, 5:])[0].data_ptr()
    layer.batch_select_indices(torch.tensor(kept))
    new_keys, new_values = states(len(kept), 1)
    all_keys, all_values = layer.update(new_keys, new_values)
    assert torch.equal(all_keys, torch.cat([keys[kept], new_keys], dim=-2))
    assert torch.equal(all_values, torch.cat([values[kept], new_values], dim=-2))
    assert all_keys.data_ptr() == place


def test_there_may_be_more_rows_than_the_room_was_made_for():
    layer, (keys, values) = GrowingLayer(), states(2, 6)
    layer.update(keys[:, :, :5], values[:, :, :5])
    layer.update(keys[:, :, 5:], values[:, :, 5:])
    rows = torch.tensor([0, 1, 1])
    layer.batch_select_indices(rows)
    new_keys, new_values = states(3, 1)
    assert torch.equal(layer.update(new_keys, new_values)[0], torch.cat([keys[rows], new_keys], dim=-2))


def test_what_was_read_first_is_not_written_over():
    layer, (keys, values) = GrowingLayer(), states(2, 5)
    before = keys.clone()
    layer.update(keys, values)
    layer.batch_select_indices(torch.tensor([1]))
    layer.update(*states(1, 1))
    assert torch.equal(keys, before)
