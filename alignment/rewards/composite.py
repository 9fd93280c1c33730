"""A weighted sum of rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from alignment.rewards.base import Reward
from alignment.rewards.errors import ERRORS, checked_scores
from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError

#: Names of a reward's metrics that are no part's.
_TAKEN = (ERRORS, "total", "shaped", "group_std")


class Part(TypedDict):
    """One reward of a sum, and what its total is multiplied by."""

    reward: Reward
    weight: float


class CompositeReward:
    """The sum over parts of weight * total.

    Components: every part's own total, without its weight, under the part's name, and the part's components as
    ``PART/COMPONENT``. With ``on_error=score`` also ``errors``, how many parts failed on a completion, and
    ``PART/errors``.

    Args:
        parts: The rewards and their weights by name. A weight of 0 only measures.
        on_error: What happens when a part raises or returns anything but a finite number for each completion:
            ``raise`` stops with the part, the prompt and the completion; ``score`` gives that part's total
            ``error_score`` for that completion. See :func:`alignment.rewards.errors.checked_scores`.
        error_score: For ``score`` a number, before the part's weight; ``None`` for ``raise``.

    Raises:
        ConfigError: A part whose name components have already or whose weight is not finite, or a policy without its
            score.
    """

    def __init__(
        self, *, parts: Mapping[str, Part], on_error: Literal["raise", "score"], error_score: float | None
    ) -> None:
        _check_parts(parts)
        _check_policy(on_error, error_score)
        self.parts = {name: (part["reward"], float(part["weight"])) for name, part in parts.items()}
        self.error_score = error_score

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Adds up what the parts say of each completion.

        Raises:
            UserError: A part failed and ``on_error`` is ``raise``.
        """
        total = [0.0] * len(rollouts)
        errors = [0.0] * len(rollouts)
        components: dict[str, tuple[float, ...]] = {}
        for name, (reward, weight) in self.parts.items():
            key = f"reward.parts.{name}"
            rewards = checked_scores(reward, rollouts, name=key, error_score=self.error_score)
            components[name] = rewards.total
            components |= {f"{name}/{component}": values for component, values in rewards.components.items()}
            total = [sum_ + weight * value for sum_, value in zip(total, rewards.total, strict=True)]
            if self.error_score is not None and rollouts:
                errors = [sum_ + failed for sum_, failed in zip(errors, rewards.components[ERRORS], strict=True)]
        if self.error_score is not None:
            components[ERRORS] = tuple(errors)
        return Rewards(total=tuple(total), components=components)


def _check_parts(parts: Mapping[str, Part]) -> None:
    for name, part in parts.items():
        key = f"reward.parts.{name}"
        if name in _TAKEN or "/" in name:
            raise ConfigError(key, got=name, expected=f"a name without '/' and none of {', '.join(_TAKEN)}")
        if not math.isfinite(part["weight"]):
            raise ConfigError(f"{key}.weight", got=part["weight"], expected="a finite number")


def _check_policy(on_error: str, error_score: float | None) -> None:
    if on_error == "raise" and error_score is not None:
        hint = "Set reward.on_error=score, or reward.error_score=null"
        raise ConfigError("reward.error_score", got=error_score, expected="null with reward.on_error=raise", hint=hint)
    if on_error == "score" and (error_score is None or not math.isfinite(error_score)):
        expected = "a finite number with reward.on_error=score: what a completion gets whose reward failed"
        raise ConfigError("reward.error_score", got=error_score, expected=expected, hint="Add reward.error_score=0.0")
