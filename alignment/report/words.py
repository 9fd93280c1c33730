"""The report in words: the headline, what to know before believing it, what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignment.report.compare import Comparison
from alignment.report.format import bounds, decimals_for, fixed, listing, plural
from alignment.report.read import Interval, Run
from alignment.report.summary import KL, REWARD, GroupRow, Summary, not_finite


@dataclass(frozen=True)
class Notice:
    """Something that a reader must know. ``level`` is error, warning or info."""

    level: str
    what: str
    runs: tuple[str, ...]
    text: str
    details: str = ""


def title(summaries: list[Summary], comparison: Comparison) -> str:
    """Returns what was compared, in one line."""
    methods = list(dict.fromkeys(method_of(summary.run) for summary in summaries))
    models = list(dict.fromkeys(model_of(summary.run) for summary in summaries))
    what = listing([method for method in methods if method], most=4) or "Runs"
    model = f" of {models[0]}" if len(models) == 1 and models[0] else ""
    if len(summaries) == 1:
        return f"{what}{model}"
    swept = [key.rpartition(".")[2] for key in comparison.swept]
    over = f" over {listing(swept)}" if 0 < len(swept) <= 3 else ""
    return f"{what}{model}: {plural(len(summaries), 'run')}{over}"


def headline(summaries: list[Summary], groups: list[GroupRow]) -> list[str]:
    """Returns the result in one or two sentences."""
    if len(summaries) == 1:
        return [single_run_sentence(summaries[0])]
    counts = {
        status: sum(s.status == status for s in summaries)
        for status in dict.fromkeys(s.status for s in summaries)
    }
    parts = [f"{num} {'killed or stuck' if status == 'silent' else status}" for status, num in counts.items()]
    sentences = [f"{plural(len(summaries), 'run')}: {listing(parts)}."]
    seeded = [row for row in groups if row.reward is not None]
    if len(seeded) > 1 and any(row.num_runs > 1 for row in groups):
        sentences.append(_best_group_sentence(seeded))
    elif len(summaries) <= 3:
        sentences.extend(f"{s.run.name}: {_lower_first(single_run_sentence(s))}" for s in summaries)
    else:
        sentences.extend(_best_run_sentence(summaries))
    return sentences


def single_run_sentence(summary: Summary) -> str:
    """Returns what the reward did from the start to the last evaluation."""
    start, final = summary.start_metric(REWARD), summary.final_metric(REWARD)
    decimals = decimals_for([start, final])
    if final is None and start is None:
        return "No reward was measured on fresh samples, so there is no result to state."
    if final is None or summary.final is None:
        return f"Only the start was evaluated: reward {_with_bounds(start, decimals)}{_on_prompts(summary)}."
    kl = summary.final_metric(KL)
    at = (
        f" at {fixed(kl.mean, decimals_for([kl]) if kl.low is not None else 1)} nats from the start"
        if kl
        else ""
    )
    after = "" if summary.final.step is None else f", after {plural(summary.final.step, 'update')}"
    if start is None:
        return f"Reward{_on_prompts(summary)} was {_with_bounds(final, decimals)}{at}{after}; the start was not evaluated."
    return (
        f"Reward{_on_prompts(summary)} {_verb(start, final)} {_with_bounds(start, decimals)} "
        f"to {_with_bounds(final, decimals)}{at}{after}{_caution(start, final)}."
    )


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def _on_prompts(summary: Summary) -> str:
    evaluation = summary.final or summary.start
    num = evaluation.num_prompts if evaluation else None
    return "" if num is None else f" on {plural(num, 'held-out prompt')}"


def _with_bounds(interval: Interval | None, decimals: int) -> str:
    return f"{fixed(interval.mean if interval else None, decimals)} {bounds(interval, decimals)}".strip()


def _overlap(a: Interval, b: Interval) -> bool | None:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    return a.low <= b.high and b.low <= a.high


def _verb(start: Interval, final: Interval) -> str:
    if _overlap(start, final) is not False:
        return "went from"
    return "rose from" if final.mean > start.mean else "fell from"


def _caution(start: Interval, final: Interval) -> str:
    overlap = _overlap(start, final)
    if overlap is None:
        return " (without intervals)"
    return " (the 95% intervals overlap: no clear change)" if overlap else ""


def _best_group_sentence(rows: list[GroupRow]) -> str:
    best = max(rows, key=lambda row: row.reward.mean if row.reward else float("-inf"))
    decimals = decimals_for([best.reward]) if best.reward and best.reward.low is not None else 3
    decimals = max(decimals, 2)
    kl = f" at {fixed(best.kl.mean, 1)} nats from the start" if best.kl else ""
    return (
        f"Highest final reward: {best.label}, {_with_bounds(best.reward, decimals)}{kl} "
        f"(mean over {plural(best.num_finished, 'finished run')}, t interval over seeds)."
    )


def _best_run_sentence(summaries: list[Summary]) -> list[str]:
    measured = [(final, s) for s in summaries if s.status == "finished" and (final := s.final_metric(REWARD))]
    if not measured:
        return ["No finished run has a reward on fresh samples."]
    best, summary = max(measured, key=lambda pair: pair[0].mean)
    kl = summary.final_metric(KL)
    at = f" at {fixed(kl.mean, 1)} nats from the start" if kl else ""
    return [
        f"Highest final reward: {summary.run.name}, {_with_bounds(best, decimals_for([best]))}{at}. "
        f"It is the best of {len(measured)} on the same prompts, so expect a little less on new ones."
    ]


def node_name(node: Any) -> str:
    """Returns what a configuration node is about: its path, its name, else its class."""
    if isinstance(node, str):
        return node
    if not isinstance(node, dict):
        return ""
    for key in ("path", "name", "files", "file", "repo", "dataset", "world"):
        if isinstance(node.get(key), str) and node[key]:
            return node[key]
    return str(node.get("_target_") or "").rpartition(".")[2]


def method_of(run: Run) -> str:
    """Returns the method's class, or the verb of the run."""
    method = run.config.get("method")
    target = method.get("_target_") if isinstance(method, dict) else None
    return str(target).rpartition(".")[2] if target else str(run.manifest.get("verb") or "")


