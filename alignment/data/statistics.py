"""What a data set turned out to be, in numbers for the manifest and the report."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from datasets import Dataset

from alignment.data.table import TokenTable

PERCENTILES = (50, 90, 99)


def summarise(values: np.ndarray) -> dict[str, float]:
    """Mean, median, upper percentiles and maximum.

    >>> summarise(np.array([1, 2, 3]))
    {'mean': 2.0, 'p50': 2.0, 'p90': 2.8, 'p99': 2.98, 'max': 3.0}
    """
    found = {f"p{share}": round(float(np.percentile(values, share)), 2) for share in PERCENTILES}
    return {"mean": round(float(values.mean()), 2), **found, "max": float(values.max())}


def token_statistics(rows: Dataset, table: TokenTable) -> dict[str, Any]:
    """Counts, drops by reason and length percentiles.

    Args:
        rows: Tokenised rows, dropped ones included.
        table: The rows that are used.
    """
    given = list(rows["given_tokens"])
    dropped = Counter(reason for reason in rows["dropped"] if reason)
    statistics: dict[str, Any] = {
        "records": len(table),
        "dropped": dict(dropped.most_common()),
        "prompt_tokens": summarise(table.prompt_lengths),
        "truncated_prompts": int(np.sum(rows["truncated_prompt"])),
        "truncated_completions": int(np.sum(rows["truncated_completion"])),
        "repaired_boundaries": int(np.sum(rows["repaired_boundary"])),
        "given_tokens": {name: given.count(name) for name in ("used", "ignored")},
        "scored_tokens": int(table.scored.sum()),
    }
    if table.rejected_lengths.any():
        statistics["chosen_tokens"] = summarise(table.completion_lengths)
        statistics["rejected_tokens"] = summarise(table.rejected_lengths)
    elif table.completion_lengths.any():
        statistics["completion_tokens"] = summarise(table.completion_lengths)
    return statistics
