"""The likelihood of chosen completions, as a part of a loss on pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from alignment.methods.terms import Term
from alignment.types import PreferenceBatch, TokenLogps


def chosen_nll_term(
    *, policy: TokenLogps, batch: PreferenceBatch, normaliser: Literal["token", "sequence"], coefficient: float
) -> Term:
    """Returns the cross-entropy of the chosen sides' scored tokens, in nats a token.

    Where a method has prompts scored (``scores_prompt``), the chosen sides' prompts count too.

    Args:
        policy: Log-probs of chosen then rejected sequences.
        batch: The micro-batch that they are of.
        normaliser: ``token`` weighs every chosen token of the step alike, ``sequence`` every pair alike.
        coefficient: Multiplies the mean.

    Example:
        >>> policy = TokenLogps(torch.tensor([-1.0, -3.0, -9.0]), torch.tensor([0, 0, 1]), num_sequences=2)
        >>> batch = PreferenceBatch(ids=("a",), weights=torch.ones(1), counts={}, tokens=None, margins=None)
        >>> term = chosen_nll_term(policy=policy, batch=batch, normaliser="token", coefficient=1.0)
        >>> term.values, term.weights
        (tensor([1., 3., 9.]), tensor([1., 1., 0.]))
        >>> chosen_nll_term(policy=policy, batch=batch, normaliser="sequence", coefficient=1.0).values
        tensor([2.])
    """
    if normaliser == "sequence":
        # Without the mask, sums and means are over all scored tokens.
        mean_logps, _ = replace(policy, in_completion=None).mean_logps.chunk(2)
        return Term(-mean_logps, "records", batch.weights, coefficient)
    # Of a length that is known beforehand: to count the chosen tokens would be to wait for the device.
    weights = torch.cat([batch.weights, torch.zeros_like(batch.weights)])
    return Term(-policy.token_logps, "chosen_tokens", weights[policy.sequence_index], coefficient)
