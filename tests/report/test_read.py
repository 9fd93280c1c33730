import json
import math

import pytest
from fake_runs import write_csv, write_run

from alignment.report.read import read_run


def read(folder):
    return read_run(folder, name=folder.name)


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run")


def test_a_whole_run_reads_without_a_problem(folder):
    run = read(folder)
    assert run.problems == []
    assert [e.step for e in run.evaluations] == [0, 25, 50, 75, 100]
    assert run.evaluations[-1].metrics["reward/total"].num == 128
    assert sorted(run.samples) == [0, 100]
    steps, values = run.curves["train/loss/total"]
    assert steps == list(range(1, 101))
    assert len(values) == 100
    assert run.curves["val/loss/total"][0] == [20, 40, 60, 80, 100]


def test_a_resumed_run_leaves_out_the_branch_that_was_given_up(folder):
    first = [{"step": step, "train/loss/total": 1.0} for step in range(1, 61)] + [{"step": 60, "val/loss/total": 9.0}]
    second = [{"step": step, "train/loss/total": 2.0} for step in range(51, 56)]
    write_csv(folder / "metrics/version_0/metrics.csv", first)
    write_csv(folder / "metrics/version_1/metrics.csv", second)
    run = read(folder)
    assert run.num_versions == 2
    assert run.curves["train/loss/total"] == (list(range(1, 56)), [1.0] * 50 + [2.0] * 5)
    assert "val/loss/total" not in run.curves


def test_versions_are_ordered_as_numbers(folder):
    for version in (0, 2, 10):
        row = {"step": 1, "train/loss/total": float(version)}
        write_csv(folder / f"metrics/version_{version}/metrics.csv", [row])
    assert read(folder).curves["train/loss/total"] == ([1], [10.0])


def test_a_line_that_was_cut_off_is_named_and_left_out(folder):
    path = folder / "metrics/version_0/metrics.csv"
    path.write_text("step,train/loss/total,val/loss/total\n1,0.5,\n2,nan,\n3,0.", encoding="utf-8")
    run = read(folder)
    steps, values = run.curves["train/loss/total"]
    assert steps == [1, 2]
    assert math.isnan(values[1])
    assert run.problems == ["metrics/version_0/metrics.csv:4: 2 cells, expected 3; the line is left out"]


def test_a_bad_line_of_evaluations_is_named(folder):
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write('[1]\n{"step": 3}\n{"step": 7, "met')
    run = read(folder)
    assert len(run.evaluations) == 5
    assert sorted(problem.split(":")[1] for problem in run.problems) == ["6", "7", "8"]


def test_an_evaluation_repeated_after_a_resume_counts_once(folder):
    line = {"step": 100, "policy": "step 100", "metrics": {"reward/total": {"mean": 0.9, "ci_low": None}}}
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    run = read(folder)
    assert [e.step for e in run.evaluations] == [0, 25, 50, 75, 100]
    assert run.evaluations[-1].metrics["reward/total"].mean == 0.9


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", '{"a": '])
@pytest.mark.parametrize("name", ["manifest.json", "config.yaml"])
def test_a_corrupt_manifest_or_config_is_a_problem_and_no_error(folder, name, text):
    (folder / name).write_text(text)
    run = read(folder)
    assert len(run.problems) == 1
    assert run.problems[0].startswith(name)
    assert len(run.evaluations) == 5


def test_a_folder_of_nothing_reads(tmp_path):
    run = read(tmp_path)
    assert len(run.problems) == 2
    assert run.curves == {}
    assert run.evaluations == []


def test_a_job_that_failed_before_its_config_is_not_called_damaged(tmp_path):
    (tmp_path / "manifest.json").write_text('{"status": "failed", "error": "ConfigError: method.bta"}')
    assert read(tmp_path).problems == []


def test_many_bad_lines_are_counted_instead_of_listed(folder):
    (folder / "warnings.jsonl").write_text("x\n" * 50)
    problems = read(folder).problems
    assert len(problems) == 3
    assert "50 such lines" in problems[-1]
