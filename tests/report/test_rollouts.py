"""What an online method learnt from, on the page: the right completions, as text and nothing else."""

from __future__ import annotations

import json
import time

import pyarrow as pa
import pytest
from fake_runs import write_run
from pyarrow import parquet

from alignment.report.page import Page, render
from alignment.report.read import read_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \u202eevil \x1b[31m"


def rows(step: int, rewards: dict[str, tuple[float, ...]], **changes) -> list[dict]:
    return [
        {
            "step": step,
            "prompt_id": prompt_id,
            "prompt": json.dumps([{"role": "user", "content": f"Asks {prompt_id}."}]),
            "sample": sample,
            "completion": f"{prompt_id} {sample} at {step}",
            "finish_reason": "length" if sample else "stop",
            "completion_ids": [1] * (sample + 2),
            "reward": reward,
            "components": json.dumps({"tone": reward / 2}),
            "weight": 1.0,
            "advantages": [reward - 0.5, reward + 0.5] + [reward] * sample,
        }
        | changes
        for prompt_id, scores in rewards.items()
        for sample, reward in enumerate(scores)
    ]


GROUPS = {"even": (0.5, 0.5, 0.5), "wide": (0.25, -1.0, 1.0), "some": (0.1, 0.3, 0.2)}


@pytest.fixture
def folder(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "rollouts").mkdir()
    for number in range(5):
        write(folder, number, rows(4 * number, GROUPS))
    return folder


def write(folder, number: int, values: list[dict]) -> None:
    parquet.write_table(pa.Table.from_pylist(values), folder / "rollouts" / f"{number:06d}.parquet")


def page(folder) -> str:
    return render(Page([read_run(folder, name="run")], folder, [], time.time()))


def test_beginning_middle_and_end_with_the_best_and_the_worst(folder):
    stages = read_run(folder, name="run").stages
    assert [(stage.name, stage.step, stage.num_completions) for stage in stages] == [
        ("beginning", 0, 9),
        ("middle", 8, 9),
        ("end", 16, 9),
    ]
    shown = [(c.why, c.best.completion, c.worst.completion, c.spread) for c in stages[1].contrasts]
    assert shown == [
        ("widest spread", "wide 2 at 8", "wide 1 at 8", 2.0),
        ("median spread", "some 1 at 8", "some 0 at 8", pytest.approx(0.2)),
        ("no spread", "even 0 at 8", "even 2 at 8", 0.0),
    ]
    best = stages[1].contrasts[0].best
    assert (best.advantage, best.num_tokens, best.components) == (1.0, 4, {"tone": 0.5})
    assert "advantage −1.00" in page(folder)


def test_one_completion_a_prompt_is_ranked_over_the_batch(folder):
    for number in range(5):
        write(folder, number, rows(number, {"a": (0.2,), "b": (0.9,), "c": (-0.4,), "d": (0.5,)}))
    contrasts = read_run(folder, name="run").stages[0].contrasts
    assert [(c.why, c.best.reward, c.worst) for c in contrasts] == [
        ("highest reward", 0.9, None),
        ("median reward", 0.2, None),
        ("lowest reward", -0.4, None),
    ]
    assert "Worst</th>" not in page(folder)


def test_pairs_have_no_advantages_and_few_experiences_are_shown_once(folder):
    for number in range(1, 5):
        (folder / "rollouts" / f"{number:06d}.parquet").unlink()
    write(folder, 0, rows(0, GROUPS, advantages=None, weight=0.0))
    (stage,) = read_run(folder, name="run").stages
    assert stage.name == "beginning"
    assert stage.contrasts[0].best.advantage is None
    text = page(folder)
    assert "masked" in text
    assert "advantage " not in text.partition('id="rollouts"')[2].partition("</section>")[0]


def test_text_of_a_policy_stays_text(folder):
    write(folder, 0, rows(0, GROUPS, completion=HOSTILE, prompt=HOSTILE, prompt_id=HOSTILE, components=HOSTILE))
    text = page(folder)
    assert "alert(1)&lt;/script&gt;" in text
    assert "<img" not in text
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_shown(folder):
    (folder / "rollouts" / "000000.parquet").write_bytes(b"PAR1 half a file")
    write(folder, 4, [{"completion": "of another program"}])
    run = read_run(folder, name="run")
    assert [stage.name for stage in run.stages] == ["middle"]
    assert [problem.partition(" cannot")[0] for problem in run.problems] == [
        "rollouts/000000.parquet",
        "rollouts/000004.parquet",
    ]
    assert "rollouts/000000.parquet cannot be read" in page(folder)


def test_an_offline_run_has_no_such_section(tmp_path):
    text = page(write_run(tmp_path / "run"))
    assert 'id="rollouts"' not in text
    assert "#rollouts" not in text
