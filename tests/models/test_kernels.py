"""FlexAttention and variable-length attention, made for GPUs: what they are given is checked here, on a CPU.

FlexAttention's own formula runs here uncompiled, backward too once its refusal of CPUs is taken away. Variable-length
attention exists on GPUs only: a twin of what its documentation says takes its place.
"""

from __future__ import annotations

import functools
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_layouts import ROWS, batch_in, model_in, pairs, per_sample_gradients
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as flex
from torch.nn.attention import varlen
from transformers import AutoConfig
from transformers.integrations import flex_attention as integration

from alignment.data.collate import TokenSequence, token_batch
from alignment.models import kernels, logprob_model
from alignment.models.kernels import BLOCK, Blocks, Runs, blocks_that_meet, kernel_of, plain_attention, prepare
from alignment.models.layout import check_kernel, choose_layout
from alignment.types import Layout, Segments
from alignment.utils.errors import UserError

CPU = torch.device("cpu")
#: Windows, scalings of their own, absolute positions; what else families differ in does not reach the attention.
FAMILIES = ["gemma3_text", "gpt2", "granite", "llama", "mistral"]


@pytest.fixture
def flex_on_cpu(monkeypatch):
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)

    def uncompiled(*args: Any, training: bool, **options: Any) -> Any:
        return flex.flex_attention(*args, **options)

    monkeypatch.setattr(integration, "compile_friendly_flex_attention", uncompiled)


