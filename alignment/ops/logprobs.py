"""Log-probs of target tokens without ever holding the logits of all of them.

Legend: T scored tokens, H hidden size, V vocabulary, C tokens a chunk.

The plain computation holds T x V logits, their softmax and their gradient. Here a chunk of C rows is projected and
reduced to its log-sum-exp in place, and the backward pass projects it again: all but the last one, whose softmax
waits for the backward pass, which begins with it. At most one chunk exists at a time, and where there is but one
nothing is computed twice. Logits, softmax and the sums over them are in fp32 (fp64 for fp64 inputs) whatever the
weights' type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """

    logps: Float[Tensor, "T"]
    is_greedy: Bool[Tensor, "T"]
    collision_logps: Float[Tensor, "T"] | None
    entropies: Float[Tensor, "T"] | None


#: Rows of a chunk that a sum over the vocabulary needs a copy of at a time.
_ROWS = 16


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

    Example:
        >>> hidden, weight = torch.zeros(2, 4), torch.zeros(8, 4)
        >>> chunked_head(hidden, weight, torch.tensor([0, 7])).logps.exp()
        tensor([0.1250, 0.1250])
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    head = _Head(scale=scale, softcap=softcap, temperature=temperature)
    return HeadOutput(
        *_ChunkedHead.apply(hidden, weight, bias, targets, head, chunk_tokens, collision, entropy)  # type: ignore[misc]
    )


def plain_token_logps(
    logits: Float[Tensor, "T V"], targets: Int[Tensor, "T"], *, temperature: float = 1.0
) -> Float[Tensor, "T"]:
    """Returns log softmax(logits / temperature)[target]: the reference that the chunked path must equal."""
    scaled = _accurate(logits) / temperature
    return scaled.gather(-1, targets[:, None])[:, 0] - scaled.logsumexp(-1)


def _accurate(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@dataclass(frozen=True)
class _Head:
    """What happens to a projection on its way to the softmax."""

    scale: float
    softcap: float | None
    temperature: float

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns a chunk's final logits."""
        # Multiplied before the projection: H numbers a row instead of V.
        factor = self.scale / (self.temperature if self.softcap is None else self.softcap)
        rows = hidden if factor == 1.0 else hidden * factor
        projected = rows @ weight.T if bias is None else torch.addmm(bias * factor, rows, weight.T)
        return projected if self.softcap is None else projected.tanh_().mul_(self.softcap / self.temperature)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Returns the derivative of final logits with respect to the bare projection."""
        slope = self.scale / self.temperature
        if self.softcap is None:
            return slope
        bounded = logits * (self.temperature / self.softcap)
        return bounded.square_().neg_().add_(1).mul_(slope)


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
        collision: bool,
        entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        with torch.autocast(hidden.device.type, enabled=False):
            weight_a = _accurate(weight)
            bias_a = None if bias is None else _accurate(bias)
            num_tokens = len(hidden)
            logps, normalisers, collisions, entropies = (weight_a.new_empty(num_tokens) for _ in range(4))
            is_greedy = torch.empty(num_tokens, dtype=torch.bool, device=hidden.device)
            powers = total = None
            for start in range(0, num_tokens, chunk_tokens):
                powers = None  # makes room for the next chunk
                chunk = slice(start, start + chunk_tokens)
                logits = head.logits(_accurate(hidden[chunk]), weight_a, bias_a)
                places = targets[chunk, None]
                largest, at_target = logits.amax(-1, keepdim=True), logits.gather(-1, places)
                powers = logits.sub_(largest).exp_()
                del logits
                total = powers.sum(-1, keepdim=True)
                normaliser = largest + total.log()
                logps[chunk] = (at_target - normaliser)[:, 0]
                is_greedy[chunk] = (at_target >= largest)[:, 0]
                normalisers[chunk] = normaliser[:, 0]
                if collision:
                    collisions[chunk] = _row_sums(torch.square, powers).log() - 2 * total[:, 0].log()
                if entropy:
                    powers_log = _row_sums(lambda rows: torch.xlogy(rows, rows), powers)
                    entropies[chunk] = total[:, 0].log() - powers_log / total[:, 0]
            # The last chunk waits as (softmax - onehot(target)) * total. With a soft cap it would take the logits too.
            ctx.kept = None
            if powers is not None and total is not None and head.softcap is None and any(ctx.needs_input_grad):
                ctx.kept = powers.scatter_add_(-1, targets[-len(powers) :, None], -total), total
        ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        ctx.head, ctx.chunk_tokens = head, chunk_tokens
        ctx.mark_non_differentiable(is_greedy, collisions, entropies)
        return logps, is_greedy, collisions if collision else None, entropies if entropy else None

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor, *_: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        weight_a = _accurate(weight)
        bias_a = None if bias is None else _accurate(bias)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = grad_bias = None
        kept: tuple[Tensor, Tensor] | None = ctx.kept
        if len(hidden) > ctx.chunk_tokens:
            ctx.kept = None  # makes room for the other chunks; another backward pass projects this one again too
        with torch.autocast(hidden.device.type, enabled=False):
            for start in reversed(range(0, len(hidden), ctx.chunk_tokens)):
                chunk = slice(start, start + ctx.chunk_tokens)
                rows, grad = _accurate(hidden[chunk]), -grad_logps[chunk, None]
                if kept is not None:
                    delta, total = kept
                    grad = grad * (ctx.head.slope(delta) / total)
                else:
                    logits = ctx.head.logits(rows, weight_a, bias_a)
                    slope = ctx.head.slope(logits)
                    delta = logits.sub_(normalisers[chunk, None]).exp_()
                    delta.scatter_add_(-1, targets[chunk, None], delta.new_full((len(delta), 1), -1.0))
                    if isinstance(slope, Tensor):
                        delta *= slope
                    else:
                        grad = grad * slope
                # delta * grad is the gradient of the projection
                if grad_hidden is not None:
                    grad_hidden[chunk] = ((delta @ weight_a) * grad).to(hidden.dtype)
                if wants_weight:
                    grad_weight = _add_product(grad_weight, delta.T, rows * grad)
                if wants_bias:
                    grad_bias = _add_product(grad_bias, delta.T, grad)
                kept = delta = logits = None
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias[:, 0].to(bias.dtype),
            None,
            None,
            None,
            None,
            None,
        )


def _row_sums(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Sums a function of each row, a few rows at a time: a copy of all would be another chunk."""
    return torch.cat([function(rows).sum(-1) for rows in torch.split(values, _ROWS)])


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Returns total + left @ right, in the memory of ``total`` if there is one."""
    return left @ right if total is None else total.addmm_(left, right)