def model_of(run: Run) -> str:
    """Returns the model that the run started from."""
    model = run.manifest.get("model")
    source = model.get("source") if isinstance(model, dict) else None
    return str(source) if source else node_name(run.config.get("model"))


def data_of(run: Run) -> str:
    """Returns the data that the run trained on."""
    data = run.config.get("data")
    train = data.get("train") if isinstance(data, dict) else None
    return node_name(train) or node_name(data)


def notices(summaries: list[Summary], *, empty: list[str]) -> list[Notice]:
    """Returns everything to know about the runs, the gravest first, equal ones joined."""
    found = [
        Notice(
            "error", "no run", (name,), "the job's folder holds no file of a run: it failed before it began"
        )
        for name in empty
    ]
    for summary in summaries:
        found.extend(_status_notices(summary))
        found.extend(
            Notice("error", "unreadable", (summary.run.name,), text) for text in summary.run.problems
        )
        found.extend(_monitor_notices(summary.run))
        found.extend(_numeric_notices(summary.run))
        found.extend(Notice("info", "missing", (summary.run.name,), text) for text in missing(summary))
        if summary.run.num_versions > 1:
            text = (
                f"started {summary.run.num_versions} times (metrics/version_0 to "
                f"version_{summary.run.num_versions - 1}): the curves join them, a later start wins"
            )
            found.append(Notice("info", "resumed", (summary.run.name,), text))
    found.extend(_between_runs(summaries))
    order = ("error", "warning", "info")
    return sorted(_joined(found), key=lambda notice: order.index(notice.level))