def varlen_twin(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa) -> Tensor:
    """A run's last query stands at its last key; a query sees ``window_size[0]`` keys before its own, -1 is all."""
    assert window_size[1] == 0
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert (cu_seq_q.dtype, cu_seq_k.dtype) == (torch.int32, torch.int32)
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    assert (query.shape[0], key.shape[0]) == (cu_seq_q[-1], cu_seq_k[-1])
    outputs: list[Tensor] = []
    for run in range(len(cu_seq_q) - 1):
        q = query[cu_seq_q[run] : cu_seq_q[run + 1]].transpose(0, 1)
        k, v = (
            part[cu_seq_k[run] : cu_seq_k[run + 1]].transpose(0, 1).repeat_interleave(q.shape[0] // part.shape[1], 0)
            for part in (key, value)
        )
        ahead = torch.arange(k.shape[1]) - (torch.arange(q.shape[1]) + k.shape[1] - q.shape[1])[:, None]
        hidden = (ahead > 0) | ((ahead < -window_size[0]) if window_size[0] >= 0 else False)
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(hidden, float("-inf"))
        outputs.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def varlen_on_cpu(monkeypatch):
    monkeypatch.setattr(varlen, "varlen_attn", varlen_twin)


def use(kernel: str, monkeypatch) -> list[Blocks | Runs]:
    """Has models of the kernel compute with it on the CPU too; returns the rows that were prepared."""
    rows: list[Blocks | Runs] = []

    def prepared(segments: Segments, _kernel: str, *, config: Any, device: Any, dtype: torch.dtype) -> Blocks | Runs:
        window = kernels.window_of(config)
        flexible = kernel == "flex"
        rows.append(Blocks.of(segments, windows={None, window}) if flexible else Runs.of(segments, dtype=dtype))
        return rows[-1]

    monkeypatch.setattr(logprob_model, "prepare", prepared)
    return rows


@pytest.mark.parametrize("kernel", ["flex", "varlen"])
@pytest.mark.parametrize("layout", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_value_and_gradient_of_each_sample_equal_those_of_sdpa(
    family, layout, kernel, flex_on_cpu, varlen_on_cpu, monkeypatch
):
    """T9 for the kernels: windows of 4, several heads a key, prompts of one token and completions of one."""
    model, batch = model_in(layout, family, torch.float64), batch_in(layout, pairs())
    expected, wanted = per_sample_gradients(model, batch)
    rows = use(kernel, monkeypatch)
    got, gradients = per_sample_gradients(model, batch)
    assert len(rows) == 1
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(gradients, wanted, strict=True):
        for part, reference in zip(mine, theirs, strict=True):
            torch.testing.assert_close(part, reference, rtol=1e-8, atol=1e-8)


def test_variable_length_attention_that_cannot_share_keys(varlen_on_cpu, monkeypatch):
    """As torch 2.11 has it."""
    model, batch = model_in(Layout.PREFIX_SHARED, "mistral", torch.float64), batch_in(Layout.PREFIX_SHARED, pairs())
    expected, wanted = per_sample_gradients(model, batch)
    use("varlen", monkeypatch)
    heads: set[tuple[int, int]] = set()

    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size) -> Tensor:
        heads.add((query.shape[1], key.shape[1]))
        lengths = cu_seq_q, cu_seq_k, max_q, max_k
        return varlen_twin(query, key, value, *lengths, scale=scale, window_size=window_size, enable_gqa=False)

    monkeypatch.setattr(varlen, "varlen_attn", older)
    got, gradients = per_sample_gradients(model, batch)
    assert heads == {(model.hf_model.config.num_attention_heads,) * 2}
    assert model.hf_model.config.num_key_value_heads < model.hf_model.config.num_attention_heads
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    for mine, theirs in zip(gradients, wanted, strict=True):
        for part, reference in zip(mine, theirs, strict=True):
            torch.testing.assert_close(part, reference, rtol=1e-8, atol=1e-8)


def rows_of(groups: list[list[int]]) -> Segments:
    """A row of these trunks and branches; a prompt with one completion is one trunk."""
    sequences: list[TokenSequence] = []
    for number, (trunk, *branches) in enumerate(groups):
        sequences += [TokenSequence([number + 1] * trunk, [9] * branch) for branch in branches]
    segments = token_batch(sequences, pad_id=0, layout=Layout.PREFIX_SHARED).segments
    assert segments is not None
    return segments


@pytest.mark.parametrize("seed", range(6))
def test_blocks_that_meet_are_those_with_a_pair_of_places_that_do(seed):
    draw = random.Random(seed)
    groups = [[draw.randint(1, 300) for _ in range(draw.randint(2, 4))] for _ in range(draw.randint(1, 5))]
    segments = rows_of(groups)
    mask = Blocks.of(segments, windows={None}).masks[None]
    assert mask.mask_mod is not None
    place = torch.arange(segments.home.numel())
    sees = mask.mask_mod(torch.tensor(0), torch.tensor(0), place[:, None], place[None])
    count = -(-len(place) // BLOCK)
    padded = torch.zeros(count * BLOCK, count * BLOCK, dtype=torch.bool)
    padded[: len(place), : len(place)] = sees
    expected = padded.view(count, BLOCK, count, BLOCK).any(3).any(1)
    assert mask.to_dense()[0, 0].bool().equal(expected)
    assert sees.diagonal().all()
    assert not sees.triu(1).any()


def test_a_row_of_one_block():
    own = torch.zeros(5, dtype=torch.long)
    assert blocks_that_meet(own, own, own).tolist() == [[True]]


@pytest.mark.slow
def test_flex_compiled_skips_the_blocks_that_do_not_meet():
    """Its CPU kernel, forward, goes by the blocks; a block left out would be missing from the sum."""
    torch._dynamo.reset()
    segments = rows_of([[150, 60, 200], [30, 20], [270, 1, 140]])
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, segments.home.numel(), 16) for _ in range(3))
    mask = Blocks.of(segments, windows={None}).masks[None]
    with torch.no_grad():
        got = torch.compile(flex.flex_attention)(query, key, value, block_mask=mask)
        expected = flex.flex_attention(query, key, value, block_mask=mask)
    assert mask.sparsity() > 30
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_flex_is_compiled_for_rows_of_any_size_a_few_times(monkeypatch):
    """With and without a window and gradients; uncompiled it would make a mask over all places."""
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(flex.flex_attention, backend="eager")
    monkeypatch.setattr(integration, "compile_friendly_flex_attention", lambda *a, training, **o: compiled(*a, **o))
    layer: Any = SimpleNamespace(training=True, is_causal=True, num_key_value_groups=2, layer_idx=0)
    for trunk in (20, 150, 270, 99, 500):
        row = rows_of([[trunk, 5, 60], [30, 20]])
        for with_gradient in (True, False):
            blocks = Blocks.of(row, windows={None, 20})
            query, key, value = (torch.randn(1, heads, row.home.numel(), 16) for heads in (4, 2, 2))
            for window in (None, 20):
                with torch.set_grad_enabled(with_gradient):
                    query.requires_grad_(with_gradient)
                    blocks.attend(layer, query, key, value, window=window, options={"scaling": 0.25})
    assert counters["stats"]["unique_graphs"] <= 4
    assert torch._dynamo.config.recompile_limit >= 64
    assert torch._dynamo.config.fail_on_recompile_limit_hit


