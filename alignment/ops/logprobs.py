"""Log-probs of target tokens without ever holding the logits of all of them.

Legend: T scored tokens, H hidden size, V vocabulary, C tokens a chunk.

The plain computation holds T x V logits, their softmax and their gradient. Here a chunk of C rows
is projected, reduced to its log-sum-exp and thrown away; the backward pass projects it again. Logits,
softmax and the sums over them are in fp32 (fp64 for fp64 inputs) whatever the weights' type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


def chunked_token_logps(
    hidden: Float[Tensor, "T H"],
    weight: Float[Tensor, "V H"],
    targets: Int[Tensor, "T"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
) -> Float[Tensor, "T"]:
    """Returns log softmax(logits / temperature)[target] for each row of ``hidden``.

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
        chunk_tokens: Rows that are projected at a time: the peak is about 2 * C * V * 4 bytes. A head that is not in
            fp32 is copied to it, another V * H * 4 bytes, and its gradient is summed in as many.

    Returns:
        Log-probs in nats, in fp32 (fp64 for fp64 inputs).

    Example:
        >>> hidden, weight = torch.zeros(2, 4), torch.zeros(8, 4)
        >>> chunked_token_logps(hidden, weight, torch.tensor([0, 7])).exp()
        tensor([0.1250, 0.1250])
    """
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    head = _Head(scale=scale, softcap=softcap, temperature=temperature)
    return _ChunkedTokenLogps.apply(hidden, weight, bias, targets, head, chunk_tokens)  # type: ignore[no-any-return]


@torch.no_grad()
def chunked_collision_logps(
    hidden: Float[Tensor, "T H"],
    weight: Float[Tensor, "V H"],
    *,
    bias: Float[Tensor, "V"] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
) -> Float[Tensor, "T"]:
    """Returns log sum_v p(v)^2 for each row of ``hidden``, in nats, without gradient.

    It is the log-probability that two draws give the same token. Arguments are as in :func:`chunked_token_logps`.

    Example:
        >>> chunked_collision_logps(torch.zeros(1, 4), torch.zeros(8, 4)).exp()
        tensor([0.1250])
    """
    head = _Head(scale=scale, softcap=softcap, temperature=temperature)
    values: list[Tensor] = []
    with torch.autocast(hidden.device.type, enabled=False):
        weight_a, bias_a = _accurate(weight), None if bias is None else _accurate(bias)
        for start in range(0, max(len(hidden), 1), chunk_tokens):
            logits, _ = head.logits(_accurate(hidden[start : start + chunk_tokens]), weight_a, bias_a)
            normaliser = logits.logsumexp(-1)
            values.append(logits.mul_(2).logsumexp(-1) - 2 * normaliser)
    return torch.cat(values)


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

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | float]:
        """Returns a chunk's final logits and their derivative with respect to the bare projection."""
        projected = hidden @ weight.T
        if bias is not None:
            projected += bias
        projected *= self.scale
        if self.softcap is None:
            return projected.div_(self.temperature), self.scale / self.temperature
        bounded = torch.tanh(projected / self.softcap)
        slope = (1 - bounded.square()).mul_(self.scale / self.temperature)
        return bounded.mul_(self.softcap / self.temperature), slope


class _ChunkedTokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: _Head,
        chunk_tokens: int,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            weight_a = _accurate(weight)
            bias_a = None if bias is None else _accurate(bias)
            logps: list[Tensor] = []
            normalisers: list[Tensor] = []
            for start in range(0, max(len(hidden), 1), chunk_tokens):
                chunk = slice(start, start + chunk_tokens)
                logits, _ = head.logits(_accurate(hidden[chunk]), weight_a, bias_a)
                normaliser = logits.logsumexp(-1)
                logps.append(logits.gather(-1, targets[chunk, None])[:, 0] - normaliser)
                normalisers.append(normaliser)
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalisers))
        ctx.head, ctx.chunk_tokens = head, chunk_tokens
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad_logps: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        weight_a = _accurate(weight)
        bias_a = None if bias is None else _accurate(bias)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_a) if wants_weight else None
        grad_bias = torch.zeros_like(weight_a[:, 0]) if wants_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), ctx.chunk_tokens):
                chunk = slice(start, start + ctx.chunk_tokens)
                rows, grad = _accurate(hidden[chunk]), grad_logps[chunk, None]
                logits, slope = ctx.head.logits(rows, weight_a, bias_a)
                # d logp / d logits = onehot(target) - softmax
                grad_logits = logits.sub_(normalisers[chunk, None]).exp_().mul_(-grad)
                grad_logits.scatter_add_(-1, targets[chunk, None], grad)
                grad_logits *= slope
                if grad_hidden is not None:
                    grad_hidden[chunk] = (grad_logits @ weight_a).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight.addmm_(grad_logits.T, rows)
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )
