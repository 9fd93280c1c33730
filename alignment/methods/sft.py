"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from typing import Literal

from alignment.losses.sft import sft_loss
from alignment.methods.base import Parts
from alignment.methods.offline import OfflineMethod, Term, Terms, Weighted
from alignment.types import Role, SFTBatch


class SFT(OfflineMethod):
    """Maximum likelihood of completions.

    Args:
        normaliser: ``token`` weighs every token of the step alike, ``sequence`` every demonstration alike.
        parts: From the run.
    """

    batch_type = SFTBatch
    roles = frozenset({Role.POLICY})

    def __init__(self, *, normaliser: Literal["token", "sequence"], parts: Parts) -> None:
        super().__init__(parts)
        self.normaliser = normaliser

    def terms(self, batch: SFTBatch) -> Terms:
        """Computes the cross-entropy of a micro-batch."""
        policy = self.policy(batch.tokens)
        losses = sft_loss(token_logps=policy.token_logps)
        token_weights = batch.weights[policy.sequence_index]
        if self.normaliser == "token":
            term = Term(losses, "tokens", token_weights)
        else:
            term = Term(policy.sum_by_sequence(losses) / policy.num_tokens, "records", batch.weights)
        metrics: Weighted = {
            "logps/completion_mean_nats": (policy.token_logps, token_weights),
            "length/completion_tokens": (policy.num_tokens, batch.weights),
        }
        return Terms(loss={"nll": term}, metrics=metrics)
