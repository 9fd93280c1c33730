"""What the policy is compared with: one Protocol, a class a strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from alignment.data.reference_cache import ReferenceCache
from alignment.data.store import release, remove
from alignment.models.adapters import adapter_disabled
from alignment.models.logprob_model import LogprobModel
from alignment.models.sharding import to_shards
from alignment.types import BinaryBatch, Mismatched, PreferenceBatch, TokenBatch, TokenLogps
from alignment.utils.errors import ConfigError

ReferenceBatch = PreferenceBatch | BinaryBatch | Mismatched


class Reference(Protocol):
    """The reference model's log-probs, whatever they cost."""

    frozen: LogprobModel | None

    def batch_logps(self, batch: ReferenceBatch) -> Float[Tensor, "tokens"]:
        """Returns the reference's token log-probs of a training batch, without gradient."""
        ...

    def score(self, tokens: TokenBatch, temperature: float = 1.0) -> TokenLogps:
        """Scores fresh sequences as the reference that it is now, without gradient."""
        ...

    def scorer(self) -> Callable[[TokenBatch], TokenLogps] | None:
        """Returns what scores fresh sequences as the start of the run would, or ``None`` when nothing can."""
        ...

    def after_step(self, step: int) -> None:
        """Is told that the policy has made so many optimiser steps."""
        ...

    def state_dict(self) -> dict[str, Any] | None:
        """Returns what a resumed run cannot load from the start; on every rank, for weights may be sharded."""
        ...

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restores it."""
        ...


class _Constant:
    """A reference that stays what it is."""

    def after_step(self, step: int) -> None:
        """Does nothing."""

    def state_dict(self) -> None:
        """Returns None: a resumed run has the same reference as the first."""

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Does nothing."""


class FrozenCopy:
    """A second copy of the starting weights. Costs their memory and a forward pass a step.

    With a refresh the reference follows the policy (TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656): every so many
    steps ref <- mix * policy + (1 - mix) * ref, equations 4 (soft, mix < 1) and 5 (hard, mix = 1).

    Args:
        policy: What a refresh copies.
        load_frozen: Loads the starting model, without gradients.
        refresh_every_n_steps: Optimiser steps between two refreshes; ``None`` keeps the starting weights.
        refresh_mix: The policy's share, in (0, 1].

    Raises:
        ConfigError: If a refresh field is out of range, or the policy has an adapter, which a copy has no room for.
    """

    def __init__(
        self,
        *,
        policy: LogprobModel,
        load_frozen: Callable[[], LogprobModel],
        refresh_every_n_steps: int | None,
        refresh_mix: float,
    ) -> None:
        if refresh_every_n_steps is not None:
            _check_refresh(policy, refresh_every_n_steps, refresh_mix)
        self.frozen: LogprobModel | None = load_frozen()
        self._policy = policy
        self._every = refresh_every_n_steps
        self._mix = refresh_mix

    def batch_logps(self, batch: ReferenceBatch) -> Float[Tensor, "tokens"]:
        """Scores the batch with the copy."""
        return self.score(batch.tokens).token_logps

    def scorer(self) -> Callable[[TokenBatch], TokenLogps] | None:
        """Returns the copy's forward; None with a refresh, for then the copy is not the start any more."""
        return self.score if self._every is None else None

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Refreshes the copy when it is due. Both are sharded alike, so each rank mixes its own shards."""
        if self._every is None or step % self._every:
            return
        assert self.frozen is not None
        to_shards(self.frozen)
        for old, new in zip(self.frozen.parameters(), self._policy.parameters(), strict=True):
            old.mul_(1 - self._mix).add_(new, alpha=self._mix)

    def state_dict(self) -> dict[str, Any] | None:
        """Returns the refreshed weights, gathered; None without a refresh."""
        if self._every is None or self.frozen is None:
            return None
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return get_model_state_dict(self.frozen, options=options)

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restores the refreshed weights into every rank's shards."""
        if self._every is None:
            return
        if state is None or self.frozen is None:
            raise ConfigError(
                "reference.refresh_every_n_steps",
                got=self._every,
                expected="null, as when the checkpoint was saved",
                hint="its reference was never refreshed",
            )
        set_model_state_dict(self.frozen, state, options=StateDictOptions(full_state_dict=True))

    @torch.no_grad()
    def score(self, tokens: TokenBatch, temperature: float = 1.0) -> TokenLogps:
        """Scores sequences with the copy as it is."""
        assert self.frozen is not None
        return self.frozen(tokens, temperature)


