"""Methods without models: what they compute and log from numbers that were made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from alignment.methods.base import Parts
from alignment.methods.metrics import MetricSums
from alignment.methods.terms import Terms, TermsMethod
from alignment.types import TokenBatch, TokenLogps


def parts(*, reference: TokenLogps | None = None) -> Parts:
    """What a method is made with; its reference says the same of every batch."""
    said = None if reference is None else SimpleNamespace(batch_logps=lambda batch: reference.token_logps)
    unused: dict[str, Any] = dict.fromkeys(("optimizer", "schedule", "cache_dir", "reward", "rollout"))
    return Parts(bundle=SimpleNamespace(adapter=None, reference=said), seed=0, **unused)  # type: ignore[arg-type]


def scored(*sequences: list[float], **more: Any) -> TokenLogps:
    """Log-probs, a list for each sequence."""
    index = torch.arange(len(sequences)).repeat_interleave(torch.tensor([len(tokens) for tokens in sequences]))
    return TokenLogps(torch.tensor([logp for tokens in sequences for logp in tokens]), index, len(sequences), **more)


def tokens_of(logps: TokenLogps) -> TokenBatch:
    """The batch that they would be of: only whose token each is is known."""
    nothing = torch.zeros_like(logps.sequence_index)
    return TokenBatch(
        nothing[None], None, None, nothing, nothing, nothing, logps.sequence_index, logps.num_sequences, 0
    )


def logged(method: TermsMethod, *pieces: Terms) -> dict[str, float]:
    """What a step logs whose micro-batches gave these terms."""
    sums = MetricSums()
    for terms in pieces:
        method.collect_terms(sums, terms)
    return method.means(sums)
