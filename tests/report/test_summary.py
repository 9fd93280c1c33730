import json
import os
import time

import pytest
from fake_runs import evaluation, interval, write_jsonl, write_run, write_sweep

from alignment.report.compare import compare
from alignment.report.notices import missing, notices
from alignment.report.read import read_run
from alignment.report.summary import REWARD, group_rows, summarise
from alignment.report.words import headline, single_run_sentence, title


def read(folder):
    return read_run(folder, name=folder.name)


def summary_of(folder):
    return summarise(read(folder), now=time.time())


def read_all(folder):
    return [read(child) for child in sorted(folder.iterdir())]


def with_rewards(folder, *rewards, **more):
    lines = [evaluation(50 * i, i / 2) for i in range(len(rewards))]
    for line, reward in zip(lines, rewards, strict=True):
        line["metrics"] = {REWARD: reward} | (more if line is lines[-1] else {})
    write_jsonl(folder / "evaluations.jsonl", lines)


class TestComparison:
    def test_seeds_of_one_configuration_are_one_group(self, tmp_path):
        write_sweep(tmp_path, betas=(0.3, 0.1), seeds=3)
        comparison = compare(read_all(tmp_path))
        assert comparison.swept == ["method.beta"]
        assert [group.label for group in comparison.groups] == ["beta=0.1", "beta=0.3"]
        assert [group.members for group in comparison.groups] == [(3, 4, 5), (0, 1, 2)]
        assert comparison.labels[:2] == ["beta=0.3 · seed 1", "beta=0.3 · seed 2"]

    def test_where_a_run_is_written_makes_no_difference(self, tmp_path):
        for name in ("a", "b"):
            paths = {"run_dir": str(tmp_path / name)}
            write_run(tmp_path / name, steps=0, seed=len(name), paths=paths, trainer={"root": str(tmp_path / name)})
        assert len(compare(read_all(tmp_path)).groups) == 1

    def test_runs_without_a_config_stand_alone(self, tmp_path):
        for name in "01":
            write_run(tmp_path / name, steps=0)
            (tmp_path / name / "config.yaml").unlink()
        comparison = compare(read_all(tmp_path))
        assert len(comparison.groups) == 2
        assert len(set(comparison.labels)) == 2

    def test_jobs_of_a_sweep_over_groups_are_called_by_what_they_override(self, tmp_path):
        """What every job of the sweep has in common names none of them."""
        for index, method in enumerate(("DPO", "KTO")):
            shared = ["+sweep=s", "experiment=e", "paths.runs=r", "hardware.threads=1"]
            node = {"_target_": f"alignment.methods.m.{method}"} | {f"{method}_{i}": i for i in range(4)}
            folder = write_run(tmp_path / str(index), steps=0, method=node)
            path = folder / "manifest.json"
            values = json.loads(path.read_text("utf-8")) | {"overrides": [*shared, f"method={method.lower()}"]}
            path.write_text(json.dumps(values), "utf-8")
        assert [group.label for group in compare(read_all(tmp_path)).groups] == ["method=dpo", "method=kto"]


class TestJudges:
    def test_a_judge_is_stated_by_its_held_out_records(self, tmp_path):
        folder = write_run(tmp_path / "rm", steps=2)
        (folder / "evaluations.jsonl").unlink(missing_ok=True)
        path = folder / "manifest.json"
        values = json.loads(path.read_text("utf-8"))
        values["model"] = values.get("model", {}) | {"head": "score"}
        values["metrics"] = {"val/reward/accuracy": 0.86, "val/calibration/expected_error": 0.0348}
        path.write_text(json.dumps(values), "utf-8")
        summary = summary_of(folder)
        assert single_run_sentence(summary) == (
            "On held-out records: 0.860 of the pairs in the labelled order, expected calibration error 0.035."
        )
        assert not any("fresh samples" in text for text in missing(summary))


class TestSummary:
    def test_start_and_final(self, tmp_path):
        summary = summary_of(write_run(tmp_path / "run"))
        assert (summary.start.step, summary.final.step, summary.step) == (0, 100, 100)
        assert (summary.prompts, summary.seconds, summary.wall_seconds) == (3200, 42.0, 74.2)

    def test_a_run_that_was_killed_is_not_called_running(self, tmp_path):
        folder = write_run(tmp_path / "run", status="running")
        assert summary_of(folder).status == "running"
        for file in folder.rglob("*"):
            os.utime(file, (0, 0))
        summary = summary_of(folder)
        assert summary.status == "silent"
        assert "probably killed" in summary.status_note

    def test_the_budget_of_an_unfinished_run_is_the_last_logged(self, tmp_path):
        folder = write_run(tmp_path / "run", status="running", steps=60)
        values = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(values | {"budget": {}}))
        assert summary_of(folder).prompts == 32 * 60

    def test_of_an_evaluate_run_one_line_is_the_result(self, tmp_path):
        folder = write_run(tmp_path / "run", steps=0)
        values = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(values | {"verb": "evaluate"}))
        lines = [evaluation(0, 0.0) | {"policy": "start: a"}, evaluation(1, 1.0) | {"policy": "b"}]
        write_jsonl(folder / "evaluations.jsonl", lines)
        assert summary_of(folder).start.policy == "start: a"
        write_jsonl(folder / "evaluations.jsonl", [evaluation(0, 1.0) | {"policy": "b"}])
        summary = summary_of(folder)
        assert (summary.start, summary.final.policy) == (None, "b")

    def test_groups_take_finished_seeds_once_each(self, tmp_path):
        for number, (seed, status) in enumerate([(1, "finished"), (1, "finished"), (2, "finished"), (3, "failed")]):
            write_run(tmp_path / str(number), seed=seed, status=status)
        runs = read_all(tmp_path)
        summaries = [summarise(run, now=time.time()) for run in runs]
        (row,) = group_rows(summaries, compare(runs))
        assert (row.num_finished, row.num_seeds) == (2, 3)
        finals = [summaries[i].final_metric(REWARD).mean for i in (1, 2)]
        assert row.reward.mean == pytest.approx(sum(finals) / 2)
        assert row.reward.high - row.reward.mean == pytest.approx(12.706 * abs(finals[0] - finals[1]) / 2, rel=1e-3)


