"""What the policy is compared with: one Protocol, a class a strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from alignment.data.reference_cache import ReferenceCache
from alignment.models.adapters import adapter_disabled
from alignment.models.logprob_model import LogprobModel
from alignment.types import BinaryBatch, PreferenceBatch, TokenBatch, TokenLogps
from alignment.utils.errors import ConfigError

ReferenceBatch = PreferenceBatch | BinaryBatch


class Reference(Protocol):
    """The reference model's log-probs, whatever they cost."""

    frozen: LogprobModel | None

    def batch_logps(self, batch: ReferenceBatch) -> Float[Tensor, "tokens"]:
        """Returns the reference's token log-probs of a training batch, without gradient."""
        ...

    def scorer(self) -> Callable[[TokenBatch], TokenLogps] | None:
        """Returns what scores sequences that are in no data set, or ``None`` when nothing can."""
        ...


class FrozenCopy:
    """A second copy of the starting weights. Costs their memory and a forward pass a step.

    Args:
        policy: Not used; every strategy is built with the same arguments.
        load_frozen: Loads the starting model, without gradients.
    """

    def __init__(self, *, policy: LogprobModel, load_frozen: Callable[[], LogprobModel]) -> None:
        self.frozen: LogprobModel | None = load_frozen()

    def batch_logps(self, batch: ReferenceBatch) -> Float[Tensor, "tokens"]:
        """Scores the batch with the copy."""
        return self._score(batch.tokens).token_logps

    def scorer(self) -> Callable[[TokenBatch], TokenLogps]:
        """Returns the copy's forward."""
        return self._score

    @torch.no_grad()
    def _score(self, tokens: TokenBatch) -> TokenLogps:
        assert self.frozen is not None
        return self.frozen(tokens)


class AdapterOff:
    """The policy with its adapter switched off. Costs no memory and a forward pass a step.

    Args:
        policy: The policy, with an adapter.
        load_frozen: Not used.

    Raises:
        ConfigError: If the policy has no adapter.
    """

    def __init__(self, *, policy: LogprobModel, load_frozen: Callable[[], LogprobModel]) -> None:
        from peft import PeftModel

        if not isinstance(policy.backbone, PeftModel):
            raise ConfigError(
                "reference",
                got="adapter_off",
                expected="a policy with an adapter",
                hint="use reference=frozen_copy, or set adapter=lora",
            )
        self.frozen: LogprobModel | None = None
        self._policy = policy

    def batch_logps(self, batch: ReferenceBatch) -> Float[Tensor, "tokens"]:
        """Scores the batch with the adapter off."""
        return self._score(batch.tokens).token_logps

    def scorer(self) -> Callable[[TokenBatch], TokenLogps]:
        """Returns the policy's forward with the adapter off."""
        return self._score

    @torch.no_grad()
    def _score(self, tokens: TokenBatch) -> TokenLogps:
        with adapter_disabled(self._policy):
            return self._policy(tokens)


class Precomputed:
    """Log-probs read from the reference cache. Costs nothing a step, and one pass over the data once.

    The pass is made by the policy before its first step, while it still is the reference.

    Args:
        policy: Not used.
        load_frozen: Not used.
    """

    def __init__(self, *, policy: LogprobModel, load_frozen: Callable[[], LogprobModel]) -> None:
        self.frozen: LogprobModel | None = None

    def batch_logps(self, batch: ReferenceBatch) -> Float[Tensor, "tokens"]:
        """Returns what the data module read for this batch.

        Raises:
            RuntimeError: If the batch carries none: a hole is never recomputed with a policy that has moved on.
        """
        logps = batch.reference_token_logps
        if logps is None or logps.shape != batch.tokens.targets.shape:
            raise RuntimeError(f"the reference cache has no log-probs for the records {list(batch.ids)[:8]}")
        return logps

    def scorer(self) -> None:
        """Returns None: fresh samples are in no cache."""
        return


def fill_cache(
    path: Path,
    *,
    meta: dict[str, Any],
    batches: Iterable[ReferenceBatch],
    score: Callable[[TokenBatch], TokenLogps],
    device: torch.device,
) -> ReferenceCache:
    """Scores every record once and writes the reference cache; when it is there already, opens it.

    Of several processes that ask at once one computes, and the others wait for it.

    Args:
        path: The cache's folder, named by its key.
        meta: What the key was made of.
        batches: Every record once; fillers (weight 0) are left out.
        score: The reference's forward: the policy's, before its first step.
        device: Where it runs.
    """
    return ReferenceCache.write(path, meta=meta, records=_scored_records(batches, score, device))


@torch.no_grad()
def _scored_records(
    batches: Iterable[ReferenceBatch], score: Callable[[TokenBatch], TokenLogps], device: torch.device
) -> Iterator[tuple[str, list[np.ndarray]]]:
    for batch in batches:
        scored = score(batch.tokens.to(device))
        lengths = scored.num_tokens.long().tolist()
        pieces = [piece.cpu().numpy() for piece in scored.token_logps.split(lengths)]
        num_records = len(batch.ids)
        for place, (name, weight) in enumerate(zip(batch.ids, batch.weights.tolist(), strict=True)):
            if weight > 0:
                yield name, pieces[place::num_records]