def _check_refresh(policy: LogprobModel, every: int, mix: float) -> None:
    from peft import PeftModel

    if every < 1:
        raise ConfigError("reference.refresh_every_n_steps", got=every, expected="at least 1, or null")
    if not 0 < mix <= 1:
        raise ConfigError("reference.refresh_mix", got=mix, expected="a share in (0, 1]")
    if isinstance(policy.backbone, PeftModel):
        raise ConfigError(
            "reference.refresh_every_n_steps",
            got=every,
            expected="null with an adapter",
            hint="the frozen copy has no adapter to copy into: set adapter=none",
        )


class AdapterOff(_Constant):
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
        return self.score(batch.tokens).token_logps

    def scorer(self) -> Callable[[TokenBatch], TokenLogps]:
        """Returns the policy's forward with the adapter off."""
        return self.score

    @torch.no_grad()
    def score(self, tokens: TokenBatch, temperature: float = 1.0) -> TokenLogps:
        """Scores sequences with the adapter off."""
        with adapter_disabled(self._policy):
            return self._policy(tokens, temperature)


class Precomputed(_Constant):
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

    def score(self, tokens: TokenBatch, temperature: float = 1.0) -> TokenLogps:
        """Raises: fresh completions are in no cache."""
        raise ConfigError(
            "reference",
            got="precomputed",
            expected="frozen_copy, or adapter_off with adapter=lora",
            hint="completions that are written in training are in no cache",
        )

    def scorer(self) -> None:
        """Returns None: fresh samples are in no cache."""
        return


def fill_cache(
    path: Path,
    *,
    meta: dict[str, Any],
    batches: Callable[[int, int], Iterable[ReferenceBatch]],
    score: Callable[[TokenBatch], TokenLogps],
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> ReferenceCache:
    """Scores every record once and writes the reference cache; when it is there already, opens it.

    Of several runs that ask at once one computes, and the others wait for it. The ranks of a run compute a part each;
    the first that is done with its own waits for the others' and puts them together. They wait for files only: no
    time limit of a collective operation is at stake, and a part whose rank has died is computed by another.

    Args:
        path: The cache's folder, named by its key.
        meta: What the key was made of.
        batches: Every record once, of a part (from 0 on) of so many; fillers (weight 0) are left out.
        score: The reference's forward: the policy's, before its first step.
        device: Where it runs.
        rank: Of this process.
        world_size: Processes of this run; all of them call this.
    """
    folders = [path.with_name(f"{path.name}-part{part}of{world_size}") for part in range(world_size)]

    def scored(part: int) -> Iterator[tuple[str, list[np.ndarray]]]:
        yield from _scored_records(batches(part, world_size), score, device)

    def part_of_it(part: int) -> Iterator[tuple[str, list[np.ndarray]]]:
        if ReferenceCache.exists(path):  # while this waited for the part, another run was done with all of them
            raise _FilledMeanwhileError
        yield from scored(part)

    def together() -> Iterator[tuple[str, list[np.ndarray]]]:
        for part, folder in enumerate(folders):
            yield from ReferenceCache.write(folder, meta=meta, records=part_of_it(part)).records()
            release(folder)

    if world_size == 1 or ReferenceCache.exists(path):
        return ReferenceCache.write(path, meta=meta, records=scored(0))
    with suppress(_FilledMeanwhileError):
        ReferenceCache.write(folders[rank], meta=meta, records=part_of_it(rank))
        release(folders[rank])  # another rank may be the one that removes it
    cache = ReferenceCache.write(path, meta=meta, records=together())
    for folder in folders:
        remove(folder, of=folder)
    return cache


class _FilledMeanwhileError(Exception):
    """There is nothing left to do."""


@torch.no_grad()
def _scored_records(
    batches: Iterable[ReferenceBatch], score: Callable[[TokenBatch], TokenLogps], device: torch.device
) -> Iterator[tuple[str, list[np.ndarray]]]:
    for batch in batches:
        others = batch.mismatched if isinstance(batch, BinaryBatch) else ()
        pieces = [piece for part in (batch, *others) for piece in _pieces(score(part.tokens.to(device)))]
        num_records = len(batch.ids)
        for place, (name, weight) in enumerate(zip(batch.ids, batch.weights.tolist(), strict=True)):
            if weight > 0:
                yield name, pieces[place::num_records]


def _pieces(scored: TokenLogps) -> list[np.ndarray]:
    """The token log-probs of each sequence."""
    lengths = torch.bincount(scored.sequence_index, minlength=scored.num_sequences).tolist()
    return [piece.numpy() for piece in scored.token_logps.cpu().split(lengths)]
