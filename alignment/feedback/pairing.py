"""From judged completions to preferences: which of a prompt's samples are compared, and what is dropped."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Protocol

from alignment.data.records import Preference
from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError
from alignment.utils.files import write_json_lines_atomic

TIED = "tied rewards"
SAME_TEXT = "equal text"
EMPTY = "empty completion"
SINGLE = "a single sample"
SMALL_MARGIN = "margin below min_margin"


@dataclass(frozen=True)
class Pairs:
    """Preferences, and why there are not more of them.

    Attributes:
        records: One for each prompt that gave a pair.
        dropped: Reason -> prompts that gave none because of it.
    """

    records: tuple[Preference, ...]
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def statistics(self) -> dict[str, float]:
        """Counts and the mean margin, for a manifest."""
        margins = [record.margin for record in self.records if record.margin is not None]
        return {
            "pairs": len(self.records),
            "mean_margin": sum(margins) / len(margins) if margins else 0.0,
            **{f"dropped: {reason}": count for reason, count in sorted(self.dropped.items())},
        }


class Pairing(Protocol):
    """Chooses what to compare."""

    def __call__(self, rollouts: Sequence[Rollout], rewards: Rewards, *, tokenizer_hash: str) -> Pairs:
        """Makes preferences from judged roll-outs; all samples of a prompt share its id."""
        ...


class BestWorst:
    """The best sample of each prompt against its worst.

    The margin is the reward difference, chosen minus rejected. Tokens are kept as they were generated.

    Args:
        min_margin: Pairs whose rewards lie less than this apart are dropped.
        label_temperature: ``None`` prefers the better one always; a number, in units of the reward, prefers it
            with the probability of Bradley and Terry, sigmoid(difference / temperature). A flipped pair has a
            negative margin.
        seed: Seeds the flips.
    """

    def __init__(self, *, min_margin: float, label_temperature: float | None, seed: int) -> None:
        if not min_margin >= 0:
            raise ConfigError("pairing.min_margin", got=min_margin, expected="0 or more")
        if label_temperature is not None and not label_temperature > 0:
            raise ConfigError("pairing.label_temperature", got=label_temperature, expected="more than 0, or null")
        self.min_margin = min_margin
        self.label_temperature = label_temperature
        self.seed = seed

    def __call__(self, rollouts: Sequence[Rollout], rewards: Rewards, *, tokenizer_hash: str) -> Pairs:
        """Makes at most one preference for each prompt.

        Args:
            rollouts: Samples, in any order.
            rewards: One total for each of them.
            tokenizer_hash: Names the tokenizer that their tokens belong to.
        """
        groups: dict[str, list[tuple[float, Rollout]]] = {}
        for total, rollout in zip(rewards.total, rollouts, strict=True):
            groups.setdefault(rollout.prompt_id, []).append((total, rollout))
        records: list[Preference] = []
        dropped: Counter[str] = Counter()
        for prompt_id, group in groups.items():
            reason = self._objection(group)
            if reason is not None:
                dropped[reason] += 1
                continue
            best, worst = _extremes(group)
            if self._flips(prompt_id, best[0] - worst[0]):
                best, worst = worst, best
            records.append(_preference(best, worst, tokenizer_hash=tokenizer_hash))
        return Pairs(records=tuple(records), dropped=dropped)

    def _objection(self, group: Sequence[tuple[float, Rollout]]) -> str | None:
        """Says why a prompt's samples give no pair."""
        (high, best), (low, worst) = _extremes(group)
        if len(group) < 2:
            return SINGLE
        if high == low:
            return TIED
        if high - low < self.min_margin:
            return SMALL_MARGIN
        if not best.completion.strip() or not worst.completion.strip():
            return EMPTY
        return SAME_TEXT if best.completion == worst.completion else None

    def _flips(self, prompt_id: str, gap: float) -> bool:
        if self.label_temperature is None:
            return False
        # A pair's own seed: its label does not depend on which other prompts there are.
        drawn = Random(f"{self.seed}/{prompt_id}").random()  # noqa: S311
        return drawn >= 1.0 / (1.0 + math.exp(-gap / self.label_temperature))


def write_pairs(pairs: Pairs, path: Path) -> None:
    """Writes preferences as JSON lines, all of them or nothing."""
    write_json_lines_atomic(path, map(_row, pairs.records))


def _extremes(group: Sequence[tuple[float, Rollout]]) -> tuple[tuple[float, Rollout], tuple[float, Rollout]]:
    """The best and the worst; among equals the earlier sample, so that order of generation does not matter."""
    best = min(group, key=lambda judged: (-judged[0], judged[1].sample))
    worst = min(group, key=lambda judged: (judged[0], judged[1].sample))
    return best, worst


def _preference(chosen: tuple[float, Rollout], rejected: tuple[float, Rollout], *, tokenizer_hash: str) -> Preference:
    (chosen_reward, won), (rejected_reward, lost) = chosen, rejected
    return Preference(
        id=won.prompt_id,
        prompt=won.prompt,
        chosen=won.completion,
        rejected=lost.completion,
        margin=chosen_reward - rejected_reward,
        tokenizer_hash=tokenizer_hash,
        prompt_ids=won.prompt_ids,
        chosen_ids=won.completion_ids,
        rejected_ids=lost.completion_ids,
    )


def _row(record: Preference) -> dict[str, Any]:
    """A line of text pairs, or of chat pairs in the form that other tools read too."""
    return {
        "id": record.id,
        "prompt": record.prompt,
        "chosen": _side(record, record.chosen),
        "rejected": _side(record, record.rejected),
        "margin": record.margin,
        "tokenizer_hash": record.tokenizer_hash,
        "prompt_ids": record.prompt_ids,
        "chosen_ids": record.chosen_ids,
        "rejected_ids": record.rejected_ids,
    }


def _side(record: Preference, completion: str) -> str | list[dict[str, str]]:
    return completion if isinstance(record.prompt, str) else [{"role": "assistant", "content": completion}]
