"""Values of files that may be damaged, made plain."""

from __future__ import annotations

import math

MAX_PROBLEMS_PER_FILE = 3


def real(value: object) -> float | None:
    """Returns a number as a float (NaN and infinities too), or ``None`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def numbers(values: object) -> dict[str, float]:
    """Returns what is a number in a mapping, by name; nothing of anything else."""
    named = values if isinstance(values, dict) else {}
    return {str(name): number for name, value in named.items() if (number := real(value)) is not None}


def whole(value: object) -> int | None:
    """Returns a finite number as an int, or ``None`` for anything else."""
    number = real(value)
    return int(number) if number is not None and math.isfinite(number) else None


def shorten(bad: list[str]) -> list[str]:
    """Returns the first few of like problems, and how many there are."""
    if len(bad) <= MAX_PROBLEMS_PER_FILE:
        return bad
    return [*bad[: MAX_PROBLEMS_PER_FILE - 1], f"{bad[-1]} ({len(bad)} such lines in all)"]
