"""Prompts with the completions of other prompts: a fixed derangement of the records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignment.data.plan import epoch_order
from alignment.data.table import TokenTable
from alignment.utils.errors import DataError

MISMATCH_VERSION = 1
"""Part of the reference cache's key: raise it when the same records would be paired in another way."""

_SEED = 0  # no run's own: the reference cache holds these very pairs


@dataclass(frozen=True)
class Mismatch:
    """Which completion stands behind each record's prompt.

    Attributes:
        partners: For each record the position of the record whose completion it is; each is taken once.
        max_length: The most tokens of prompt and completion together; what is longer loses its end.
    """

    partners: np.ndarray
    max_length: int

    def lengths(self, table: TokenTable) -> np.ndarray:
        """Tokens of each pair, prompt and completion together."""
        return np.minimum(table.prompt_lengths + table.completion_lengths[self.partners], self.max_length)


def partners(prompts: np.ndarray, *, where: str) -> np.ndarray:
    """Gives each record one with another prompt, every record once, the same ones whenever it is asked.

    The records are put in a random order, those of one prompt side by side, and each takes the one that stands as far
    on as the largest group is long: nobody finds one of its own prompt there.

    Args:
        prompts: A number for each record, equal where the prompts are.
        where: Names the records in a message.

    Returns:
        Positions of records, a permutation.

    Raises:
        DataError: More than half of the records share one prompt: then there is no such permutation.
    """
    largest = int(np.bincount(prompts).max())
    if 2 * largest > len(prompts):
        raise DataError(
            where,
            f"{largest} of {len(prompts)} records have the same prompt. A baseline from mismatched pairs needs every "
            "prompt beside a completion of another one, so at most half of the records may share a prompt: add records "
            "of other prompts, or do without that baseline (method.z0=zero)",
        )
    order = epoch_order(len(prompts), seed=_SEED, epoch=0, shuffle=True)
    _, first, group = np.unique(prompts[order], return_index=True, return_inverse=True)
    order = order[np.argsort(first[group], kind="stable")]  # groups in the order of their first records
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.roll(order, -largest)
    return found
