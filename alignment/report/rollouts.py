"""What an online method learnt from, at the beginning, in the middle and at the end: the best and the worst."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.diagnostics.rollout_picks import pick_rollouts
from alignment.report.values import numbers, real, shorten, whole

_RANKED = ("step", "prompt_id", "sample", "reward")


@dataclass(frozen=True)
class Written:
    """A completion that was trained on.

    Attributes:
        advantage: Mean over its tokens; ``None`` for methods on pairs.
        is_masked: Whether no loss counts it.
    """

    prompt_id: str
    prompt: Any
    sample: int
    completion: str
    finish_reason: str
    num_tokens: int
    reward: float | None
    components: dict[str, float]
    advantage: float | None
    is_masked: bool


@dataclass(frozen=True)
class Contrast:
    """The best and the worst completion of a prompt; ``worst`` is ``None`` where it has one only."""

    why: str
    best: Written
    worst: Written | None

    @property
    def spread(self) -> float | None:
        """Difference of their rewards; ``None`` where there is nothing to compare."""
        if self.worst is None or self.best.reward is None or self.worst.reward is None:
            return None
        return self.best.reward - self.worst.reward


@dataclass(frozen=True)
class Stage:
    """An experience: when it was written, and what is shown of it."""

    name: str
    step: int
    num_completions: int
    contrasts: list[Contrast]


def read_stages(folder: Path, problems: list[str]) -> list[Stage]:
    """Reads the first, the middle and the last experience of a run.

    Args:
        folder: ``rollouts/`` of the run.
        problems: What cannot be read is added here.
    """
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else []
    chosen = {"end": len(files) - 1, "middle": len(files) // 2, "beginning": 0} if files else {}
    # Of few experiences one may be several: it is called by the earliest name.
    named = {place: name for name, place in chosen.items()}
    stages: list[Stage] = []
    bad: list[str] = []
    for place, name in sorted(named.items()):
        try:
            stages.append(_stage(name, files[place]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            bad.append(f"rollouts/{files[place].name} cannot be read ({' '.join(str(error).split())})")
    problems.extend(shorten(bad))
    return stages


def _stage(name: str, path: Path) -> Stage:
    from pyarrow import parquet

    table = parquet.read_table(path)
    # Tokens are many: those of the picks alone become Python objects.
    ranked = table.select(_RANKED).to_pylist()

    def written(place: int) -> Written:
        return _written(table.slice(place, 1).to_pylist()[0])

    contrasts = [
        Contrast(pick.why, written(pick.best), None if pick.worst is None else written(pick.worst))
        for pick in pick_rollouts(ranked)
    ]
    return Stage(name, whole(ranked[0]["step"]) or 0 if ranked else 0, len(ranked), contrasts)


def _written(row: dict[str, Any]) -> Written:
    advantages = row.get("advantages")
    return Written(
        prompt_id=str(row.get("prompt_id") or ""),
        prompt=_json(row.get("prompt")),
        sample=whole(row.get("sample")) or 0,
        completion=str(row.get("completion") or ""),
        finish_reason=str(row.get("finish_reason") or ""),
        num_tokens=len(row.get("completion_ids") or ()),
        reward=real(row.get("reward")),
        components=numbers(_json(row.get("components"))),
        advantage=sum(advantages) / len(advantages) if advantages else None,
        is_masked=row.get("weight") == 0,
    )


def _json(text: object) -> Any:
    """Returns what a text says as JSON, or the text where it is none."""
    try:
        return json.loads(str(text or ""))
    except ValueError:
        return str(text or "")
