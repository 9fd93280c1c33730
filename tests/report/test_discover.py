import pytest
from fake_runs import write_pipeline, write_run, write_sweep

from alignment.report.discover import find_runs, run_name
from alignment.utils.errors import UserError


def names(found):
    return [run_name(run, found.root) for run in found.runs]


def test_a_run_is_itself(tmp_path):
    write_run(tmp_path / "run", steps=2)
    found = find_runs([tmp_path / "run"])
    assert names(found) == ["run"]
    assert found.root == tmp_path / "run"


def test_jobs_of_a_multirun_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 0, 2):
        write_run(tmp_path / str(number), steps=0)
    (tmp_path / "11").mkdir()
    (tmp_path / "multirun.yaml").touch()
    found = find_runs([tmp_path])
    assert names(found) == ["0", "2", "9", "10"]
    assert found.empty == [tmp_path / "11"]


def test_stages_of_a_pipeline_come_in_the_order_in_which_they_ran(tmp_path):
    write_pipeline(tmp_path / "quickstart")
    (tmp_path / "quickstart" / "manifest.json").write_text('{"verb": "pipeline"}')
    assert names(find_runs([tmp_path])) == ["quickstart/sft", "quickstart/dpo"]
    assert names(find_runs([tmp_path / "quickstart"])) == ["sft", "dpo"]


def test_what_lies_in_a_run_is_no_run(tmp_path):
    run = write_run(tmp_path / "run", steps=2)
    for inside in ("wandb/offline/files/config.yaml", "checkpoints/step=2/manifest.json", "model/config.yaml"):
        (run / inside).parent.mkdir(parents=True)
        (run / inside).touch()
    (tmp_path / "latest").symlink_to(run)
    assert names(find_runs([tmp_path])) == ["run"]
    assert find_runs([run]).runs == [run]


def test_several_paths_share_their_nearest_folder_and_count_once(tmp_path):
    write_sweep(tmp_path / "a", betas=(0.1,), seeds=2)
    write_run(tmp_path / "b", steps=2)
    found = find_runs([tmp_path / "b", tmp_path / "a", tmp_path / "a" / "1"])
    assert names(found) == ["b", "a/0", "a/1"]
    assert found.root == tmp_path


def test_a_job_with_nothing_but_an_error_is_a_run(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "error.log").write_text("Traceback")
    assert names(find_runs([tmp_path])) == ["0"]


def test_no_run_says_what_was_looked_for_and_what_is_there(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"no run here.*evaluations\.jsonl.*found notes\.txt"):
        find_runs([tmp_path])
    with pytest.raises(UserError, match="no such folder"):
        find_runs([tmp_path / "x"])
    with pytest.raises(UserError, match="is a file"):
        find_runs([tmp_path / "notes.txt"])
    with pytest.raises(UserError, match="got no path"):
        find_runs([])
