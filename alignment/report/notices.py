"""What a reader must know before believing the numbers: failures, monitors' warnings, what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment.report.format import listing, plural
from alignment.report.names import is_judge, section
from alignment.report.read import Run
from alignment.report.summary import KL, LOG_RATIO, REWARD, Summary, not_finite

Level = Literal["error", "warning", "info"]
ORDER: tuple[Level, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Notice:
    """Something to know about some runs, or about all of them where ``runs`` is empty.

    Attributes:
        level: error, warning or info.
        what: One word or two: what kind of thing it is.
        runs: Names of the runs.
        text: The message.
        details: A traceback or the end of a log.
    """

    level: Level
    what: str
    runs: tuple[str, ...]
    text: str
    details: str = ""


def notices(summaries: list[Summary], *, empty: list[str]) -> list[Notice]:
    """Returns everything to know, the gravest first; what differs in nothing but the run is joined.

    Args:
        summaries: The runs.
        empty: Names of job folders without any file of a run.
    """
    text = "the job's folder holds no file of a run: it ended before it began"
    found = [Notice("error", "no run", (name,), text) for name in empty]
    for summary in summaries:
        run, names = summary.run, (summary.run.name,)
        found.extend(_status_notices(summary))
        found.extend(Notice("error", "unreadable", names, problem) for problem in run.problems)
        found.extend(_monitor_notices(run))
        found.extend(_numeric_notices(run))
        found.extend(Notice("info", "missing", names, text) for text in missing(summary))
        found.extend(_resumed_notices(run))
    found.extend(_between_runs(summaries))
    return sorted(_joined(found), key=lambda notice: ORDER.index(notice.level))


_NOT_EVALUATED = "no evaluation on fresh samples: reward, KL, length and win-rate are unknown"


def missing(summary: Summary) -> list[str]:
    """Returns what a reader would look for in vain, in words."""
    run = summary.run
    verb = run.manifest.get("verb")
    if verb in ("generate", "label") or (summary.status == "failed" and summary.step is None):
        return []
    found = []
    if not run.curves and verb != "evaluate":
        found.append("no curves: metrics/version_*/metrics.csv is missing or empty (logger=csv writes it)")
    if not run.evaluations:
        return found if is_judge(run) else [*found, _NOT_EVALUATED]
    if summary.final is None:
        found.append("one evaluation only, of the start: nothing says what training changed")
    elif summary.start is None:
        found.append(f"the start was not evaluated (first evaluation at step {run.evaluations[0].step:,})")
    measured = {name for evaluation in run.evaluations for name in evaluation.metrics}
    if REWARD not in measured:
        found.append("no reward: the samples were not judged")
    if LOG_RATIO in measured and KL not in measured:
        found.append(
            "no KL: the samples were not drawn at temperature 1 from the whole distribution, "
            "so the mean log-ratio to the start is no KL"
        )
    elif KL not in measured:
        found.append("no KL to the start: nothing could score the samples with the starting model")
    if not run.samples:
        found.append("no sample completions (samples/ is missing or empty)")
    return found


def _status_notices(summary: Summary) -> list[Notice]:
    run, names = summary.run, (summary.run.name,)
    error = str(run.manifest.get("error") or "").strip()
    traceback = run.error_tail or (error if "\n" in error else "")
    details = "\n\n".join(filter(None, (traceback, run.log_tail)))
    reached = "before the first step" if summary.step is None else f"at step {summary.step:,}"
    text = ": ".join(filter(None, (reached, summary.status_note)))
    match summary.status:
        case "failed":
            return [Notice("error", "failed", names, text, details)]
        case "interrupted":
            return [Notice("warning", "interrupted", names, f"{text}; the numbers go up to there")]
        case "silent":
            return [Notice("error", "killed?", names, text, details)]
        case "running":
            return [Notice("info", "running", names, text)]
        case _:
            return []


def _monitor_notices(run: Run) -> list[Notice]:
    found = []
    for monitor in dict.fromkeys(warning.monitor for warning in run.warnings):
        said = [warning for warning in run.warnings if warning.monitor == monitor]
        steps = [warning.step for warning in said if warning.step is not None]
        when = f" (step {steps[0]:,})" if steps else ""
        if len(said) > 1 and steps:
            when = f" (said {len(said)} times, steps {min(steps):,} to {max(steps):,}; this is the last)"
        what = monitor.replace("_", " ") or "monitor"
        found.append(Notice("warning", what, (run.name,), said[-1].message.rstrip(".") + when))
    return found


def _numeric_notices(run: Run) -> list[Notice]:
    found = []
    for metric, bad, num, first in not_finite(run):
        text = f"{metric} is NaN or infinite at {bad:,} of {plural(num, 'point')}, first at step {first:,}"
        found.append(Notice("warning", "not finite", (run.name,), f"{text}; its curve has a gap there"))
    return found


def _resumed_notices(run: Run) -> list[Notice]:
    if run.num_versions < 2:
        return []
    text = f"started {run.num_versions} times; the curves are joined, and where two starts overlap the later one counts"
    return [Notice("info", "resumed", (run.name,), text)]


def _between_runs(summaries: list[Summary]) -> list[Notice]:
    found = []
    sizes = sorted({s.final.num_prompts for s in summaries if s.final and s.final.num_prompts})
    if len(sizes) > 1:
        text = f"final evaluations used different numbers of prompts ({listing([str(size) for size in sizes])})"
        found.append(Notice("warning", "comparison", (), f"{text}: compare intervals, not only means"))
    starts = {start for s in summaries if s.final_metric(KL) and (start := _start_of(s.run))}
    if len(starts) > 1:
        text = "the runs did not all start from the same weights: each KL and win-rate is against the run's own start"
        found.append(Notice("info", "comparison", (), text))
    prints = {str(section(s.run, "data").get("fingerprint") or "") for s in summaries} - {""}
    if len(prints) > 1:
        text = f"the runs did not all train on the same data: {len(prints)} fingerprints, see Provenance"
        found.append(Notice("info", "comparison", (), text))
    return found


def _start_of(run: Run) -> str:
    model = section(run, "model")
    return str(model.get("weights_hash") or model.get("source") or "")


def _joined(found: list[Notice]) -> list[Notice]:
    joined: dict[tuple[Level, str, str, str], list[str]] = {}
    for notice in found:
        key = (notice.level, notice.what, notice.text, notice.details)
        joined.setdefault(key, []).extend(notice.runs)
    return [
        Notice(level, what, tuple(dict.fromkeys(runs)), text, details)
        for (level, what, text, details), runs in joined.items()
    ]
