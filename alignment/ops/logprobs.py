"""Log-probs of target tokens without ever holding the logits of all of them.

Legend: T scored tokens, H hidden size, V vocabulary, C tokens a chunk.

The plain computation holds T x V logits, their softmax and their gradient. Here a chunk of C rows is projected and
reduced to its log-sum-exp in place, and the backward pass projects it again: all but the last one, whose softmax
waits for the backward pass, which begins with it. At most one chunk exists at a time, and where there is but one
nothing is computed twice. Logits, softmax and the sums over them are in fp32 (fp64 for fp64 inputs) whatever the
weights' type. What the products are of may be half precision: their sums, which logits are, stay in fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class HeadOutput(NamedTuple):
    """What one pass over the logits gives for each scored token.

    Attributes:
        logps: log softmax(logits / temperature)[target] in nats, fp32 (fp64 for fp64 inputs).
        is_greedy: Whether no other token is likelier than the target.
        collision_logps: log sum_v p(v)^2 in nats, without gradient: the log-probability that two draws give the same
            token. There when it was asked for.
        entropies: -sum_v p(v) log p(v) in nats, without gradient. There when it was asked for.
        ranks: How many tokens are likelier than the target: 0 is greedy, below k is among the top k. There when it
            was asked for.
    """

    logps: Float[Tensor, "T"]
    is_greedy: Bool[Tensor, "T"]
    collision_logps: Float[Tensor, "T"] | None
    entropies: Float[Tensor, "T"] | None
    ranks: Int[Tensor, "T"] | None


#: Rows of a chunk that a sum over the vocabulary needs a copy of at a time.
_ROWS = 16
#: A logit so far below the largest whose exponential is 0, in fp64 too.
_NO_PROBABILITY = -1e4


def chunked_head(
    hidden: Float[Tensor, "T H"],
    weight: Float[Tensor, "V H"],
    targets: Int[Tensor, "T"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    collision: bool = False,
    entropy: bool = False,
    rank: bool = False,
    half: torch.dtype | None = None,
) -> HeadOutput:
    """Projects hidden states onto the vocabulary, a chunk at a time, and keeps what is asked of each token.

    logits = softcap * tanh(s / softcap) with s = scale * (hidden @ weight.T + bias), and without a
    soft cap just s.

    Args:
        hidden: Last hidden states at the positions that predict the targets.
        weight: The head's weight.
        targets: Token ids.
        bias: The head's bias, if it has one.
        scale: Multiplies the projection.
        softcap: Gemma 2's bound on the logits' size, in nats.
        temperature: What the sampler divided the logits by.
        chunk_tokens: Rows that are projected at a time: the peak is about C * V * 4 bytes. A head that is not in
            fp32 is copied to it, another V * H * 4 bytes, and its gradient is summed in as many.
        collision: Whether to give ``collision_logps``.
        entropy: Whether to give ``entropies``.
        rank: Whether to give ``ranks``.
        half: Half precision to multiply in, where the device has units for it. Weights and hidden states are rounded
            to it if they are not in it already, and in the backward pass the gradients of logits, which takes half a
            chunk more. Products are summed in fp32.

    Example:
        >>> hidden, weight = torch.zeros(2, 4), torch.zeros(8, 4)
        >>> chunked_head(hidden, weight, torch.tensor([0, 7])).logps.exp()
        tensor([0.1250, 0.1250])
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    head = _Head(scale=scale, softcap=softcap, temperature=temperature, half=half)
    asked = _Asked(collision, entropy, rank)
    return HeadOutput(*_ChunkedHead.apply(hidden, weight, bias, targets, head, chunk_tokens, asked))  # type: ignore[misc]


def plain_token_logps(
    logits: Float[Tensor, "T V"], targets: Int[Tensor, "T"], *, temperature: float = 1.0
) -> Float[Tensor, "T"]:
    """Returns log softmax(logits / temperature)[target]: the reference that the chunked path must equal."""
    scaled = _accurate(logits) / temperature
    return scaled.gather(-1, targets[:, None])[:, 0] - scaled.logsumexp(-1)


