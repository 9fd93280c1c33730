"""What happens to rewards between a reward and the advantages: scale, bounds, and penalties for length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from alignment.advantages.moments import whitened
from alignment.utils.errors import ConfigError, UserError


class Shaping:
    """Normalises rewards, clips them, and then subtracts penalties.

    ``running`` follows "Secrets of RLHF" (Zheng et al. 2023, arXiv 2307.04964, section 5.3): the mean is subtracted
    and the standard deviation divided by, both over every reward seen so far, this batch included, and the result is
    clipped. ``batch`` does so with the mean and standard deviation of this batch, which is the whole batch of all
    processes. Deviations are those of the population (they divide by n). Where there is no spread the result is 0.

    Penalties come last: their sizes are then in the unit that the advantages see, no clip takes them away, and how
    many completions are too long does not change the scale of what the reward says.

    - ``missing_eos_penalty`` is subtracted once, only where a completion was cut off.
    - The soft overlong punishment of DAPO (Yu et al. 2025, arXiv 2503.14476, equation 13): 0 up to
      ``(1 - overlong_buffer) * max_new_tokens`` tokens, then in a straight line to ``-overlong_penalty`` at
      ``max_new_tokens``. A completion of that length that was cut off has both penalties, if both are set.

    Args:
        missing_eos_penalty: Above 0; ``None`` is off.
        overlong_buffer: Part of ``max_new_tokens`` over which the punishment grows, in (0, 1]; ``None`` is off.
        overlong_penalty: The most that it takes away, above 0; the paper's is 1. ``None`` is off.
        clip: The lowest and the highest reward before penalties; ``None`` is off.
        normalise: ``none``, ``running`` or ``batch``.

    Raises:
        ConfigError: A clip without room, or only one of the two overlong fields.
    """

    def __init__(
        self,
        *,
        missing_eos_penalty: Annotated[float, "(0, inf)"] | None,
        overlong_buffer: Annotated[float, "(0, 1]"] | None,
        overlong_penalty: Annotated[float, "(0, inf)"] | None,
        clip: list[float] | None,
        normalise: Literal["none", "running", "batch"],
    ) -> None:
        if (overlong_buffer is None) != (overlong_penalty is None):
            missing = "overlong_penalty" if overlong_penalty is None else "overlong_buffer"
            hint = "The overlong punishment needs both fields; null for both is off"
            raise ConfigError(f"method.shaping.{missing}", got=None, expected="a number above 0", hint=hint)
        if clip is not None and not (len(clip) == 2 and clip[0] < clip[1]):
            raise ConfigError("method.shaping.clip", got=clip, expected="[lowest, highest], lowest first, or null")
        self.missing_eos_penalty = missing_eos_penalty
        self.overlong_buffer = overlong_buffer
        self.overlong_penalty = overlong_penalty
        self.clip = clip
        self.normalise: Literal["none", "running", "batch"] = normalise
        self._seen = Moments()

    def __call__(
        self,
        *,
        rewards: Float[Tensor, "rollouts"],
        truncated: Bool[Tensor, "rollouts"],
        lengths: Int[Tensor, "rollouts"],
        max_new_tokens: int,
    ) -> Float[Tensor, "rollouts"]:
        """Shapes the whole batch's rewards; with ``running`` they count as seen.

        Args:
            rewards: One a roll-out.
            truncated: Whether the roll-out was cut off, without an end of sequence.
            lengths: Completion tokens, the end of sequence included.
            max_new_tokens: The most tokens that a completion may have.
        """
        shaped = self._normalised(rewards)
        if self.clip is not None:
            shaped = shaped.clamp(*self.clip)
        if self.missing_eos_penalty is not None:
            shaped = shaped - self.missing_eos_penalty * truncated.to(shaped.dtype)
        if self.overlong_buffer is None or self.overlong_penalty is None:
            return shaped
        buffer_tokens = max(1, round(self.overlong_buffer * max_new_tokens))
        overlong = soft_overlong(lengths, max_new_tokens=max_new_tokens, buffer_tokens=buffer_tokens)
        return shaped + self.overlong_penalty * overlong.to(shaped.dtype)

    def state_dict(self) -> dict[str, float]:
        """Returns what ``running`` has seen, in plain floats, so that a resumed run goes on exactly."""
        return {"count": self._seen.count, "mean": self._seen.mean, "squares": self._seen.squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Goes on from what :meth:`state_dict` returned.

        Raises:
            UserError: It is something else.
        """
        if set(state) != set(self.state_dict()):
            raise UserError(
                f"the state of method.shaping has {', '.join(state) or 'nothing'}, not count, mean, squares"
            )
        self._seen = Moments(**state)

    def _normalised(self, rewards: Float[Tensor, "rollouts"]) -> Float[Tensor, "rollouts"]:
        if self.normalise == "none":
            return rewards
        values = rewards.double()
        if self.normalise == "batch":
            return whitened(values=values, weights=torch.ones_like(values)).to(rewards.dtype)
        for value in values.tolist():
            self._seen.add(value)
        return ((values - self._seen.mean) / (self._seen.standard_deviation or 1.0)).to(rewards.dtype)


class Moments:
    """Mean and standard deviation of a stream of numbers (Welford 1962), in double precision.

    Number by number: then n equal numbers have a deviation of exactly 0.

    >>> moments = Moments()
    >>> for value in (2.0, 4.0, 6.0):
    ...     moments.add(value)
    >>> moments.mean, round(moments.standard_deviation, 4)
    (4.0, 1.633)
    """

    def __init__(self, count: float = 0.0, mean: float = 0.0, squares: float = 0.0) -> None:
        self.count, self.mean, self.squares = count, mean, squares

    def add(self, value: float) -> None:
        """Takes one more number in."""
        self.count += 1.0
        difference = value - self.mean
        self.mean += difference / self.count
        self.squares += difference * (value - self.mean)

    @property
    def standard_deviation(self) -> float:
        """The population's; 0 before the first number."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


def soft_overlong(
    lengths: Int[Tensor, "rollouts"], *, max_new_tokens: int, buffer_tokens: int
) -> Float[Tensor, "rollouts"]:
    """DAPO's soft punishment (arXiv 2503.14476, equation 13), in [-1, 0].

    >>> import torch
    >>> soft_overlong(torch.tensor([80, 90, 100, 120]), max_new_tokens=100, buffer_tokens=20)
    tensor([ 0.0000, -0.5000, -1.0000, -1.0000])
    """
    left = (max_new_tokens - buffer_tokens) - lengths
    return (left / buffer_tokens).clamp(-1.0, 0.0)
