"""Which completions of many are worth a look: the best and the worst of some prompts. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pick:
    """A prompt whose completions are shown.

    Attributes:
        why: What singles it out.
        best: Place of its completion with the highest reward.
        worst: And of that with the lowest; ``None`` where it has one completion only.
    """

    why: str
    best: int
    worst: int | None


def pick_rollouts(rows: Sequence[Mapping[str, Any]]) -> list[Pick]:
    """Picks the prompts whose rewards lie furthest apart, as far as the median one's, and closest together.

    Where each prompt has one completion, the ones with the highest, the median and the lowest reward are picked.

    Args:
        rows: One a completion, those of a prompt together: ``prompt_id``, ``sample``, ``reward``.

    >>> rewards = {"a": (0.0, 1.0), "b": (0.5, 0.5), "c": (0.1, 0.4)}
    >>> rows = [dict(prompt_id=id, sample=i, reward=r) for id in rewards for i, r in enumerate(rewards[id])]
    >>> for pick in pick_rollouts(rows):
    ...     print(pick.why, pick.best, pick.worst)
    widest spread 1 0
    median spread 5 4
    no spread 2 3
    """
    rewards = [_reward(row) for row in rows]
    groups = [sorted(group, key=lambda place: -rewards[place]) for group in _groups(rows)]
    if all(len(group) == 1 for group in groups):
        ranked = sorted((group[0] for group in groups), key=lambda place: -rewards[place])
        names = ("highest reward", "median reward", "lowest reward")
        return [Pick(name, ranked[place], None) for name, place in zip(names, _places(len(ranked)), strict=False)]
    spreads = [rewards[group[0]] - rewards[group[-1]] for group in groups]
    ranked = sorted(range(len(groups)), key=lambda group: -spreads[group])
    picks = []
    for name, place in zip(("widest", "median", "narrowest"), _places(len(ranked)), strict=False):
        group = groups[ranked[place]]
        why = f"{name} spread" if spreads[ranked[place]] > 0 else "no spread"
        picks.append(Pick(why, group[0], group[-1] if len(group) > 1 else None))
    return picks


def _places(num: int) -> list[int]:
    """First, middle and last of so many, each once."""
    return list(dict.fromkeys((0, num // 2, num - 1))) if num else []


def _groups(rows: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Places of each prompt's completions; their numbers begin anew where a prompt comes up again."""
    groups: list[list[int]] = []
    for place, row in enumerate(rows):
        before = rows[place - 1] if place else None
        if before is None or row["prompt_id"] != before["prompt_id"] or row["sample"] <= before["sample"]:
            groups.append([])
        groups[-1].append(place)
    return groups


def _reward(row: Mapping[str, Any]) -> float:
    """A completion's reward; one that is no number ranks last."""
    reward = row["reward"]
    return -math.inf if reward is None or math.isnan(reward) else float(reward)
