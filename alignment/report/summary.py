"""What each run came to: its status, its start and final evaluation, its budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from alignment.report.compare import Comparison
from alignment.report.format import duration
from alignment.report.read import Evaluation, Interval, Run, real, whole
from alignment.report.statistics import mean_interval

REWARD = "reward/total"
KL = "kl/policy_start_nats"
LENGTH = "length/completion_tokens"
WIN_RATE = "win_rate/against_start"
# A run that says "running" and has not written for this long has very likely been killed.
SILENT_SECONDS = 1800.0


@dataclass(frozen=True)
class Summary:
    """One run in numbers. A value that was not measured is ``None``.

    Attributes:
        run: What was read.
        status: finished, running, failed, interrupted, silent (says running, wrote nothing for long) or unknown.
        status_note: What the status word leaves out: the error's last line, the time of the last write.
        start: The evaluation before the first update.
        final: The last evaluation.
        step: The last step that was logged or evaluated.
    """

    run: Run
    status: str
    status_note: str
    start: Evaluation | None
    final: Evaluation | None
    step: int | None
    prompts: int | None
    tokens_trained: int | None
    tokens_generated: int | None
    updates: int | None
    seconds: float | None
    peak_memory_bytes: float | None

    def final_metric(self, name: str) -> Interval | None:
        """Returns a metric of the last evaluation."""
        return self.final.metrics.get(name) if self.final else None

    def start_metric(self, name: str) -> Interval | None:
        """Returns a metric of the evaluation before the first update."""
        return self.start.metrics.get(name) if self.start else None


@dataclass(frozen=True)
class GroupRow:
    """A configuration over its seeds: means of the final values with t intervals over seeds."""

    label: str
    index: int
    names: list[str]
    num_finished: int
    num_runs: int
    reward: Interval | None
    kl: Interval | None
    length: Interval | None
    win_rate: Interval | None


def summarise(run: Run, *, now: float) -> Summary:
    """Returns one run in numbers.

    Args:
        run: What was read.
        now: The time of the report, in seconds since the epoch.
    """
    status, note = _status(run, now)
    start, final = _start_and_final(run)
    budget = run.manifest.get("budget")
    budget = budget if isinstance(budget, dict) else {}
    last_logged = [steps[-1] for steps, _ in run.curves.values()]
    seconds = real(budget.get("seconds"))
    return Summary(
        run=run,
        status=status,
        status_note=note,
        start=start,
        final=final,
        step=max([*last_logged, *(evaluation.step for evaluation in run.evaluations)], default=None),
        prompts=whole(budget.get("prompts")),
        tokens_trained=whole(budget.get("tokens_trained")),
        tokens_generated=whole(budget.get("tokens_generated")),
        updates=whole(budget.get("updates")),
        seconds=real(run.manifest.get("seconds")) if seconds is None else seconds,
        peak_memory_bytes=real(budget.get("peak_memory_bytes")),
    )


def _start_and_final(run: Run) -> tuple[Evaluation | None, Evaluation | None]:
    """Returns the evaluation before the first update, and the last one if it is another."""
    starts = [
        evaluation for evaluation in run.evaluations if evaluation.step == 0 or evaluation.policy == "start"
    ]
    others = [evaluation for evaluation in run.evaluations if evaluation not in starts[:1]]
    return (starts[0] if starts else None), (others[-1] if others else None)


def _status(run: Run, now: float) -> tuple[str, str]:
    status = str(run.manifest.get("status") or "unknown")
    error = str(run.manifest.get("error") or "").strip()
    if error:
        return status, error.splitlines()[-1].strip()
    if status != "running":
        return status, ""
    silent = now - run.last_written
    written = f"last wrote {datetime.fromtimestamp(run.last_written, UTC):%Y-%m-%d %H:%M} UTC"
    if silent > SILENT_SECONDS:
        return (
            "silent",
            f"says running, but {written}, {duration(silent)} before this report: probably killed",
        )
    return "running", f"{written}; numbers so far"


def group_rows(summaries: list[Summary], comparison: Comparison) -> list[GroupRow]:
    """Returns a row for each configuration; only finished runs enter its means."""
    return [
        _group_row(group.label, group.index, [summaries[i] for i in group.members])
        for group in comparison.groups
    ]


def _group_row(label: str, index: int, members: list[Summary]) -> GroupRow:
    finished = [member for member in members if member.status == "finished"]

    def over_seeds(metric: str) -> Interval | None:
        finals = [member.final_metric(metric) for member in finished]
        return mean_interval([final.mean for final in finals if final is not None])

    return GroupRow(
        label=label,
        index=index,
        names=[member.run.name for member in members],
        num_finished=len(finished),
        num_runs=len(members),
        reward=over_seeds(REWARD),
        kl=over_seeds(KL),
        length=over_seeds(LENGTH),
        win_rate=over_seeds(WIN_RATE),
    )


def not_finite(run: Run) -> list[tuple[str, int, int, int]]:
    """Returns (metric, bad points, points, first bad step) for curves that hold NaN or infinities."""
    found = []
    for metric, (steps, values) in run.curves.items():
        bad = [step for step, value in zip(steps, values, strict=True) if not math.isfinite(value)]
        if bad:
            found.append((metric, len(bad), len(values), bad[0]))
    return found
