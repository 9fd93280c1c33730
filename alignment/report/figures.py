"""Figures as Plotly's JSON: the frontier of reward against KL, and small multiples over steps.

They are plain dicts, not ``plotly.graph_objects``: building and validating thousands of traces there
takes seconds. Colours are CSS variables that the page's script looks up, so that one figure serves
light, dark and print.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.report.colors import dash, marker, variable
from alignment.report.compare import Comparison
from alignment.report.panels import FRESH, MAIN, Panel, ordered_panels
from alignment.report.read import Evaluation, Interval
from alignment.report.statistics import smooth, thin
from alignment.report.summary import KL, REWARD, GroupRow, Summary

Trace = dict[str, Any]

MOST_POINTS = 400  # a curve, in a page with few runs
MOST_POINTS_OF_ALL = 4000  # of one metric, over all runs
MANY_GROUPS = 8  # above it: no names in the plot, no error bars on every point
MANY_CURVES = 4  # above it: the smoothed curve only
THOUSANDS_FROM = 10_000  # from here on an axis says 10k
SMOOTH_FROM = 40  # points from which a curve is smoothed


@dataclass(frozen=True)
class Figure:
    """A figure with its caption; ``spec`` holds Plotly's ``data`` and ``layout``."""

    id: str
    title: str
    unit: str
    spec: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Run:
    """How one run is drawn."""

    label: str
    group: int
    member: int
    summary: Summary


def drawn_runs(summaries: list[Summary], comparison: Comparison) -> list[Run]:
    """Returns how each run is drawn: colour and marker by configuration, dash by seed."""
    return [
        Run(
            label=html.escape(comparison.labels[i]),
            group=comparison.group_of[i],
            member=comparison.groups[comparison.group_of[i]].members.index(i),
            summary=summary,
        )
        for i, summary in enumerate(summaries)
    ]


def frontier(runs: list[Run], groups: list[GroupRow]) -> Figure | None:
    """Returns reward against KL, or ``None`` where no evaluation has both.

    The evaluations of a run are joined over its steps. Where a configuration has several finished
    seeds, a large marker is their mean with t intervals; else it is the run's last evaluation.
    """
    paths = [(run, points) for run in runs if (points := _with_both(run.summary.run.evaluations))]
    if not paths:
        return None
    num_groups = len({run.group for run in runs})
    seeded = [g for g in groups if g.reward and g.kl and g.reward.num and g.reward.num > 1]
    has_mean = {row.index for row in seeded}
    traces: list[Trace] = []
    for run, points in paths:
        is_faint = run.group in has_mean or num_groups > MANY_GROUPS
        traces.append(_path(run, points, has_bars=not is_faint, opacity=0.45 if is_faint else 1.0))
    ends = [_end(run, points[-1]) for run, points in paths if run.group not in has_mean]
    ends += [_group_mean(row) for row in seeded]
    layout = {
        "xaxis": {"title": {"text": "KL(policy ‖ start) on held-out prompts, nats"}, "range": _x_range(paths)},
        "yaxis": {"title": {"text": "reward on held-out prompts"}, "range": _y_range(paths)},
        "annotations": [_name_beside(end, right=_x_range(paths)[1]) for end in ends]
        if 1 < num_groups <= MANY_GROUPS
        else [],
    }
    traces += ends
    return Figure("frontier", "Reward against KL", "", {"data": traces, "layout": layout})


