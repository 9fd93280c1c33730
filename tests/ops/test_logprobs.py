"""The chunked path equals the plain one with every option, in value and gradient (T12)."""

from __future__ import annotations

import weakref
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alignment.ops.logprobs import _Head, chunked_head, plain_token_logps

OPTIONS = [
    pytest.param(scale, softcap, temperature, with_bias, id=f"scale{scale}-cap{softcap}-T{temperature}-bias{with_bias}")
    for scale in (1.0, 0.3)
    for softcap in (None, 5.0)
    for temperature in (1.0, 0.7)
    for with_bias in (False, True)
]


def chunked_token_logps(*args, **options):
    return chunked_head(*args, **options).logps


def _inputs(dtype: torch.dtype, *, with_bias: bool):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(13, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(17, 6, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    bias = torch.randn(17, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() if with_bias else None
    targets = torch.randint(0, 17, (13,), generator=generator)
    return hidden, weight, bias, targets


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that operations made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()).data_ptr() not in self._known:
                self._count(storage)
        return result

    def _count(self, storage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        self._known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone() -> None:
            self.now -= size
            self._known.discard(place)

        weakref.finalize(storage, gone)


@contextmanager
def largest_live_bytes():
    with _Live() as live:
        yield live


def _plain(hidden, weight, bias, targets, *, scale, softcap, temperature):
    logits = hidden @ weight.T
    logits = scale * (logits if bias is None else logits + bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return plain_token_logps(logits, targets, temperature=temperature)


@pytest.mark.parametrize(("scale", "softcap", "temperature", "with_bias"), OPTIONS)
@pytest.mark.parametrize("chunk_tokens", [1, 5, 13, 100])
def test_equals_the_plain_path(scale, softcap, temperature, with_bias, chunk_tokens):
    hidden, weight, bias, targets = _inputs(torch.float64, with_bias=with_bias)
    options = {"scale": scale, "softcap": softcap, "temperature": temperature}
    parameters = [p for p in (hidden, weight, bias) if p is not None]
    upstream = torch.linspace(-1, 2, 13, dtype=torch.float64)
    chunked = chunked_token_logps(hidden, weight, targets, bias=bias, chunk_tokens=chunk_tokens, **options)
    plain = _plain(hidden, weight, bias, targets, **options)
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=1e-12)
    got = torch.autograd.grad(chunked, parameters, upstream)
    expected = torch.autograd.grad(plain, parameters, upstream)
    for left, right in zip(got, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("scale", "softcap", "temperature", "with_bias"), OPTIONS)
def test_gradcheck(scale, softcap, temperature, with_bias):
    hidden, weight, bias, targets = _inputs(torch.float64, with_bias=with_bias)

    def path(*parameters):
        return chunked_token_logps(
            parameters[0],
            parameters[1],
            targets,
            bias=parameters[2] if with_bias else None,
            scale=scale,
            softcap=softcap,
            temperature=temperature,
            chunk_tokens=4,
        )

    assert torch.autograd.gradcheck(path, (hidden, weight, bias) if with_bias else (hidden, weight))


def test_every_option_changes_something():
    hidden, weight, bias, targets = _inputs(torch.float64, with_bias=True)
    base = chunked_token_logps(hidden, weight, targets)
    for option in ({"scale": 2.0}, {"softcap": 1.0}, {"temperature": 2.0}, {"bias": bias}):
        assert not torch.allclose(base, chunked_token_logps(hidden, weight, targets, **option))


def test_low_precision_weights_are_reduced_in_fp32():
    """The path on bf16 inputs equals fp32 arithmetic on the same rounded values, not bf16 arithmetic."""
    hidden, weight, _, targets = _inputs(torch.bfloat16, with_bias=False)
    got = chunked_token_logps(hidden, weight, targets, chunk_tokens=4)
    assert got.dtype == torch.float32
    expected = plain_token_logps(hidden.float() @ weight.float().T, targets)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    got.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16


def test_autocast_does_not_lower_the_precision():
    hidden, weight, _, targets = _inputs(torch.float32, with_bias=False)
    expected = chunked_token_logps(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = chunked_token_logps(hidden, weight, targets)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_frozen_head_gets_no_gradient():
    hidden, weight, _, targets = _inputs(torch.float64, with_bias=False)
    weight.requires_grad_(False)
    chunked_token_logps(hidden, weight, targets).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_no_scored_token_gives_an_empty_result():
    hidden, weight, _, _ = _inputs(torch.float64, with_bias=False)
    got = chunked_token_logps(hidden[:0], weight, torch.zeros(0, dtype=torch.long))
    assert got.shape == (0,)


def test_a_chunk_must_hold_a_token():
    hidden, weight, _, targets = _inputs(torch.float64, with_bias=False)
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1, got 0"):
        chunked_token_logps(hidden, weight, targets, chunk_tokens=0)


def test_every_chunk_but_the_last_is_projected_again_and_the_backward_pass_can_be_repeated(monkeypatch):
    hidden, weight, _, targets = _inputs(torch.float64, with_bias=False)
    rows: list[int] = []
    project = _Head.logits
    monkeypatch.setattr(
        _Head, "logits", lambda head, chunk, *rest: rows.append(len(chunk)) or project(head, chunk, *rest)
    )
    logps = chunked_token_logps(hidden, weight, targets, chunk_tokens=5)
    assert rows == [5, 5, 3]
    first = torch.autograd.grad(logps.sum(), (hidden, weight), retain_graph=True)
    assert rows == [5, 5, 3, 5, 5]
    second = torch.autograd.grad(logps.sum(), (hidden, weight))
    assert rows == [5, 5, 3, 5, 5, 3, 5, 5]
    for left, right in zip(first, second, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"softcap": 5.0}, {"entropy": True}, {"collision": True}, {"rank": True}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [128, 256])
def test_no_more_than_a_chunk_of_logits_exists(chunk, dtype, options):
    """Peak memory of the head's passes at most 1.25 chunks above its gradients, and an fp32 copy of a head in bf16."""
    tokens, size, vocabulary = 256, 8, 4096
    hidden = torch.randn(tokens, size, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, size, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, vocabulary, (tokens,))
    with largest_live_bytes() as live:
        chunked_token_logps(hidden, weight, targets, chunk_tokens=chunk, **options).sum().backward()
    floor = chunk * vocabulary * 4
    head = vocabulary * size * 4
    assert floor <= live.peak <= 1.25 * floor + head * (2 if dtype is torch.bfloat16 else 1)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_rounds_factors_and_nothing_else(dtype, with_bias, softcap):
    """What tensor cores do: factors rounded to bf16, sums in fp32. Gradients are rounded once more on their way."""
    hidden, weight, bias, targets = _inputs(dtype, with_bias=with_bias)
    options = {"scale": 0.5, "softcap": softcap, "temperature": 0.7}
    rounded = [None if p is None else p.detach().bfloat16().double().requires_grad_() for p in (hidden, weight)]
    exact = [*rounded, None if bias is None else bias.detach().double().requires_grad_()]
    got = chunked_token_logps(hidden, weight, targets, bias=bias, chunk_tokens=5, half=torch.bfloat16, **options)
    expected = _plain(*exact, targets, **options)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.linspace(-1, 2, 13)
    gradients = torch.autograd.grad(got, [p for p in (hidden, weight, bias) if p is not None], upstream)
    wanted = torch.autograd.grad(expected, [p for p in exact if p is not None], upstream.double())
    for mine, theirs in zip(gradients, wanted, strict=True):
        assert mine.dtype == dtype
        off = (mine.double() - theirs).abs().max() / theirs.abs().max()
        assert off < 2**-7, off


def test_half_precision_takes_whole_weights_as_they_are():
    """fp32 factors that bf16 holds exactly lose nothing, and what asks for no half precision is untouched by it."""
    hidden, weight, _, targets = (None if p is None else p.detach() for p in _inputs(torch.bfloat16, with_bias=False))
    assert hidden is not None
    plain = chunked_token_logps(hidden.float(), weight.float(), targets)
    assert chunked_token_logps(hidden.float(), weight.float(), targets, half=torch.bfloat16).equal(plain)
    assert not chunked_token_logps(hidden.float() * 1.001, weight.float(), targets, half=torch.bfloat16).equal(
        chunked_token_logps(hidden.float() * 1.001, weight.float(), targets)
    )


def test_greedy_tokens_collisions_entropies_and_ranks_come_from_the_same_pass():
    hidden, weight, bias, targets = _inputs(torch.float64, with_bias=True)
    logits = (hidden @ weight.T + bias) / 0.7
    targets[::2] = logits.argmax(-1)[::2]
    got = chunked_head(
        hidden, weight, targets, bias=bias, temperature=0.7, chunk_tokens=4, collision=True, entropy=True, rank=True
    )
    assert got.is_greedy.equal(logits.argmax(-1) == targets)
    assert got.is_greedy.any()
    assert not got.is_greedy.all()
    expected = logits.softmax(-1).square().sum(-1).log()
    torch.testing.assert_close(got.collision_logps, expected.detach(), rtol=1e-10, atol=1e-12)
    assert got.collision_logps is not None
    assert not got.collision_logps.requires_grad
    by_hand = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(got.entropies, by_hand.detach(), rtol=1e-10, atol=1e-12)
    assert got.entropies is not None
    assert not got.entropies.requires_grad
    likelier = (logits > logits.gather(-1, targets[:, None])).sum(-1)
    assert got.ranks is not None
    assert got.ranks.equal(likelier)
    assert got.ranks.max() > 4
    assert (got.ranks == 0).equal(got.is_greedy)
    assert chunked_head(hidden, weight, targets)[2:] == (None, None, None)


def test_a_token_that_is_ruled_out_adds_nothing_to_the_entropy():
    """Heads of padded vocabularies have a bias of minus infinity there; 0 times infinity is no number."""
    hidden, weight, bias, targets = _inputs(torch.float64, with_bias=True)
    targets = targets.clamp_min(2)
    ruled_out = bias.detach().clone()
    ruled_out[:2] = float("-inf")
    got = chunked_head(hidden, weight, targets, bias=ruled_out, chunk_tokens=4, entropy=True)
    logits = (hidden @ weight.T + bias)[:, 2:]
    by_hand = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(got.entropies, by_hand.detach(), rtol=1e-10, atol=1e-12)