def _status_notices(summary: Summary) -> list[Notice]:
    name = (summary.run.name,)
    error = str(summary.run.manifest.get("error") or "").strip()
    details = "\n\n".join(filter(None, (error if "\n" in error else "", summary.run.log_tail)))
    reached = "before the first step" if summary.step is None else f"at step {summary.step:,}"
    note = f": {summary.status_note}" if summary.status_note else ""
    match summary.status:
        case "failed":
            return [Notice("error", "failed", name, f"{reached}{note}", details)]
        case "interrupted":
            text = f"{reached}{note}; the numbers are those up to there, resume=auto continues it"
            return [Notice("warning", "interrupted", name, text)]
        case "silent":
            return [Notice("error", "killed?", name, f"{reached}: {summary.status_note}", details)]
        case "running":
            return [Notice("info", "running", name, f"{reached}; {summary.status_note}")]
        case _:
            return []


def _monitor_notices(run: Run) -> list[Notice]:
    monitors = dict.fromkeys(warning.monitor for warning in run.warnings)
    found = []
    for monitor in monitors:
        of_monitor = [warning for warning in run.warnings if warning.monitor == monitor]
        steps = [warning.step for warning in of_monitor if warning.step is not None]
        when = ""
        if len(of_monitor) > 1 and steps:
            when = (
                f" (said {len(of_monitor)} times, steps {min(steps):,} to {max(steps):,}; this is the last)"
            )
        elif steps:
            when = f" (step {steps[0]:,})"
        found.append(Notice("warning", monitor or "monitor", (run.name,), of_monitor[-1].message + when))
    return found


def _numeric_notices(run: Run) -> list[Notice]:
    return [
        Notice(
            "warning",
            "not finite",
            (run.name,),
            f"{metric} is NaN or infinite at {bad:,} of {plural(num, 'point')}, "
            f"first at step {first:,}; the curve has a gap there",
        )
        for metric, bad, num, first in not_finite(run)
    ]


def missing(summary: Summary) -> list[str]:
    """Returns what a reader would look for in vain, in words."""
    run = summary.run
    found = []
    if not run.curves:
        found.append("no curves: metrics/version_*/metrics.csv is missing or empty")
    if not run.evaluations:
        found.append("no evaluation on fresh samples: reward, KL, length and win-rate are unknown")
    elif summary.final is None:
        found.append("one evaluation only, of the start: nothing says what training changed")
    elif summary.start is None:
        found.append(f"the start was not evaluated (first evaluation at step {run.evaluations[0].step:,})")
    measured = {name for evaluation in run.evaluations for name in evaluation.metrics}
    if run.evaluations and REWARD not in measured:
        found.append(f"the evaluations hold no {REWARD}")
    if run.evaluations and KL not in measured:
        found.append(f"the evaluations hold no {KL}: the run is not in the plot of reward against KL")
    if run.evaluations and not run.samples:
        found.append("no sample completions (samples/ is missing or empty)")
    return found


def _between_runs(summaries: list[Summary]) -> list[Notice]:
    found = []
    sizes = {e.num_prompts for s in summaries if (e := s.final) and e.num_prompts}
    if len(sizes) > 1:
        text = f"final evaluations used different numbers of prompts ({listing([str(n) for n in sorted(sizes)])})"
        found.append(
            Notice("warning", "comparison", (), text + ": compare their intervals, not only their means")
        )
    prints = {str(data["fingerprint"]) for s in summaries if (data := _data(s.run)).get("fingerprint")}
    if len(prints) > 1:
        text = f"the runs did not train on the same data ({len(prints)} fingerprints; see Provenance)"
        found.append(Notice("info", "comparison", (), text))
    return found


def _data(run: Run) -> dict[str, Any]:
    data = run.manifest.get("data")
    return data if isinstance(data, dict) else {}


def _joined(found: list[Notice]) -> list[Notice]:
    """Joins notices that differ in nothing but the run."""
    joined: dict[tuple[str, str, str, str], list[str]] = {}
    for notice in found:
        joined.setdefault((notice.level, notice.what, notice.text, notice.details), []).extend(notice.runs)
    return [
        Notice(level, what, tuple(dict.fromkeys(runs)), text, details)
        for (level, what, text, details), runs in joined.items()
    ]