def _with_both(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    return [
        evaluation
        for evaluation in evaluations
        if all(name in evaluation.metrics and math.isfinite(evaluation.metrics[name].mean) for name in (KL, REWARD))
    ]


def _path(run: Run, points: list[Evaluation], *, has_bars: bool, opacity: float) -> Trace:
    kls, rewards = [e.metrics[KL] for e in points], [e.metrics[REWARD] for e in points]
    trace = {
        **_base(run.label, run.group),
        "mode": "lines+markers",
        "x": _numbers(kl.mean for kl in kls),
        "y": _numbers(reward.mean for reward in rewards),
        "text": [f"step {e.step:,}" for e in points],
        "opacity": opacity,
        "line": {"color": variable(run.group), "width": 1.5, "dash": dash(run.member)},
        "marker": {"color": variable(run.group), "size": 5, "symbol": marker(run.group)},
        "hovertemplate": "%{fullData.name}, %{text}<br>reward %{y:.3f} at %{x:.2f} nats<extra></extra>",
    }
    if has_bars:
        trace |= {"error_x": _bars(kls, run.group), "error_y": _bars(rewards, run.group)}
    return trace


def _end(run: Run, point: Evaluation) -> Trace:
    return _big_marker(run.label, run.group, point.metrics[KL].mean, point.metrics[REWARD].mean) | {
        "hovertemplate": f"%{{fullData.name}}, last evaluation (step {point.step:,})<br>"
        "reward %{y:.3f} at %{x:.2f} nats<extra></extra>",
    }


def _group_mean(row: GroupRow) -> Trace:
    assert row.kl is not None
    assert row.reward is not None
    return _big_marker(html.escape(row.label), row.index, row.kl.mean, row.reward.mean) | {
        "error_x": _bars([row.kl], row.index, opacity="77"),
        "error_y": _bars([row.reward], row.index, opacity="77"),
        "hovertemplate": f"%{{fullData.name}}, mean of {row.reward.num} seeds<br>"
        "reward %{y:.3f} at %{x:.2f} nats<extra></extra>",
    }


def _big_marker(label: str, group: int, x: float, y: float) -> Trace:
    return {
        **_base(label, group),
        "mode": "markers",
        "x": _numbers([x]),
        "y": _numbers([y]),
        "marker": {
            "color": variable(group),
            "size": 11,
            "symbol": marker(group),
            "line": {"color": "var(--paper)", "width": 1.5},
        },
    }


def _name_beside(end: Trace, *, right: float) -> dict[str, Any]:
    """Writes a marker's label below it, on the paper's colour: lines and bars cross there."""
    is_far = end["x"][0] > 0.7 * right
    return {
        "name": str(end["meta"]["group"]),
        "text": end["name"],
        "x": end["x"][0],
        "y": end["y"][0],
        "xanchor": "right" if is_far else "left",
        "yanchor": "top",
        "xshift": -7 if is_far else 7,
        "yshift": -5,
        "borderpad": 1,
        "showarrow": False,
        "font": {"color": end["marker"]["color"]},
        "bgcolor": "var(--paper)@cc",
    }


def _x_range(paths: list[tuple[Run, list[Evaluation]]]) -> list[float]:
    return _padded([e.metrics[KL] for _, points in paths for e in points], right=0.12)


def _y_range(paths: list[tuple[Run, list[Evaluation]]]) -> list[float]:
    return _padded([e.metrics[REWARD] for _, points in paths for e in points], right=0.05)


def _padded(intervals: list[Interval], *, right: float) -> list[float]:
    """Returns a range that holds the points and their sample intervals.

    Intervals over two seeds are left out: with a t factor of 12.7 they would press everything else flat.
    """
    ends = [v for i in intervals for v in (i.mean, i.low, i.high) if v is not None and math.isfinite(v)]
    low, high = min(ends), max(ends)
    spread = (high - low) or abs(high) or 1.0
    return [low - 0.05 * spread, high + right * spread]


def fresh_panels(runs: list[Run]) -> tuple[list[Figure], list[Figure]]:
    """Returns a panel a metric of the evaluations on fresh samples: the main ones, then the others.

    Runs that only evaluated have no steps to draw over.
    """
    runs = [run for run in runs if run.summary.run.manifest.get("verb") != "evaluate"]
    names = dict.fromkeys(n for run in runs for e in run.summary.run.evaluations for n in e.metrics)
    main, others = ordered_panels(list(names), FRESH)
    has_bars = len({run.group for run in runs}) <= MANY_GROUPS and len(runs) <= 2 * MANY_GROUPS
    draw = lambda panel: _fresh_panel(panel, runs, has_bars=has_bars)  # noqa: E731
    return _drawn(main, draw), _drawn(others, draw)


def _fresh_panel(panel: Panel, runs: list[Run], *, has_bars: bool) -> Figure | None:
    traces = []
    for run in runs:
        points = [(e.step, e.metrics[panel.metric]) for e in run.summary.run.evaluations if panel.metric in e.metrics]
        if not points:
            continue
        trace = _line(run, [step for step, _ in points], [value.mean for _, value in points], mode="lines+markers")
        if has_bars:
            trace["error_y"] = _bars([value for _, value in points], run.group)
        traces.append(trace)
    return _figure("fresh", panel, traces)


def curve_panels(runs: list[Run]) -> tuple[list[Figure], list[Figure]]:
    """Returns a panel a metric of the curves, train and val in one: the main ones, then the others.

    ``fresh/`` curves are left out of runs with evaluations, which hold the same with intervals.
    """
    splits = {split: _metrics_of(runs, split) for split in ("train", "val", "fresh")}
    if any(run.summary.run.evaluations for run in runs):
        splits["fresh"] = []
    main, others = ordered_panels(list(dict.fromkeys([*splits["train"], *splits["val"]])), MAIN)
    draw = lambda panel: _curve_panel(panel, runs)  # noqa: E731
    fresh = [named for panels in ordered_panels(splits["fresh"], FRESH) for named in panels]
    rest = _drawn(fresh, lambda panel: _split_panel(panel, runs, "fresh"))
    return _sharing_scales(_drawn(main, draw), main), _drawn(others, draw) + rest


def _metrics_of(runs: list[Run], split: str) -> list[str]:
    names = dict.fromkeys(name for run in runs for name in run.summary.run.curves)
    return [name.partition("/")[2] for name in names if name.partition("/")[0] == split]


def _curve_panel(panel: Panel, runs: list[Run]) -> Figure | None:
    traces = [trace for run in runs for trace in _curves_of(panel.metric, run, len(runs))]
    return _figure("curve", panel, traces)


def _split_panel(panel: Panel, runs: list[Run], split: str) -> Figure | None:
    curves = [(run, run.summary.run.curves.get(f"{split}/{panel.metric}")) for run in runs]
    return _figure(split, panel, [_line(run, *curve, mode="lines+markers") for run, curve in curves if curve])


def _curves_of(metric: str, run: Run, num_runs: int) -> list[Trace]:
    """Returns the faint raw curve and the smoothed one of training, and validation with markers."""
    most = max(60, min(MOST_POINTS, MOST_POINTS_OF_ALL // num_runs))
    curves, traces = run.summary.run.curves, []
    if train := curves.get(f"train/{metric}"):
        steps, values = train
        is_smoothed = len(steps) >= SMOOTH_FROM and not metric.startswith("optim/learning_rate")
        if is_smoothed and num_runs <= MANY_CURVES:
            raw = _line(run, *thin(steps, values, most=most), mode="lines")
            traces.append(raw | {"opacity": 0.28, "hoverinfo": "skip", "hovertemplate": None})
        smoothed = smooth(values, window=max(3, len(values) // 25)) if is_smoothed else values
        mode = "lines" if len(steps) > 1 else "markers"
        shown = _line(run, *thin(steps, smoothed, most=most), mode=mode)
        traces.append(shown | {"hovertemplate": _hover("train, smoothed" if is_smoothed else "train")})
    if val := curves.get(f"val/{metric}"):
        line = _line(run, *thin(*val, most=most), mode="lines+markers")
        line["marker"] |= {"size": 6, "color": "var(--paper)", "line": {"color": variable(run.group), "width": 1.5}}
        traces.append(line | {"hovertemplate": _hover("val")})
    return traces


def _line(run: Run, steps: Sequence[int], values: Sequence[float], *, mode: str) -> Trace:
    return {
        **_base(run.label, run.group),
        "mode": mode,
        "x": list(steps),
        "y": _numbers(values),
        "connectgaps": False,
        "line": {"color": variable(run.group), "width": 1.4, "dash": dash(run.member)},
        "marker": {"color": variable(run.group), "size": 5, "symbol": marker(run.group)},
        "hovertemplate": _hover(""),
    }


def _hover(split: str) -> str:
    return f"%{{fullData.name}}{f' ({split})' if split else ''}<br>step %{{x:,}}: %{{y:.4g}}<extra></extra>"


def _base(label: str, group: int) -> Trace:
    return {"type": "scatter", "name": label, "meta": {"group": group}, "showlegend": False, "cliponaxis": True}


def _bars(intervals: Sequence[Interval], group: int, *, opacity: str = "ff") -> dict[str, Any]:
    """Returns asymmetric error bars, with an opacity in hexadecimal; no length where an interval is missing."""
    return {
        "type": "data",
        "symmetric": False,
        "array": _numbers((i.high - i.mean) if i.high is not None else 0.0 for i in intervals),
        "arrayminus": _numbers((i.mean - i.low) if i.low is not None else 0.0 for i in intervals),
        "color": f"{variable(group)}@{opacity}",
        "thickness": 1,
        "width": 2,
    }


def _figure(kind: str, panel: Panel, traces: list[Trace]) -> Figure | None:
    if not traces:
        return None
    last = max(trace["x"][-1] for trace in traces) or 1
    values = [y for trace in traces for y in trace["y"] if y is not None]
    # From 0 in every panel: they are read across.
    layout: dict[str, Any] = {"xaxis": {"range": [-0.03 * last, 1.03 * last]}, "yaxis": {}}
    if panel.limits is not None:
        layout["yaxis"]["range"] = list(panel.limits)
    if max(map(abs, values), default=0) >= THOUSANDS_FROM:
        layout["yaxis"]["tickformat"] = "~s"
    if panel.reference is not None:
        line = {"color": "var(--soft)", "width": 1, "dash": "dot"}
        ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": panel.reference, "y1": panel.reference}
        layout["shapes"] = [{"type": "line", "layer": "below", "line": line, **ends}]
    return Figure(f"{kind}-{panel.metric}", panel.title, panel.unit, {"data": traces, "layout": layout})


def _drawn(panels: Iterable[Panel], draw: Callable[[Panel], Figure | None]) -> list[Figure]:
    return [figure for panel in panels if (figure := draw(panel)) is not None]


def _sharing_scales(figures: list[Figure], panels: list[Panel]) -> list[Figure]:
    """Gives panels of one scale one range, so that chosen and rejected can be compared by eye."""
    scales = {f"curve-{panel.metric}": panel.scale for panel in panels if panel.scale}
    shared = []
    for figure in figures:
        scale = scales.get(figure.id)
        if scale is None:
            shared.append(figure)
            continue
        together = [other for other in figures if scales.get(other.id) == scale]
        values = [y for other in together for trace in other.spec["data"] for y in trace["y"] if y is not None]
        layout = dict(figure.spec["layout"])
        if values:
            layout["yaxis"] = {"range": _padded([Interval(value) for value in values], right=0.05)}
        shared.append(Figure(figure.id, figure.title, figure.unit, {"data": figure.spec["data"], "layout": layout}))
    return shared


def _numbers(values: Iterable[float]) -> list[float | None]:
    """Returns five figures of each value; JSON has no NaN, so that one becomes a gap."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