def test_the_runs_of_a_row():
    runs = Runs.of(rows_of([[3, 2, 1], [2, 4]]), dtype=torch.bfloat16)
    assert runs.query_ends.tolist() == [0, 3, 5, 6, 12]
    assert runs.key_ends.tolist() == [0, 3, 8, 12, 18]
    assert runs.places.tolist() == [0, 1, 2, *[0, 1, 2, 3, 4], *[0, 1, 2, 5], *[6, 7, 8, 9, 10, 11]]
    assert (runs.longest_query, runs.longest_key) == (6, 6)


def test_where_a_kernel_cannot_run_sdpa_does():
    segments, llama = rows_of([[3, 2]]), AutoConfig.for_model("llama")
    options: Any = {"config": llama, "dtype": torch.bfloat16}
    for kernel in ("sdpa", "flex", "varlen"):
        assert prepare(segments, kernel, device=CPU, **options) is segments
    there = torch.device("cuda")  # only its name is looked at
    assert isinstance(prepare(segments, "flex", device=there, **options), Blocks)
    assert isinstance(prepare(segments, "varlen", device=there, **options), Runs)
    assert prepare(segments, "varlen", config=llama, device=there, dtype=torch.float32) is segments
    with torch.autocast("cuda", torch.bfloat16, enabled=True):
        if torch.is_autocast_enabled("cuda"):  # torch switches it off where there is no such device
            runs = prepare(segments, "varlen", config=llama, device=there, dtype=torch.float32)
            assert isinstance(runs, Runs)
            assert runs.dtype is torch.bfloat16


@pytest.mark.parametrize("attention", ["flex", "varlen"])
def test_kernels_take_the_layouts_that_sdpa_takes(attention):
    assert (kernel_of(attention), plain_attention(attention)) == (attention, "sdpa")
    assert (kernel_of("eager"), plain_attention("eager")) == ("sdpa", "eager")
    config = AutoConfig.for_model("llama")
    assert choose_layout("auto", config=config, attention=attention)[0] is Layout.PREFIX_SHARED


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("kernel", ["flex", "varlen"])
def test_a_kernel_is_compared_with_sdpa_before_a_run(kernel, family, flex_on_cpu, varlen_on_cpu):
    config = AutoConfig.for_model(
        family, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=4096
    )
    check_kernel(kernel, config=config, device=CPU)


def test_a_kernel_that_is_wrong_is_refused(flex_on_cpu, varlen_on_cpu, monkeypatch):
    config = AutoConfig.for_model("llama", hidden_size=64, num_attention_heads=4)

    @functools.wraps(varlen_twin)
    def aligned_at_the_first_key(query, key, value, cu_seq_q, cu_seq_k, *rest, **options: Any) -> Tensor:
        return varlen_twin(query, key.roll(1, 0), value, cu_seq_q, cu_seq_k, *rest, **options)

    monkeypatch.setattr(varlen, "varlen_attn", aligned_at_the_first_key)
    with pytest.raises(UserError, match=r"model.attention=varlen differs from sdpa by .* Set model.attention=sdpa"):
        check_kernel("varlen", config=config, device=CPU)

    @functools.wraps(varlen_twin)
    def missing(*_: Any, **__: Any) -> Tensor:
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr(varlen, "varlen_attn", missing)
    with pytest.raises(UserError, match=r"varlen does not run here \(NotImplementedError: no such kernel\)"):
        check_kernel("varlen", config=config, device=CPU)

    def unmasked(self: Blocks, module: Any, query, key, value, *, window, options: Any) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)

    monkeypatch.setattr(Blocks, "attend", unmasked)
    with pytest.raises(UserError, match=r"model.attention=flex differs from sdpa"):
        check_kernel("flex", config=config, device=CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", ["flex", "varlen"])
def test_kernels_on_a_gpu(kernel):
    config = AutoConfig.for_model("mistral", hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
    check_kernel(kernel, config=config, device=torch.device("cuda"))
