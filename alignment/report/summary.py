"""What each run came to: its status, its start and final evaluation, its budget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from alignment.report.compare import Comparison, seed_of
from alignment.report.format import duration
from alignment.report.names import section
from alignment.report.read import Evaluation, Interval, Run, real, whole
from alignment.report.statistics import mean_interval

REWARD = "reward/total"
KL = "kl/policy_start_nats"
LENGTH = "length/completion_tokens"
WIN_RATE = "win_rate/against_start"
GAIN = "reward/gain_against_start"
LOG_RATIO = "log_ratio/policy_start_nats"
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
        seconds: Time spent training.
        wall_seconds: Time from start to end, loading and evaluations included.
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
    wall_seconds: float | None
    peak_memory_bytes: float | None

    def final_metric(self, name: str) -> Interval | None:
        """Returns a metric of the last evaluation."""
        return self.final.metrics.get(name) if self.final else None

    def start_metric(self, name: str) -> Interval | None:
        """Returns a metric of the evaluation before the first update."""
        return self.start.metrics.get(name) if self.start else None


@dataclass(frozen=True)
class GroupRow:
    """A configuration over its seeds: means of the final values with t intervals over seeds.

    A seed that was run twice counts once, with its last finished run: two runs of one seed are no
    independent draws.
    """

    label: str
    index: int
    num_finished: int
    num_seeds: int
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
    budget = {name: _budget(run, name) for name in ("prompts", "tokens_trained", "tokens_generated", "seconds")}
    in_manifest = section(run, "budget")
    last_logged = [steps[-1] for steps, _ in run.curves.values()]
    return Summary(
        run=run,
        status=status,
        status_note=note,
        start=start,
        final=final,
        step=max([*last_logged, *(evaluation.step for evaluation in run.evaluations)], default=None),
        prompts=whole(budget["prompts"]),
        tokens_trained=whole(budget["tokens_trained"]),
        tokens_generated=whole(budget["tokens_generated"]),
        updates=whole(in_manifest.get("updates", max(last_logged, default=None))),
        seconds=budget["seconds"],
        wall_seconds=real(run.manifest.get("seconds")),
        peak_memory_bytes=real(in_manifest.get("peak_memory_bytes")),
    )


def _budget(run: Run, name: str) -> float | None:
    """Returns what a run used: the manifest says it at the end, the last logged value until then."""
    value = real(section(run, "budget").get(name))
    _, logged = run.curves.get(f"train/budget/{name}", ([], []))
    return logged[-1] if value is None and logged else value


def _start_and_final(run: Run) -> tuple[Evaluation | None, Evaluation | None]:
    """Returns the evaluation before the first update, and the last one if it is another."""
    is_training = run.manifest.get("verb") != "evaluate"
    start = next((e for e in run.evaluations if e.policy.startswith("start") or (is_training and e.step == 0)), None)
    others = [evaluation for evaluation in run.evaluations if evaluation is not start]
    return start, (others[-1] if others else None)


def _status(run: Run, now: float) -> tuple[str, str]:
    status = str(run.manifest.get("status") or ("failed" if run.error_tail else "unknown"))
    error = str(run.manifest.get("error") or run.error_tail).strip()
    if error and status != "finished":
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
    return [_group_row(group.label, group.index, [summaries[i] for i in group.members]) for group in comparison.groups]


def _group_row(label: str, index: int, members: list[Summary]) -> GroupRow:
    by_seed = {seed_of(member.run): member for member in members if member.status == "finished"}
    finished = list(by_seed.values())

    def over_seeds(metric: str) -> Interval | None:
        finals = [member.final_metric(metric) for member in finished]
        return mean_interval([final.mean for final in finals if final is not None])

    return GroupRow(
        label=label,
        index=index,
        num_finished=len(finished),
        num_seeds=len({seed_of(member.run) for member in members}),
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
