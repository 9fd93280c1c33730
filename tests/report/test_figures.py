import json
import math
import time

import pytest
from fake_runs import write_broken_sweep, write_csv, write_run, write_sweep

from alignment.report.colors import DARK, LIGHT, group_colors
from alignment.report.compare import compare
from alignment.report.figures import curve_panels, drawn_runs, fresh_panels, frontier
from alignment.report.read import read_run
from alignment.report.summary import group_rows, summarise


def figures_of(folder, *, is_run=False):
    folders = [folder] if is_run else sorted(child for child in folder.iterdir() if child.name.isdigit())
    runs = [read_run(child, name=child.name) for child in folders]
    comparison, summaries = compare(runs), [summarise(run, now=time.time()) for run in runs]
    drawn = drawn_runs(summaries, comparison)
    main = frontier(drawn, group_rows(summaries, comparison))
    parts = [*fresh_panels(drawn), *curve_panels(drawn)]
    return main, {figure.id: figure for part in parts for figure in part}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return figures_of(write_sweep(tmp_path_factory.mktemp("sweep"), betas=(0.1, 0.3)))


def test_plotly_accepts_every_figure(sweep):
    go = pytest.importorskip("plotly.graph_objects")
    main, panels = sweep
    for figure in (main, *panels.values()):
        text = json.dumps(figure.spec, allow_nan=False)
        # The page's script puts colours in place of the variables before Plotly sees them.
        spec = json.loads(text.replace('"var(--', '"#0').replace(")@", "").replace(")", ""), object_hook=_plain)
        go.Figure(spec)


def _plain(node):
    return {
        key: "#123456" if isinstance(value, str) and value.startswith("#0") else value for key, value in node.items()
    }


def test_the_frontier_joins_a_run_over_its_steps_and_marks_the_mean_of_seeds(sweep):
    main, _ = sweep
    lines = [trace for trace in main.spec["data"] if "lines" in trace["mode"]]
    marks = [trace for trace in main.spec["data"] if trace["mode"] == "markers"]
    assert len(lines) == 4
    assert lines[0]["text"] == ["step 0", "step 25", "step 50", "step 75", "step 100"]
    assert len(marks) == 2
    ends = [trace["y"][-1] for trace in lines if trace["meta"] == marks[0]["meta"]]
    assert marks[0]["y"][0] == pytest.approx(sum(ends) / 2, rel=1e-4)
    assert marks[0]["error_y"]["array"][0] > 0
    assert "nats" in main.spec["layout"]["xaxis"]["title"]["text"]


def test_a_run_has_one_color_everywhere(sweep):
    main, panels = sweep
    for figure in (main, *panels.values()):
        for trace in figure.spec["data"]:
            assert trace["marker"]["color"] in (f"var(--group-{trace['meta']['group']})", "var(--paper)")


def test_train_and_val_share_a_panel_and_chosen_and_rejected_a_scale(sweep):
    _, panels = sweep
    assert len(panels["curve-loss/total"].spec["data"]) == 4 * 3, "raw and smoothed training, validation"
    chosen, rejected = (
        panels[f"curve-reward/{side}"].spec["layout"]["yaxis"]["range"] for side in ("chosen", "rejected")
    )
    assert chosen == rejected
    assert "curve-budget/prompts" not in panels


def test_a_metric_that_no_one_foresaw_gets_a_panel(tmp_path):
    folder = write_run(tmp_path / "run")
    write_csv(folder / "metrics/version_0/metrics.csv", [{"step": 1, "train/critic/value_loss_nats": 1.0}])
    _, panels = figures_of(folder, is_run=True)
    assert (panels["curve-critic/value_loss_nats"].title, panels["curve-critic/value_loss_nats"].unit) == (
        "critic / value loss", "nats",
    )  # fmt: skip


def test_a_value_that_is_not_finite_is_a_gap(tmp_path):
    folder = write_run(tmp_path / "run")
    rows = [{"step": step, "train/loss/total": math.nan if step == 2 else 1.0} for step in (1, 2, 3)]
    write_csv(folder / "metrics/version_0/metrics.csv", rows)
    _, panels = figures_of(folder, is_run=True)
    assert panels["curve-loss/total"].spec["data"][0]["y"] == [1.0, None, 1.0]


def test_runs_with_every_kind_of_damage_are_drawn(tmp_path):
    main, panels = figures_of(write_broken_sweep(tmp_path))
    assert len({trace["meta"]["group"] for trace in main.spec["data"]}) == 5
    json.dumps([figure.spec for figure in panels.values()], allow_nan=False)


def test_without_evaluations_there_is_no_frontier(tmp_path):
    main, panels = figures_of(write_run(tmp_path / "run", evaluate_every=None), is_run=True)
    assert main is None
    assert "curve-loss/total" in panels


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("num_groups", [len(LIGHT), 30])
def test_every_color_stands_out_from_its_paper(num_groups):
    colors = group_colors(num_groups)
    assert len(colors) == len(set(colors)) == num_groups
    for light, dark in colors:
        assert (1.05) / (luminance(light) + 0.05) >= 2.7
        assert (luminance(dark) + 0.05) / (luminance("#14171b") + 0.05) >= 3
    assert len(LIGHT) == len(DARK)