class TestWords:
    def test_one_run_in_a_sentence(self, tmp_path):
        folder = write_run(tmp_path / "run")
        kl = {"kl/policy_start_nats": interval(9.8, 0.5)}
        with_rewards(folder, interval(0.31, 0.03), interval(0.74, 0.04), **kl)
        assert single_run_sentence(summary_of(folder)) == (
            "Gold reward on 128 held-out prompts rose from 0.310 [0.280, 0.340] to 0.740 [0.700, 0.780] "
            "at 9.8 nats from the start, after 50 updates."
        )

    def test_the_sentence_names_the_reward_that_judged_fresh_samples(self, tmp_path):
        """Not the one that was trained on: a guard may fall while that rises."""
        guard = {"fresh_samples": {"reward": {"_target_": "alignment.rewards.vader.VaderReward"}}}
        folder = write_run(tmp_path / "run", callbacks=guard)
        with_rewards(folder, interval(0.31, 0.03), interval(0.74, 0.04))
        assert single_run_sentence(summary_of(folder)).startswith(
            "Vader reward on 128 held-out prompts rose from 0.310"
        )

    @pytest.mark.parametrize(
        ("start", "final", "gain", "expected"),
        [
            (0.5, 0.2, None, "fell from"),
            (0.5, 0.52, None, "leave open whether it changed"),
            (0.5, 0.52, interval(0.02, 0.01), "rose from"),  # pairs decide where intervals overlap
            (0.5, 0.7, interval(0.2, 0.3), "leave open whether it changed"),
        ],
    )
    def test_the_verb_follows_the_intervals(self, tmp_path, start, final, gain, expected):
        folder = write_run(tmp_path / "run")
        more = {"reward/gain_against_start": gain} if gain else {}
        with_rewards(folder, interval(start, 0.05), interval(final, 0.05), **more)
        assert expected in single_run_sentence(summary_of(folder))

    def test_without_evaluations_no_result_is_claimed(self, tmp_path):
        summary = summary_of(write_run(tmp_path / "run", evaluate_every=None))
        assert "no result to state" in single_run_sentence(summary)

    def test_a_sweep_names_its_best_configuration(self, tmp_path):
        write_sweep(tmp_path, betas=(0.1, 1.0), seeds=2)
        runs = read_all(tmp_path)
        comparison, summaries = compare(runs), [summarise(run, now=time.time()) for run in runs]
        sentences = headline(summaries, group_rows(summaries, comparison), comparison.labels)
        assert sentences[0] == "4 runs: 4 finished."
        assert sentences[1].startswith("Highest final reward: beta=0.1, ")
        assert title(summaries, comparison) == "DPO of runs/pipeline/quickstart/sft/model: 4 runs over beta"


class TestNotices:
    def test_missing_data_is_said_plainly(self, tmp_path):
        assert missing(summary_of(write_run(tmp_path / "a"))) == []
        said = missing(summary_of(write_run(tmp_path / "b", evaluate_every=None)))
        assert said == ["no evaluation on fresh samples: reward, KL, length and win-rate are unknown"]
        folder = write_run(tmp_path / "c", evaluate_every=1000)
        assert any("of the start" in text for text in missing(summary_of(folder)))

    def test_a_log_ratio_is_not_passed_off_as_a_kl(self, tmp_path):
        folder = write_run(tmp_path / "run")
        ratio = {"log_ratio/policy_start_nats": interval(3.0, 0.1)}
        with_rewards(folder, interval(0.1, 0.1), interval(0.5, 0.1), **ratio)
        assert any("is no KL" in text for text in missing(summary_of(folder)))

    def test_equal_notices_are_joined_and_the_gravest_come_first(self, tmp_path):
        write_run(tmp_path / "0", evaluate_every=None)
        write_run(tmp_path / "1", evaluate_every=None)
        write_run(tmp_path / "2", status="failed", error="Boom: out of memory")
        found = notices([summarise(run, now=time.time()) for run in read_all(tmp_path)], empty=["7"])
        assert [(n.level, n.runs) for n in found] == [("error", ("7",)), ("error", ("2",)), ("info", ("0", "1"))]
        assert "Boom: out of memory" in found[1].text

    def test_a_monitor_that_repeats_itself_is_heard_once(self, tmp_path):
        folder = write_run(tmp_path / "run")
        lines = [{"step": s, "monitor": "length_bias", "message": f"grew to {s}"} for s in (10, 20, 30)]
        write_jsonl(folder / "warnings.jsonl", lines)
        (notice,) = notices([summary_of(folder)], empty=[])
        assert notice.what == "length bias"
        assert notice.text == "grew to 30 (said 3 times, steps 10 to 30; this is the last)"

    def test_different_starts_are_pointed_out(self, tmp_path):
        for name in ("a", "b"):
            folder = write_run(tmp_path / name)
            values = json.loads((folder / "manifest.json").read_text())
            values["model"]["weights_hash"] = name
            (folder / "manifest.json").write_text(json.dumps(values))
        found = notices([summarise(run, now=time.time()) for run in read_all(tmp_path)], empty=[])
        assert any("same weights" in notice.text for notice in found)
