"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from alignment.losses.sft import sft_loss
from alignment.methods.base import Parts
from alignment.methods.offline import OfflineMethod
from alignment.methods.terms import Term, Terms, Weighted
from alignment.types import Role, SFTBatch


class SFT(OfflineMethod):
    """Maximum likelihood of completions, and of their prompts if that is wanted.

    Args:
        normaliser: ``token`` weighs every token of the step alike, ``sequence`` every demonstration alike.
        train_on_prompt: Whether the prompt's tokens are learnt too.
        parts: From the run.
    """

    batch_type = SFTBatch
    roles = frozenset({Role.POLICY})

    def __init__(self, *, normaliser: Literal["token", "sequence"], train_on_prompt: bool, parts: Parts) -> None:
        super().__init__(parts)
        self.normaliser = normaliser
        self.train_on_prompt = train_on_prompt

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's tokens are learnt too."""
        return self.train_on_prompt

    def terms(self, batch: SFTBatch) -> Terms:
        """Computes the cross-entropy of a micro-batch."""
        policy = self.policy(batch.tokens, entropy=self.is_logged, rank=self.is_logged)
        losses = sft_loss(token_logps=policy.token_logps)
        token_weights = batch.weights[policy.sequence_index]
        if self.normaliser == "token":
            term = Term(losses, "tokens", token_weights)
        else:
            # Without the mask, sums and numbers are of all scored tokens.
            scored = replace(policy, in_completion=None)
            term = Term(scored.sum_by_sequence(losses) / scored.num_tokens, "records", batch.weights)
        completion = torch.ones_like(token_weights) if policy.in_completion is None else policy.in_completion
        assert policy.is_greedy is not None
        metrics: Weighted = {
            "logps/completion_mean_nats": (policy.token_logps, token_weights * completion),
            "policy/token_accuracy": (policy.is_greedy.float(), token_weights * completion),
            "length/completion_tokens": (policy.num_tokens, batch.weights),
        }
        if policy.ranks is not None:
            metrics["policy/top5_accuracy"] = ((policy.ranks < 5).float(), token_weights * completion)
        if policy.entropies is not None:
            metrics["policy/entropy_nats"] = (policy.entropies, token_weights * completion)
        return Terms(loss={"nll": term}, metrics=metrics)
