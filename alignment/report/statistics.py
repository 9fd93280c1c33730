"""Pure statistics of the report: intervals over seeds, smoothing and thinning of curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alignment.report.read import Interval

LEVEL = 0.95


def student_t_cdf(t: float, df: int) -> float:
    """Returns P(T <= t) for Student's t with a whole number of degrees of freedom.

    The finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.

    >>> round(student_t_cdf(12.706, 1), 4)
    0.975
    """
    theta = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    term, total = (cosine, 0.0) if df % 2 else (1.0, 0.0)
    for k in range(1 if df % 2 else 0, df - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    central = 2 / math.pi * (theta + sine * total) if df % 2 else sine * total
    return 0.5 + central / 2


def student_t_quantile(df: int, level: float = LEVEL) -> float:
    """Returns t with P(-t <= T <= t) = level, by bisection.

    >>> [round(student_t_quantile(df), 3) for df in (1, 2, 4, 9)]
    [12.706, 4.303, 2.776, 2.262]
    """
    target, low, high = (1 + level) / 2, 0.0, 1.0
    while student_t_cdf(high, df) < target:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_t_cdf(middle, df) < target else (low, middle)
    return high


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Returns the mean with its t interval; without an interval for one value, ``None`` for none.

    Values that are not finite are left out, and ``num`` says how many remain.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    num = len(finite)
    mean = math.fsum(finite) / num
    if num == 1:
        return Interval(mean, num=1)
    variance = math.fsum((value - mean) ** 2 for value in finite) / (num - 1)
    half = student_t_quantile(num - 1) * math.sqrt(variance / num)
    return Interval(mean, mean - half, mean + half, num)


def smooth(values: Sequence[float], *, window: int) -> list[float]:
    """Returns the centred running mean; a value that is not finite stays, and is left out around it.

    >>> smooth([0.0, 3.0, 6.0, 9.0], window=3)
    [1.5, 3.0, 6.0, 7.5]
    """
    reach = window // 2
    sums, counts = [0.0], [0]
    for value in values:
        finite = math.isfinite(value)
        sums.append(sums[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    smoothed = []
    for i, value in enumerate(values):
        low, high = max(0, i - reach), min(len(values), i + reach + 1)
        seen = counts[high] - counts[low]
        smoothed.append((sums[high] - sums[low]) / seen if math.isfinite(value) else value)
    return smoothed


def thin(steps: Sequence[int], values: Sequence[float], *, most: int) -> tuple[list[int], list[float]]:
    """Returns at most about ``most`` points that keep the extremes, the ends and the gaps.

    Each bucket of neighbours keeps its smallest and its largest value, so that no spike is lost,
    and one value that is not finite, so that a gap stays a gap.
    """
    if len(steps) <= most:
        return list(steps), list(values)
    num_buckets = max(1, most // 2)
    kept = {0, len(steps) - 1}
    for bucket in range(num_buckets):
        indices = range(bucket * len(steps) // num_buckets, (bucket + 1) * len(steps) // num_buckets)
        finite = [i for i in indices if math.isfinite(values[i])]
        if finite:
            kept.add(min(finite, key=values.__getitem__))
            kept.add(max(finite, key=values.__getitem__))
        if len(finite) < len(indices):
            kept.add(next(i for i in indices if not math.isfinite(values[i])))
    chosen = sorted(kept)
    return [steps[i] for i in chosen], [values[i] for i in chosen]