def _accurate(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class _Asked(NamedTuple):
    """What is given beside the log-probs."""

    collision: bool
    entropy: bool
    rank: bool


@dataclass(frozen=True)
class _Head:
    """What happens to a projection on its way to the softmax."""

    scale: float
    softcap: float | None
    temperature: float
    half: torch.dtype | None

    def factor(self, tensor: Tensor) -> Tensor:
        """Returns a factor of a product as it is multiplied."""
        return _accurate(tensor) if self.half is None else tensor.to(self.half)

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns a chunk's final logits; the weight is a factor already, hidden states and bias are not."""
        factor = self.scale / (self.temperature if self.softcap is None else self.softcap)
        bias = None if bias is None else _accurate(bias) * factor
        if self.half is not None:
            projected = _product(hidden.to(self.half), weight.T)
            projected = projected if factor == 1.0 else projected.mul_(factor)
            projected = projected if bias is None else projected.add_(bias)
        else:
            # Multiplied before the projection: H numbers a row instead of V.
            rows = _accurate(hidden) if factor == 1.0 else _accurate(hidden) * factor
            projected = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        return projected if self.softcap is None else projected.tanh_().mul_(self.softcap / self.temperature)

    @property
    def slope(self) -> float:
        """The derivative of final logits with respect to the bare projection, but for a soft cap's part of it."""
        return self.scale / self.temperature

    def bend(self, logits: Tensor) -> Tensor | None:
        """Returns a soft cap's part of that derivative; ``None`` without one."""
        if self.softcap is None:
            return None
        bounded = logits * (self.temperature / self.softcap)
        return bounded.square_().neg_().add_(1)


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: _Head,
        chunk_tokens: int,
        asked: _Asked,
    ) -> tuple[Tensor | None, ...]:
        with torch.autocast(hidden.device.type, enabled=False):
            factor = head.factor(weight)
            num_tokens, places_of = len(hidden), partial(torch.empty, len(hidden), device=hidden.device)
            exact = torch.promote_types(hidden.dtype, torch.float32)
            logps, normalisers, collisions, entropies = (places_of(dtype=exact) for _ in range(4))
            is_greedy, ranks = places_of(dtype=torch.bool), places_of(dtype=torch.long)
            powers = total = None
            for start in range(0, num_tokens, chunk_tokens):
                powers = None  # makes room for the next chunk
                chunk = slice(start, start + chunk_tokens)
                logits = head.logits(hidden[chunk], factor, bias)
                places = targets[chunk, None]
                largest, at_target = logits.amax(-1, keepdim=True), logits.gather(-1, places)
                if asked.rank:
                    ranks[chunk] = _row_sums(_is_above, logits, at_target).long()
                powers = logits.sub_(largest)
                del logits
                exponents = _exp_(powers, weighted=asked.entropy)
                total = powers.sum(-1, keepdim=True)
                normaliser = largest + total.log()
                logps[chunk] = (at_target - normaliser)[:, 0]
                is_greedy[chunk] = (at_target >= largest)[:, 0]
                normalisers[chunk] = normaliser[:, 0]
                if asked.collision:
                    collisions[chunk] = _row_sums(torch.mul, powers, powers).log() - 2 * total[:, 0].log()
                if exponents is not None:
                    entropies[chunk] = total[:, 0].log() - exponents / total[:, 0]
            # The last chunk waits as (softmax - onehot(target)) * total. With a soft cap it would take the logits too.
            ctx.kept = None
            if powers is not None and total is not None and head.softcap is None and any(ctx.needs_input_grad):
                ctx.kept = powers.scatter_add_(-1, targets[-len(powers) :, None], -total), total
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        ctx.head, ctx.chunk_tokens = head, chunk_tokens
        ctx.mark_non_differentiable(is_greedy, collisions, entropies, ranks)
        return (
            logps,
            is_greedy,
            collisions if asked.collision else None,
            entropies if asked.entropy else None,
            ranks if asked.rank else None,
        )

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        head: _Head = ctx.head
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = grad_bias = None
        kept: tuple[Tensor, Tensor] | None = ctx.kept
        if len(hidden) > ctx.chunk_tokens:
            ctx.kept = None  # makes room for the other chunks; another backward pass projects this one again too
        with torch.autocast(hidden.device.type, enabled=False):
            factor = head.factor(weight)
            for start in reversed(range(0, len(hidden), ctx.chunk_tokens)):
                chunk = slice(start, start + ctx.chunk_tokens)
                grad = -grad_logps[chunk, None]
                if kept is not None:
                    delta, total = kept
                    grad = grad * (head.slope / total)
                else:
                    grad = grad * head.slope
                    logits = head.logits(hidden[chunk], factor, bias)
                    delta = _minus_onehot_(logits, targets[chunk], normalisers[chunk], head)
                kept = logits = None
                # delta * grad is the gradient of the projection
                delta = head.factor(delta)
                if grad_hidden is not None:
                    grad_hidden[chunk] = (_product(delta, factor) * grad).to(hidden.dtype)
                if wants_weight:
                    grad_weight = _add_product(grad_weight, delta.T, head.factor(_accurate(hidden[chunk]) * grad))
                if wants_bias:
                    grad_bias = _add_product(grad_bias, delta.T, head.factor(grad))
                delta = None
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias[:, 0].to(bias.dtype),
            None,
            None,
            None,
            None,
        )


