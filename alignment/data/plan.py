"""Which records make up which micro-batch of which rank: a pure function of seed and epoch.

An optimiser step holds the same records whatever the number of ranks and the size of micro-batches,
and every micro-batch knows the step's denominators: normalising needs no communication, and one
batch of 8 equals 8 accumulated batches of 1 equals 2 ranks of 4.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class MicroBatchPlan:
    """One forward pass of one rank.

    Attributes:
        indices: Positions of records in the data set.
        weights: 1 for a record, 0 for a filler.
        counts: Denominators over the whole optimiser step, all ranks together.
        step: In the first micro-batch of an optimiser step all of this rank's, this one included; else none.
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...]
    counts: dict[str, float]
    step: tuple[MicroBatchPlan, ...] = ()


@dataclass(frozen=True)
class Geometry:
    """How a step is cut up.

    Attributes:
        batch_size: Records an optimiser step, all ranks together.
        micro_batch_size: Records of one forward pass of one rank.
        world_size: Ranks.
    """

    batch_size: int
    micro_batch_size: int
    world_size: int

    @property
    def accumulate(self) -> int:
        """Micro-batches of each rank in every step."""
        return math.ceil(self.batch_size / (self.micro_batch_size * self.world_size))

    @property
    def num_bins(self) -> int:
        """Micro-batches of all ranks in every step."""
        return self.accumulate * self.world_size

    def num_micro_batches(self, num_records: int) -> int:
        """Micro-batches of each rank in an epoch."""
        return math.ceil(num_records / self.batch_size) * self.accumulate


