"""All layouts give the numbers and the gradients of padded rows (T9), or are refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoConfig

from alignment.data.collate import TokenSequence, token_batch
from alignment.models import attention
from alignment.models.layout import TESTED, check_layout, choose_layout
from alignment.models.logprob_model import LogprobModel
from alignment.types import Layout, TokenBatch
from alignment.utils.errors import ConfigError, UserError

from tiny import FAMILIES, random_sequences, tiny_causal_lm

#: Gemma 2 bounds its attention's logits, which sdpa cannot do.
PACKABLE = sorted(FAMILIES.keys() - {"gemma2"})
ROWS = [Layout.PACKED, Layout.PREFIX_SHARED]
#: Sliding windows shorter than the sequences, so that the window matters.
WINDOWS: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": 4}, "gemma3_text": {"sliding_window": 4}}


def pairs() -> list[TokenSequence]:
    """Chosen, then rejected completions of three prompts, one of a single token; and a prompt that comes once."""
    chosen = random_sequences([(7, 5), (1, 9), (12, 1)], seed=1)
    rejected = [
        TokenSequence(item.prompt_ids, other.completion_ids)
        for item, other in zip(chosen, random_sequences([(1, 3), (1, 8), (1, 11)], seed=2), strict=True)
    ]
    return [*chosen, *rejected, *random_sequences([(4, 6)], seed=3)]


def batch_in(layout: Layout, sequences: list[TokenSequence], **options: Any) -> TokenBatch:
    return token_batch(sequences, pad_id=0, layout=layout, **options)


def model_in(layout: Layout, family: str, dtype: torch.dtype, **fields: Any) -> LogprobModel:
    # Scaled less than elsewhere: attention must be spread out for a leak to show.
    inner = tiny_causal_lm(family, scale=2.0, **(WINDOWS.get(family, {}) | fields)).to(dtype)
    return LogprobModel(inner, chunk_tokens=5, layout=layout)


def per_sample_gradients(model: LogprobModel, batch: TokenBatch) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
    sums = model(batch).sum_logps
    gradients = []
    for value in sums:
        model.zero_grad()
        value.backward(retain_graph=True)
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()])
    return sums.detach(), gradients


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("layout", ROWS)
@pytest.mark.parametrize("family", PACKABLE)
def test_value_and_gradient_of_each_sample_equal_those_of_padded_rows(family, layout, dtype, tolerance, monkeypatch):
    """T9, one sample's loss at a time: a leak from one sequence into another has nowhere to hide."""
    if dtype is torch.float64:  # norms and rotary frequencies of some families are fp32 by themselves
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
        for name in ("float32", "float"):
            monkeypatch.setattr(torch, name, torch.float64)
    padded, other = model_in(Layout.PADDED, family, dtype), model_in(layout, family, dtype)
    expected, wanted = per_sample_gradients(padded, batch_in(Layout.PADDED, pairs()))
    got, gradients = per_sample_gradients(other, batch_in(layout, pairs()))
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    for mine, theirs in zip(gradients, wanted, strict=True):
        size = max(part.abs().max() for part in theirs)
        for part, reference in zip(mine, theirs, strict=True):
            torch.testing.assert_close(part / size, reference / size, rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3_text"])
@pytest.mark.parametrize("layout", ROWS)
def test_side_by_side_equals_one_by_one(family, layout, monkeypatch):
    """What runs on a GPU and in compiled graphs, run here."""
    model, batch = model_in(layout, family, torch.float64), batch_in(layout, pairs())
    expected, wanted = per_sample_gradients(model, batch)
    calls = []

    def side_by_side(*args: Any) -> torch.Tensor:
        calls.append(args)
        return attention._side_by_side(*args)

    monkeypatch.setattr(attention, "_one_by_one", side_by_side)
    got, gradients = per_sample_gradients(model, batch)
    assert len(calls) == 2
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    for mine, theirs in zip(gradients, wanted, strict=True):
        for part, reference in zip(mine, theirs, strict=True):
            torch.testing.assert_close(part, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_mask_is_cut_into_blocks_of_queries(family, monkeypatch):
    model, batch = model_in(Layout.PREFIX_SHARED, family, torch.float64), batch_in(Layout.PREFIX_SHARED, pairs())
    expected, wanted = per_sample_gradients(model, batch)
    sizes: list[int] = []
    make = attention._mask

    def mask(*args: Any, **options: Any) -> torch.Tensor:
        made = make(*args, **options)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(attention, "MASK_NUMBERS", 40)
    monkeypatch.setattr(attention, "_mask", mask)
    got, gradients = per_sample_gradients(model, batch)
    assert sizes
    assert max(sizes) <= 40
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layout", ROWS)
def test_scored_prompts_are_those_of_padded_rows(layout):
    padded, other = (model_in(kind, "llama", torch.float64) for kind in (Layout.PADDED, layout))
    expected = padded(batch_in(Layout.PADDED, pairs(), prompts_scored=3))
    got = other(batch_in(layout, pairs(), prompts_scored=3))
    torch.testing.assert_close(got.token_logps, expected.token_logps, rtol=1e-10, atol=1e-10)
    assert got.in_completion is not None
    assert expected.in_completion is not None
    assert got.in_completion.equal(expected.in_completion)
    assert got.sequence_index.equal(expected.sequence_index)


@pytest.mark.parametrize("layout", ROWS)
def test_gradient_checkpointing_sees_the_same_sequences_twice(layout):
    """The recomputation happens in the backward pass, where no forward of ours is on the stack."""
    plain = model_in(layout, "llama", torch.float64)
    checkpointed = copy.deepcopy(plain)
    checkpointed.hf_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batch = batch_in(layout, pairs())
    for model in (plain, checkpointed):
        model.train()(batch).token_logps.sum().backward()
    for got, expected in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_compiled_graphs_do_not_grow_with_the_shapes_of_batches(family):
    """Six batches of other lengths, other groups, with a sliding window too: after the second no graph is added."""
    torch._dynamo.reset()
    counters.clear()
    model = model_in(Layout.PREFIX_SHARED, family, torch.float32)
    plain = copy.deepcopy(model)
    model.hf_model.base_model.compile(dynamic=True)
    graphs: list[int] = []
    for seed in range(6):
        first = random_sequences([(3 + seed, 5), (7, 2 + seed), (4, 9)][: 2 + seed % 2], seed=seed)
        others = random_sequences([(1, 3 + seed)] * len(first), seed=seed + 9)
        second = [TokenSequence(a.prompt_ids, b.completion_ids) for a, b in zip(first, others, strict=True)]
        batch = batch_in(Layout.PREFIX_SHARED, [*first, *second])
        got, expected = model(batch).token_logps, plain(batch).token_logps
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        got.sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] >= 1
    assert graphs[-1] == graphs[1]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_padded_rows_and_generation_are_untouched(family):
    """The attention that knows segments is plain sdpa without them, bit for bit."""
    plain, other = model_in(Layout.PADDED, family, torch.float32), model_in(Layout.PREFIX_SHARED, family, torch.float32)
    assert plain.hf_model.config._attn_implementation == "sdpa"
    assert other.hf_model.config._attn_implementation == attention.SEGMENTED
    batch = batch_in(Layout.PADDED, pairs())
    assert plain(batch).token_logps.equal(other(batch).token_logps)
    ids, mask = torch.tensor([[0, 0, 5, 9], [3, 4, 5, 6]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    generated: list[Any] = [model.hf_model.generate(ids, **options) for model in (plain, other)]  # type: ignore[operator]
    assert generated[0].equal(generated[1])


def test_a_model_that_packed_rows_trained_is_saved_as_any_other(tmp_path):
    model = model_in(Layout.PREFIX_SHARED, "llama", torch.float32)
    model.hf_model.save_pretrained(tmp_path)
    assert attention.SEGMENTED not in (tmp_path / "config.json").read_text()


def test_the_shapes_of_a_row():
    """A prompt stands once, before its completions; the last prompt token predicts the first of both."""
    sequences = [TokenSequence([1, 2, 3], [10, 11]), TokenSequence([5], [50]), TokenSequence([1, 2, 3], [20])]
    batch = batch_in(Layout.PREFIX_SHARED, sequences)
    assert batch.input_ids.tolist() == [[1, 2, 3, 10, 11, 20, 5, 50]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 0, 1]]
    assert batch.predictor_index.tolist() == [2, 3, 6, 2]
    assert batch.target_index.tolist() == [3, 4, 7, 5]
    assert batch.targets.tolist() == [10, 11, 50, 20]
    assert batch.sequence_index.tolist() == [0, 0, 1, 2]
    assert batch.segments is not None
    assert batch.segments.groups == ((3, 2, 1), (2,))
    assert batch.num_real_tokens == 11
    packed = batch_in(Layout.PACKED, sequences)
    assert packed.input_ids.tolist() == [[1, 2, 3, 10, 11, 5, 50, 1, 2, 3, 20]]
    assert packed.segments is not None
    assert packed.segments.groups == ((5,), (2,), (4,))


def config_of(family: str, **fields: Any):
    return AutoConfig.for_model(family, **fields)


def test_auto_takes_prefix_sharing_where_it_is_tested_and_says_why():
    for family in TESTED:
        layout, why = choose_layout("auto", config=config_of(family), attention="sdpa")
        assert (layout, why) == (Layout.PREFIX_SHARED, "no padding, and a shared prompt is computed once"), family
    assert {FAMILIES[name].get("model_type", name) for name in PACKABLE} == TESTED


@pytest.mark.parametrize(
    ("family", "fields", "attention_name", "why"),
    [
        ("mamba", {}, "sdpa", "mamba: it carries a state from token to token"),
        ("rwkv", {}, "sdpa", "rwkv: it carries a state"),
        ("jamba", {}, "sdpa", "jamba: it "),
        ("bloom", {}, "sdpa", r"bloom: its attention counts distances in the row \(ALiBi\)"),
        ("falcon", {"alibi": True}, "sdpa", r"falcon: its attention counts distances in the row \(ALiBi\)"),
        ("mpt", {}, "sdpa", "mpt: its attention counts distances"),
        ("qwen3_next", {}, "sdpa", "qwen3_next: it "),
        ("codegen", {}, "sdpa", "codegen: its attention is none that sdpa computes"),
        ("stablelm", {}, "sdpa", "stablelm: its attention is written out in its own code"),
        ("gemma2", {}, "sdpa", "gemma2: its attention bounds its logits, which sdpa cannot do"),
        ("llama", {}, "eager", "llama: model.attention=eager sees a row as one sequence"),
    ],
)
def test_what_cannot_be_packed_is_refused_by_name(family, fields, attention_name, why):
    config = config_of(family, **fields)
    layout, said = choose_layout("auto", config=config, attention=attention_name)
    assert layout is Layout.PADDED
    with pytest.raises(ConfigError, match=why) as caught:
        choose_layout("prefix_shared", config=config, attention=attention_name)
    assert said in str(caught.value)
    assert "model.layout" in str(caught.value)


def test_auto_leaves_what_was_not_tested_padded_and_says_how_to_try():
    layout, why = choose_layout("auto", config=config_of("phi3"), attention="sdpa")
    assert layout is Layout.PADDED
    assert "model.layout=prefix_shared tries it" in why
    assert choose_layout("prefix_shared", config=config_of("phi3"), attention="sdpa")[0] is Layout.PREFIX_SHARED


@pytest.mark.parametrize("layout", ROWS)
def test_quantised_weights_may_round_as_bf16_does(layout):
    model = model_in(layout, "llama", torch.float32)
    noise = torch.Generator().manual_seed(0)
    for layer in model.hf_model.model.layers:  # rounds, and not in the same way for every shape of rows
        layer.mlp.register_forward_hook(lambda _, __, out: out * (1 + 0.008 * torch.randn(out.shape, generator=noise)))
    with pytest.raises(UserError, match=r"at most 0\.001 is rounding"):
        check_layout(model)
    model.hf_model.is_quantized = True
    check_layout(model)


@pytest.mark.parametrize("layout", ROWS)
def test_a_model_that_leaks_is_refused(layout, monkeypatch):
    model = model_in(layout, "llama", torch.float32)
    check_layout(model)

    def leaking(query: Any, key: Any, value: Any, segments: Any, attend: Any) -> torch.Tensor:
        return attend(query, key, value, 0)

    monkeypatch.setattr(attention, "_one_by_one", leaking)
    with pytest.raises(UserError, match=f"model.layout={layout}: hidden states of LlamaForCausalLM differ"):
        check_layout(model)