def _minus_onehot_(logits: Tensor, targets: Tensor, normalisers: Tensor, head: _Head) -> Tensor:
    """Makes a chunk's softmax less onehot(target) of its final logits in place, times what a soft cap bends."""
    # A soft cap's part is another chunk, unless it is made for a few rows at a time.
    rows = len(logits) if head.softcap is None else _ROWS
    pieces = (torch.split(tensor, rows) for tensor in (logits, targets, normalisers))
    for part, places, normaliser in zip(*pieces, strict=True):
        bent = head.bend(part)
        part.sub_(normaliser[:, None]).exp_()
        part.scatter_add_(-1, places[:, None], part.new_full((len(part), 1), -1.0))
        if bent is not None:
            part.mul_(bent)
        bent = None
    return logits


def _exp_(exponents: Tensor, *, weighted: bool) -> Tensor | None:
    """Takes the exponential in place; where that is wanted, returns each row's sum of exponents weighted by it.

    A logarithm of the exponentials would cost as much as they did.
    """
    if not weighted:
        exponents.exp_()
        return None
    # What is without any probability adds nothing, be it minus infinity.
    parts = torch.split(exponents, _ROWS)
    return torch.cat([rows.clamp_min(_NO_PROBABILITY).mul_(rows.exp_()).sum(-1) for rows in parts])


def _is_above(row: Tensor, bound: Tensor) -> Tensor:
    """Returns 1 or 0 in the type of the row: numbers are summed several times as fast as truth values."""
    return torch.gt(row, bound, out=torch.empty_like(row))


def _row_sums(function: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
    """Sums a function of each row, a few rows at a time: its values for all would be another chunk."""
    parts = zip(torch.split(left, _ROWS), torch.split(right, _ROWS), strict=True)
    return torch.cat([function(*rows).sum(-1) for rows in parts])


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Returns left @ right with sums in fp32, for factors in half precision too."""
    if left.dtype in (torch.float32, torch.float64):
        return left @ right
    return torch.mm(left, right, out_dtype=torch.float32) if left.is_cuda else left.float() @ right.float()


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Returns total + left @ right, in the memory of ``total`` if there is one."""
    if total is None:
        return _product(left, right)
    return total.addmm_(left, right) if left.dtype == total.dtype else total.add_(_product(left, right))
