"""Puts the parts together and renders the page."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

import alignment
from alignment.report.colors import group_colors
from alignment.report.compare import Comparison, Group, compare
from alignment.report.figures import Figure, curve_panels, drawn_runs, fresh_panels, frontier
from alignment.report.format import fixed, plural
from alignment.report.names import (
    data_of,
    guard_of,
    hardware_of,
    method_of,
    model_of,
    own_guard,
    reward_of,
    same_everywhere,
)
from alignment.report.notices import notices
from alignment.report.read import Run
from alignment.report.samples import before_after, messages
from alignment.report.summary import GroupRow, Summary, group_rows, summarise
from alignment.report.tables import (
    budget_table,
    data_statistics,
    differing_table,
    headline_table,
    measurements_table,
    provenance,
    seeds_table,
)
from alignment.report.text import log_text, visible
from alignment.report.words import headline, title

MOST_MEASURED = 3  # runs whose every measurement fits beside one another
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """What the page is about.

    Attributes:
        runs: At least one.
        folder: The folder that was asked for.
        empty: Names of job folders in which no run began.
        now: The time of the report, in seconds since the epoch.
    """

    runs: list[Run]
    folder: Path
    empty: list[str]
    now: float


def render(page: Page) -> str:
    """Returns the page as HTML: scripts, styles and data inside, nothing to fetch."""
    # Imported here: a look at `align report --help` needs neither.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    comparison = compare(page.runs)
    summaries = [summarise(run, now=page.now) for run in page.runs]
    figures = _figures(summaries, comparison, group_rows(summaries, comparison))
    scripts = [get_plotlyjs(), (HERE / "page.js").read_text(encoding="utf-8")] if figures["all"] else []
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": visible,
        "log_text": log_text,
        "fixed": fixed,
        "plural": plural,
        "messages": messages,
    }
    return environment.get_template("page.html.j2").render(
        **_context(page, summaries, comparison),
        figures=figures,
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        colors=group_colors(len(comparison.groups)),
        scripts=scripts,
        # With the scripts' own hashes allowed and nothing else, no text of a run can ever be run or fetch anything.
        script_hashes=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts) or "'none'",
        figures_json=_script_json({figure.id: figure.spec for figure in figures["all"]}),
    )


def _figures(summaries: list[Summary], comparison: Comparison, groups: list[GroupRow]) -> dict[str, Any]:
    runs = drawn_runs(summaries, comparison)
    main = frontier(runs, groups)
    fresh, fresh_others = fresh_panels(runs)
    curves, curve_others = curve_panels(runs)
    return {
        "frontier": main,
        "fresh": fresh,
        "fresh_others": fresh_others,
        "curves": curves,
        "curve_others": curve_others,
        "all": _unique([*([main] if main else []), *fresh, *fresh_others, *curves, *curve_others]),
    }


def _unique(figures: list[Figure]) -> list[Figure]:
    return list({figure.id: figure for figure in figures}.values())


def _context(page: Page, summaries: list[Summary], comparison: Comparison) -> dict[str, Any]:
    runs = page.runs
    groups = group_rows(summaries, comparison)
    common, by_run = provenance(runs, comparison)
    samples = [picks for run, label in zip(runs, comparison.labels, strict=True) if (picks := before_after(run, label))]
    configured = next((run for run in runs if run.config), None)
    return {
        "title": title(summaries, comparison),
        "sentences": headline(summaries, groups, comparison.labels),
        "facts": _header_facts(runs),
        "table": headline_table(summaries, comparison),
        "seeds": seeds_table(groups),
        "smallest_seeds": min((row.reward.num or 0 for row in groups if row.reward and row.num_seeds > 1), default=0),
        "measurements": measurements_table(summaries, comparison) if len(runs) <= MOST_MEASURED else None,
        "notices": notices(summaries, empty=page.empty),
        "calls": dict.fromkeys(page.empty)
        | {run.name: label for run, label in zip(runs, comparison.labels, strict=True)},
        "legend": _legend(comparison),
        "num_runs": len(runs),
        "has_seeds": any(row.num_seeds > 1 for row in groups),
        "samples": samples,
        "rollouts": [(label, run.stages) for run, label in zip(runs, comparison.labels, strict=True) if run.stages],
        "differing": differing_table(comparison, summaries) if len(runs) > 1 else None,
        "config_run": configured.name if configured else "",
        "config_text": yaml.safe_dump(configured.config, sort_keys=False, allow_unicode=True) if configured else "",
        "common": common,
        "by_run": by_run,
        "budget": budget_table(summaries, comparison),
        "statistics_run": runs[0].name,
        "statistics": data_statistics(runs[0]),
        "folder": str(page.folder),
        "made": f"{datetime.fromtimestamp(page.now, UTC):%Y-%m-%d %H:%M} UTC",
        "version": alignment.__version__,
    }


def _header_facts(runs: list[Run]) -> list[tuple[str, str]]:
    found = [
        ("Method", same_everywhere([method_of(run) for run in runs])),
        ("Model", same_everywhere([model_of(run) for run in runs])),
        ("Data", same_everywhere([data_of(run) for run in runs])),
        ("Reward", same_everywhere([reward_of(run) for run in runs if run.config.get("reward")])),
        ("Fresh samples' reward", same_everywhere([guard_of(run) for run in runs if own_guard(run)])),
        ("Sampling", same_everywhere([_sampling(run) for run in runs])),
        ("Hardware", same_everywhere([hardware_of(run) for run in runs])),
    ]
    return [(name, value) for name, value in found if value]


def _sampling(run: Run) -> str:
    rollout = run.config.get("rollout")
    sampling = rollout.get("sampling") if isinstance(rollout, dict) else None
    if not isinstance(sampling, dict):
        return ""
    top_p, top_k, min_p = sampling.get("top_p"), sampling.get("top_k"), sampling.get("min_p")
    stop, bad_words = sampling.get("stop"), sampling.get("bad_words")
    parts = [
        f"temperature {sampling.get('temperature')}",
        f"top-p {top_p}" if top_p not in (None, 1, 1.0) else "",
        f"top-k {top_k}" if top_k else "",
        f"min-p {min_p}" if min_p else "",
        f"stops at {_quoted(stop)}" if stop else "",
        f"never {_quoted(bad_words)}" if bad_words else "",
        f"at most {sampling.get('max_new_tokens')} tokens",
    ]
    return ", ".join(filter(None, parts))


def _quoted(texts: list[Any]) -> str:
    return " or ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _legend(comparison: Comparison) -> list[Group]:
    return comparison.groups if len(comparison.groups) > 1 else []


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _script_json(value: object) -> str:
    """Returns JSON that cannot end the script element that it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace("&", "\\u0026")