def epoch_order(num_records: int, *, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """The order of records in an epoch.

    It rests on raw draws of a counter-based generator, whose stream numpy guarantees for good.
    """
    if not shuffle:
        return np.arange(num_records)
    draws = np.random.Philox(key=[seed, epoch]).random_raw(num_records)
    return np.argsort(draws, kind="stable")


def plan_epoch(
    *,
    lengths: np.ndarray,
    counted: Mapping[str, np.ndarray],
    geometry: Geometry,
    rank: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    packed: bool = False,
    short_last_step: bool = False,
) -> list[MicroBatchPlan]:
    """This rank's micro-batches of an epoch, in order.

    Every rank gets the same number, and every step has ``geometry.accumulate`` of them, the last too
    unless it may be short.
    One that is left without a record gets a filler of weight 0, the shortest record. Inside a
    step records are put together by length, which saves padding and changes no sum; where there is no
    padding they are spread instead, so that all micro-batches have about as many tokens. Micro-batches
    are then shared out so that all ranks have about as many tokens a step, padding counted.

    Args:
        lengths: Tokens of each record: of its row, or all that it adds to a packed row.
        counted: For each name in ``counts`` beside ``records``, how much each record adds to it.
        geometry: How a step is cut up.
        rank: Whose part to return.
        seed: Of the run.
        epoch: Counts from 0.
        shuffle: Whether the order changes from epoch to epoch.
        packed: Whether a micro-batch is one row without padding.
        short_last_step: Whether micro-batches that no rank has a record for are left out.
    """
    order = epoch_order(len(lengths), seed=seed, epoch=epoch, shuffle=shuffle)
    filler = int(np.argmin(lengths))
    plans: list[MicroBatchPlan] = []
    for start in range(0, len(order), geometry.batch_size):
        records = order[start : start + geometry.batch_size]
        counts = {"records": float(len(records))}
        counts |= {name: float(values[records].sum()) for name, values in counted.items()}
        cut = Geometry(len(records), geometry.micro_batch_size, geometry.world_size) if short_last_step else geometry
        records = records[np.argsort(-lengths[records], kind="stable")]
        micro_batches = _level_rows(records, lengths, cut) if packed else _rows(records, cut)
        tokens = np.array([_tokens(lengths[some or [filler]], packed=packed) for some in micro_batches])
        mine = _spread(np.argsort(-tokens, kind="stable"), tokens, bins=cut.world_size, room=cut.accumulate)[rank]
        plans += _of_rank([micro_batches[number] for number in sorted(mine)], counts, filler)
    return plans


def _rows(records: np.ndarray, geometry: Geometry) -> list[list[int]]:
    """Like length to like, micro-batch after micro-batch."""
    size = geometry.micro_batch_size
    return [records[start : start + size].tolist() for start in range(0, geometry.num_bins * size, size)]


def _level_rows(records: np.ndarray, lengths: np.ndarray, geometry: Geometry) -> list[list[int]]:
    """Rows with about as many tokens each; as many in turn as there are ranks are levelled once more."""
    rows = _spread(records, lengths, bins=geometry.num_bins, room=geometry.micro_batch_size)
    world = geometry.world_size
    return [row for first in range(0, len(rows), world) for row in _level(rows[first : first + world], lengths)]


def _spread(items: Iterable[int], sizes: np.ndarray, *, bins: int, room: int) -> list[list[int]]:
    """Puts each item, as they come, into the emptiest bin that has room for one more.

    Largest first, this is the greedy rule of Graham (1969, "Bounds on multiprocessing timing anomalies"), but for
    the room.

    >>> _spread([3, 2, 1, 0], np.array([2, 3, 4, 9]), bins=2, room=2)
    [[3, 0], [2, 1]]
    """
    filled: list[list[int]] = [[] for _ in range(bins)]
    open_bins = [(0, number) for number in range(bins)]
    for item in items:
        size, number = heapq.heappop(open_bins)
        filled[number].append(int(item))
        if len(filled[number]) < room:
            heapq.heappush(open_bins, (size + int(sizes[item]), number))
    return filled


def _level(rows: list[list[int]], lengths: np.ndarray) -> list[list[int]]:
    """Exchanges records until the fullest row cannot give a record for a shorter one of another row, and gain.

    The emptiest row with which it gains is taken, and the exchange that leaves the two closest together.

    >>> _level([[0, 1], [2, 3]], np.array([9, 7, 6, 4]))
    [[2, 1], [0, 3]]
    """
    rows = [list(row) for row in rows]
    tokens = np.array([lengths[row].sum() for row in rows])
    while True:
        fullest = int(tokens.argmax())
        for other in np.argsort(tokens, kind="stable").tolist():
            before = tokens[fullest] - tokens[other]
            moved = np.subtract.outer(lengths[rows[fullest]], lengths[rows[other]])
            after = abs(before - 2 * moved)
            if after.size and after.min() < before:
                given, got = divmod(int(after.argmin()), len(rows[other]))
                rows[fullest][given], rows[other][got] = rows[other][got], rows[fullest][given]
                tokens[[fullest, other]] += np.array([-1, 1]) * moved[given, got]
                break
        else:
            return rows


def _tokens(lengths: np.ndarray, *, packed: bool) -> int:
    """What a micro-batch computes: its records one behind another, or all as long as the longest."""
    return int(lengths.sum() if packed else lengths.max() * len(lengths))


def _of_rank(micro_batches: list[list[int]], counts: dict[str, float], filler: int) -> list[MicroBatchPlan]:
    """A rank's micro-batches of a step, those without a record filled up with one."""
    plans = [
        MicroBatchPlan(tuple(records or [filler]), (1.0,) * len(records) or (0.0,), counts) for records in micro_batches
    ]
    return [replace(plans[0], step=tuple(plans)), *plans[1:]]


def plan_once(num_records: int, micro_batch_size: int, *, counted: Mapping[str, np.ndarray]) -> list[MicroBatchPlan]:
    """Every record once and in order, without fillers; each micro-batch is a step of its own.

    Args:
        num_records: Of the data set.
        micro_batch_size: Records of a micro-batch; the last may have fewer.
        counted: As in :func:`plan_epoch`.
    """
    plans = []
    for start in range(0, num_records, micro_batch_size):
        places = range(start, min(start + micro_batch_size, num_records))
        sums = {name: float(values[start : places.stop].sum()) for name, values in counted.items()}
        plan = MicroBatchPlan(tuple(places), (1.0,) * len(places), {"records": float(len(places))} | sums)
        plans.append(replace(plan, step=(plan,)))
    return plans
