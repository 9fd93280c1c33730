"""The page's tables as rows of cells."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from alignment.report.compare import Comparison, seed_of
from alignment.report.format import MISSING, bounds, count, decimals_for, duration, fixed, memory, scalar
from alignment.report.names import data_of, hardware_of, method_of, model_of, section
from alignment.report.read import Interval, Run
from alignment.report.summary import KL, LENGTH, REWARD, WIN_RATE, GroupRow, Summary
from alignment.report.text import visible

EXCEPTION_MODULE = re.compile(r"^(\w+\.)+(?=\w+: )")
MOST_STATUS = 110  # characters; the whole error stands under the warnings
STATUS = {"silent": "killed?", "unknown": "unknown"}


@dataclass(frozen=True)
class Cell:
    """A cell: its text, a smaller second text, and what kind of thing it is (a CSS class)."""

    text: str
    small: str = ""
    kind: str = "number"
    color: int | None = None


@dataclass(frozen=True)
class Table:
    """A table: (title, unit) of each column, and rows of as many cells."""

    columns: list[tuple[str, str]]
    rows: list[list[Cell]]


def headline_table(summaries: list[Summary], comparison: Comparison) -> Table:
    """Returns a row a run; columns that no run fills are left out."""
    kls = [summary.final_metric(KL) for summary in summaries]
    rewards = [s.start_metric(REWARD) for s in summaries] + [s.final_metric(REWARD) for s in summaries]
    digits, kl_digits = decimals_for(rewards), decimals_for(kls)
    lengths = decimals_for([summary.final_metric(LENGTH) for summary in summaries])
    cells: list[tuple[str, str, Callable[[int, Summary], Cell]]] = [
        ("Run", "", lambda i, s: _run_cell(i, s, comparison)),
        ("Status", "", lambda _, s: _status_cell(s)),
        ("Reward", "at start", lambda _, s: _interval_cell(s.start_metric(REWARD), digits)),
        ("Final reward", "95% interval", lambda _, s: _interval_cell(s.final_metric(REWARD), digits, "main")),
        ("KL to start", "nats", lambda _, s: _interval_cell(s.final_metric(KL), kl_digits)),
        ("Win-rate", "against start", lambda _, s: _interval_cell(s.final_metric(WIN_RATE), 2)),
        ("Length", "tokens", lambda _, s: _interval_cell(s.final_metric(LENGTH), min(lengths, 1))),
        ("Prompts", "", lambda _, s: Cell(count(s.prompts))),
        ("Trained", "tokens", lambda _, s: Cell(count(s.tokens_trained))),
        ("Time", "", lambda _, s: Cell(duration(s.seconds))),
        ("Memory", "peak", lambda _, s: Cell(memory(s.peak_memory_bytes))),
    ]
    return _without_empty(_table(cells, summaries), keep=4)


def _run_cell(i: int, summary: Summary, comparison: Comparison) -> Cell:
    label, name = comparison.labels[i], summary.run.name
    says_folder = label == name or label.endswith(f" · {name}")
    return Cell(label, "" if says_folder else f"{name}/", "name", comparison.group_of[i])


def _status_cell(summary: Summary) -> Cell:
    note = visible(EXCEPTION_MODULE.sub("", summary.status_note), most=MOST_STATUS)
    return Cell(STATUS.get(summary.status, summary.status), note, f"status {summary.status}")


def _interval_cell(interval: Interval | None, decimals: int, kind: str = "number") -> Cell:
    return Cell(fixed(interval.mean if interval else None, decimals), bounds(interval, decimals), kind)


def seeds_table(rows: list[GroupRow]) -> Table | None:
    """Returns a row a configuration with means over seeds, or ``None`` where no configuration has several seeds."""
    if all(row.num_seeds < 2 for row in rows):
        return None
    columns = [
        ("Configuration", ""),
        ("Seeds", "finished"),
        ("Final reward", "mean, t interval"),
        ("KL to start", "nats"),
    ]
    columns += [("Win-rate", "against start"), ("Length", "tokens")]
    means = [[row.reward, row.kl, row.win_rate, row.length] for row in rows]
    body = [
        [
            Cell(row.label, "", "name", row.index),
            Cell(f"{row.num_finished} of {row.num_seeds}"),
            *(_interval_cell(interval, _digits(interval)) for interval in intervals),
        ]
        for row, intervals in zip(rows, means, strict=True)
    ]
    return _without_empty(Table(columns, body), keep=4)


def _digits(interval: Interval | None) -> int:
    """Two figures of the mean's own size: with two seeds an interval's width says little about digits."""
    if interval is None or abs(interval.mean) < 1:
        return 3
    return 2 if abs(interval.mean) < 10 else 1


def budget_table(summaries: list[Summary], comparison: Comparison) -> Table:
    """Returns what each run used."""
    cells: list[tuple[str, str, Callable[[int, Summary], Cell]]] = [
        ("Run", "", lambda i, _: Cell(comparison.labels[i], "", "name", comparison.group_of[i])),
        ("Updates", "", lambda _, s: Cell(count(s.updates))),
        ("Prompts", "", lambda _, s: Cell(count(s.prompts))),
        ("Trained", "tokens", lambda _, s: Cell(count(s.tokens_trained))),
        ("Generated", "tokens", lambda _, s: Cell(count(s.tokens_generated))),
        ("Training", "time", lambda _, s: Cell(duration(s.seconds))),
        ("Whole run", "time", lambda _, s: Cell(duration(s.wall_seconds))),
        ("Speed", "tokens/s", lambda _, s: Cell(_speed(s))),
        ("Peak memory", "", lambda _, s: Cell(memory(s.peak_memory_bytes))),
    ]
    return _without_empty(_table(cells, summaries), keep=1)


def _speed(summary: Summary) -> str:
    if not summary.seconds or summary.tokens_trained is None:
        return MISSING
    return count(summary.tokens_trained / summary.seconds)


def measurements_table(summaries: list[Summary], comparison: Comparison) -> Table | None:
    """Returns every metric of the first and the last evaluation of each run, or ``None`` without evaluations."""
    evaluations = [
        (f"{label} ({when})" if len(summaries) > 1 else when, evaluation)
        for summary, label in zip(summaries, comparison.labels, strict=True)
        for when, evaluation in (("start", summary.start), ("last", summary.final))
        if evaluation is not None
    ]
    names = dict.fromkeys(name for _, evaluation in evaluations for name in evaluation.metrics)
    if not names:
        return None
    rows = []
    for name in names:
        intervals = [evaluation.metrics.get(name) for _, evaluation in evaluations]
        decimals = decimals_for(intervals)
        rows.append([Cell(name, "", "name key"), *(_interval_cell(interval, decimals) for interval in intervals)])
    return Table([("Metric", ""), *((title, f"step {e.step:,}") for title, e in evaluations)], rows)


def differing_table(comparison: Comparison, summaries: list[Summary]) -> Table | None:
    """Returns the configuration keys whose value is not the same everywhere, or ``None``."""
    keys = [key for key in comparison.differing if not key.startswith("paths.")]
    if not keys:
        return None
    names = [summary.run.name for summary in summaries]
    if len(names) <= len(keys):
        rows = [
            [Cell(key, "", "name key"), *(Cell(value, "", "value") for value in comparison.differing[key])]
            for key in keys
        ]
        return Table([("Key", ""), *((name, "") for name in names)], rows)
    rows = [
        [
            Cell(name, "", "name", comparison.group_of[i]),
            *(Cell(comparison.differing[key][i], "", "value") for key in keys),
        ]
        for i, name in enumerate(names)
    ]
    return Table([("Run", ""), *((key, "") for key in keys)], rows)


def facts(run: Run) -> dict[str, str]:
    """Returns what a run was made from, in words."""
    manifest, git, model = run.manifest, section(run, "git"), section(run, "model")
    sha = f"{str(git.get('sha'))[:12]}{' with uncommitted changes' if git.get('dirty') else ''}" if git else ""
    parameters = count(_number(model.get("parameters")))
    trainable = count(_number(model.get("trainable_parameters")))
    found = {
        "Run folder": str(run.path),
        "Command": " ".join(map(str, manifest.get("command") or [])),
        "Started": _time(manifest.get("started")),
        "Ended": _time(manifest.get("ended")),
        "Method": method_of(run),
        "Model": model_of(run),
        "Parameters": "" if parameters == MISSING else f"{parameters}, {trainable} trainable",
        "Weights": str(model.get("weights_hash") or ""),
        "Chat template": str(manifest.get("template_hash") or ""),
        "Data": data_of(run),
        "Data fingerprint": str(section(run, "data").get("fingerprint") or ""),
        "Hardware": hardware_of(run),
        "Seed": "" if seed_of(run) is None else str(seed_of(run)),
        "Config hash": str(manifest.get("config_hash") or ""),
        "Code": f"git {sha}" if sha else "",
        "Versions": ", ".join(f"{name} {version}" for name, version in section(run, "versions").items()),
    }
    return {key: value for key, value in found.items() if value}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _time(value: object) -> str:
    return re.sub(r"\+00:00$", " UTC", str(value).replace("T", " ")) if value else ""


def provenance(runs: list[Run], comparison: Comparison) -> tuple[dict[str, str], Table | None]:
    """Returns the facts that hold for every run, and a table of those that do not."""
    by_run = [facts(run) for run in runs]
    keys = list(dict.fromkeys(key for found in by_run for key in found))
    common = {key: by_run[0][key] for key in keys if len({found.get(key) for found in by_run}) == 1}
    others = [key for key in keys if key not in common]
    if not others:
        return common, None
    rows = [
        [
            Cell(comparison.labels[i], "", "name", comparison.group_of[i]),
            *(Cell(found.get(key, MISSING), "", "value") for key in others),
        ]
        for i, found in enumerate(by_run)
    ]
    return common, Table([("Run", ""), *((key, "") for key in others)], rows)


def data_statistics(run: Run) -> list[tuple[str, str]]:
    """Returns the data's statistics as dotted names and values."""
    statistics = section(run, "data").get("statistics")
    return _flat("", statistics) if isinstance(statistics, dict) else []


def _flat(prefix: str, node: dict[str, object]) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in node.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            pairs.extend(_flat(name, value))
        else:
            pairs.append((name, scalar(value)))
    return pairs


def _table(cells: list[tuple[str, str, Callable[[int, Summary], Cell]]], summaries: list[Summary]) -> Table:
    columns = [(name, unit) for name, unit, _ in cells]
    return Table(columns, [[make(i, summary) for *_, make in cells] for i, summary in enumerate(summaries)])


def _without_empty(table: Table, *, keep: int) -> Table:
    """Leaves out columns in which nothing was measured, but for the first ``keep``."""
    kept = [
        i for i in range(len(table.columns)) if i < keep or any(row[i].text not in ("", MISSING) for row in table.rows)
    ]
    return Table([table.columns[i] for i in kept], [[row[i] for i in kept] for row in table.rows])
