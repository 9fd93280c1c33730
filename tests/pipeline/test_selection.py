"""`align evaluate` with a selection, on a tiny model of the chains world."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from omegaconf import DictConfig
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.config.compose import compose, task_config
from alignment.config.validate import validate
from alignment.data.worlds.chain_sources import WorldChainPrompts
from alignment.data.worlds.tokenizer import chains_tokenizer
from alignment.pipeline import evaluate
from alignment.report import main as report
from alignment.utils.errors import ConfigError

SMALL = ["data=world_chains", "data.train.num_records=8", "data.validation.num_records=6", "num_prompts=5",
         "rollout.sampling.num_samples=4", "rollout.sampling.max_new_tokens=12"]  # fmt: skip
VOTE = ["selection=majority_vote"]
BEST = ["selection=best_of_n", "scorer=length", "scorer.target_tokens=4", "scorer.tolerance_tokens=8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    tokenizer = chains_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3,
    )  # fmt: skip
    untrained = LlamaForCausalLM(config)
    # It seldom draws one token: with many that end a completion, lengths differ.
    untrained.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(150, 200)]
    untrained.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def configured(model: Path, tmp_path: Path, *overrides: str) -> DictConfig:
    paths = [f"paths.runs={tmp_path}/runs", f"paths.cache={tmp_path}/cache", f"model.path={model}"]
    cfg = task_config(compose("evaluate", [*SMALL, *paths, *overrides]))
    validate(cfg, "evaluate")
    return cfg


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_best_of_n_is_what_the_samples_say(model, tmp_path, capsys):
    # The reward is a length too, another than the scorer's, so that an untrained model's samples differ in both.
    reward = ["reward=length", "reward.target_tokens=10", "reward.tolerance_tokens=5"]
    cfg = configured(model, tmp_path, *BEST, *reward, f"start.path={model}")
    run_dir = tmp_path / "run"
    evaluate.run(cfg, run_dir, [])
    before, after = lines(run_dir / "evaluations.jsonl")
    rows = lines(run_dir / "samples" / "step=000001.jsonl")
    assert len({row["score"] for row in rows}) > 3
    assert all(row["score"] == 1 - abs(row["num_tokens"] - 4) / 8 for row in rows)
    groups = [rows[first : first + 4] for first in range(0, 20, 4)]
    for size in (1, 2, 4):
        chosen, best = [], []
        for group in groups:
            for subset in itertools.combinations(group, size):
                chosen.append(max(subset, key=lambda row: row["score"])["reward"]["total"])
                best.append(max(row["reward"]["total"] for row in subset))
        assert after["metrics"][f"selection/reward_at_{size}"]["mean"] == pytest.approx(fmean(chosen))
        assert after["metrics"][f"selection/oracle_at_{size}"]["mean"] == pytest.approx(fmean(best))
    assert after["metrics"]["selection/mean_reward"] == pytest.approx(after["metrics"]["reward/total"])
    # The start is the same model here.
    assert before["metrics"]["selection/reward"] == after["metrics"]["selection/reward"]
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["metrics"]["selection/reward"] == after["metrics"]["selection/reward_at_4"]["mean"]
    assert manifest["metrics"]["kl/best_of_n_bound_nats"] == pytest.approx(0.636294)
    printed = capsys.readouterr().out
    assert "selection/oracle_at_2" in printed
    page = report.run([run_dir], tmp_path / "report.html")
    assert "selection/reward_at_2" in page.read_text(encoding="utf-8")


def test_votes_are_measured_by_the_right_answer(model, tmp_path):
    evaluate.run(configured(model, tmp_path, *VOTE), tmp_path / "run", [])
    (line,) = lines(tmp_path / "run" / "evaluations.jsonl")
    assert {"reward/found", "selection/reward_at_2", "selection/oracle"} <= line["metrics"].keys()
    assert not any(name.startswith("kl/") for name in line["metrics"])
    rows = lines(tmp_path / "run" / "samples" / "step=000000.jsonl")
    assert all("score" not in row for row in rows)
    assert {row["prompt_id"] for row in rows} == {f"chains/held_out/0/{number}" for number in range(5)}


def test_sizes_beyond_the_samples_are_refused_before_any_is_drawn(model, tmp_path):
    with pytest.raises(ConfigError, match=r"selection\.sizes: got \[8\]"):
        evaluate.run(configured(model, tmp_path, *VOTE, "selection.sizes=[8]"), tmp_path / "run", [])
    assert not (tmp_path / "run" / "samples").exists()


def test_what_is_wrong_with_the_scorer_is_named_as_the_scorers(model, tmp_path):
    cfg = configured(model, tmp_path, *BEST, "scorer.tolerance_tokens=0")
    with pytest.raises(ConfigError, match=r"^scorer\.tolerance_tokens: got 0"):
        evaluate.run(cfg, tmp_path / "run", [])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["selection=best_of_n"], r"scorer: got 'none', expected a scorer for BestOfN"),
        ([*VOTE, "selection.weights=sigmoid"], r"scorer: got 'none', expected a scorer for MajorityVote"),
        ([*VOTE, "scorer=length"], r"scorer: got 'LengthReward', expected none for equal votes"),
        (["scorer=length"], r"scorer: got 'LengthReward', expected none without a selection"),
        ([*BEST, "rollout.sampling.num_samples=1"], r"rollout\.sampling\.num_samples: got 1, expected at least 2"),
        ([*BEST, "reward=none"], r"reward: got 'none', expected a reward, to measure"),
        ([*VOTE, "reward=length"], r"selection\.pattern: .*'reward\.pattern' not found"),
        ([*VOTE, "selection.weights=half"], r"selection\.weights: got 'half'"),
        (["reward=gold"], r"reward: got 'gold'"),
    ],
)
def test_combinations_that_cannot_work_are_named(model, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        configured(model, tmp_path, *overrides)


def test_the_pipelines_stages_are_valid():
    stages = compose("pipeline", ["pipeline=chains"]).pipeline.stages
    for stage in stages.values():
        overrides = [item.replace("stage://", "/") for item in stage.overrides]
        validate(task_config(compose(stage.verb, overrides)), stage.verb)
    asked = [set(stages[name].overrides) for name in ("vote", "best_by_outcome", "best_by_process")]
    # All three choose among the same samples.
    assert {item for item in set.intersection(*asked) if item.startswith(("model", "data", "rollout"))} == {
        item for item in set.union(*asked) if item.startswith(("model", "data", "rollout"))
    }


def test_held_out_prompts_are_not_trained_on():
    texts = [
        {row["messages"][0]["content"] for row in WorldChainPrompts(
            num_records=200, seed=0, split=split, min_operations=4, max_operations=6).load()}
        for split in ("train", "held_out")
    ]  # fmt: skip
    assert not texts[0] & texts[1]
