"""Numbers as the page writes them: one way everywhere, units included."""

from __future__ import annotations

import math
from collections.abc import Iterable

from alignment.report.read import Interval

MISSING = "–"  # an en dash: not measured
MINUS = "−"  # as wide as a plus, unlike a hyphen
MIB = 1024**2
GIB = 1024**3


def fixed(value: float | None, decimals: int) -> str:
    """Returns a number with that many decimals.

    >>> fixed(-0.5, 2), fixed(None, 2), fixed(float("nan"), 2)
    ('−0.50', '–', 'NaN')
    """
    if value is None:
        return MISSING
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = f"{value:,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def decimals_for(intervals: Iterable[Interval | None]) -> int:
    """Returns how many decimals the intervals justify: two figures of the typical half-width.

    >>> decimals_for([Interval(0.7, 0.67, 0.73)]), decimals_for([Interval(140.0, 120.0, 160.0)])
    (3, 0)
    """
    widths = sorted(
        (interval.high - interval.low) / 2
        for interval in intervals
        if interval is not None and interval.low is not None and interval.high is not None
    )
    widths = [width for width in widths if math.isfinite(width) and width > 0]
    if not widths:
        return 3
    return min(3, max(0, 1 - math.floor(math.log10(widths[len(widths) // 2]))))


def bounds(interval: Interval | None, decimals: int) -> str:
    """Returns ``[low, high]``, or an empty string where there is no interval."""
    if interval is None or interval.low is None or interval.high is None:
        return ""
    return f"[{fixed(interval.low, decimals)}, {fixed(interval.high, decimals)}]"


def count(value: float | None) -> str:
    """Returns a count, shortened above a million.

    >>> count(12345), count(1_234_567), count(None)
    ('12,345', '1.23 M', '–')
    """
    if value is None or not math.isfinite(value):
        return MISSING
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Returns a duration in the two units that matter.

    >>> duration(4.2), duration(161), duration(7325), duration(200_000)
    ('4.2 s', '2 min 41 s', '2 h 02 min', '2 d 07 h')
    """
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"


def memory(num_bytes: float | None) -> str:
    """Returns an amount of memory in MiB or GiB.

    >>> memory(1024**3 * 1.5), memory(1024**2 * 300)
    ('1.50 GiB', '300 MiB')
    """
    if num_bytes is None or not math.isfinite(num_bytes):
        return MISSING
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB else f"{num_bytes / MIB:.0f} MiB"


def scalar(value: object) -> str:
    """Returns a configuration value as one would type it.

    >>> scalar(5e-7), scalar(True), scalar(None), scalar([1, 2]), scalar("adamw")
    ('5e-07', 'true', 'null', '[1, 2]', 'adamw')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "[" + ", ".join(scalar(item) for item in value) + "]"
    return str(value)


def plural(num: int, noun: str) -> str:
    """Returns a number with its noun.

    >>> plural(1, "run"), plural(2, "run")
    ('1 run', '2 runs')
    """
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"


def listing(items: list[str], *, most: int = 6) -> str:
    """Returns ``a, b and c``, cut after ``most`` items.

    >>> listing(["a", "b", "c"]), listing(["a"] * 4, most=2)
    ('a, b and c', 'a, a and 2 more')
    """
    if len(items) > most:
        return f"{', '.join(items[:most])} and {len(items) - most} more"
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))
