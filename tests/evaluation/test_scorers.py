"""`align evaluate` with a reward as the scorer, on tiny models of the embedded worlds.

The same reward measures and chooses: then each sample's score is its reward, and the choice is the oracle's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from alignment.config.compose import compose, task_config
from alignment.config.validate import validate
from alignment.data.worlds.tokenizer import chains_tokenizer, world_tokenizer
from alignment.pipeline import evaluate

SIZES = (1, 2, 4, 16)
SMALL = (
    "data.train.num_records=8",
    "data.validation.num_records=12",
    "num_prompts=12",
    "rollout.sampling.num_samples=16",
    "rollout.sampling.batch_size=64",
)
WORLD = ("data=world", "rollout.sampling.max_new_tokens=6")
#: Answers are numbers of up to two digits.
CHAINS = ("data=world_chains", "rollout.sampling.max_new_tokens=2", "rollout.sampling.num_samples=64")
SUM = (
    *("{0}=composite", "+reward@{0}.parts.short.reward=length", "+{0}.parts.short.weight=1"),
    *("{0}.parts.short.reward.target_tokens=3", "{0}.parts.short.reward.tolerance_tokens=6"),
    *("+reward@{0}.parts.fresh.reward=repetition", "+{0}.parts.fresh.weight=0.5", "{0}.parts.fresh.reward.n=1"),
)
#: What to compose, once for the reward and once for the scorer.
SCORERS = {
    "repetition": (WORLD, ("{0}=repetition", "{0}.n=1")),
    "composite": (WORLD, SUM),
    "answer": (CHAINS, ("{0}=answer",)),
}


def save_model(folder: Path, tokenizer: PreTrainedTokenizerBase, likely: list[str]) -> Path:
    """Saves a model that was never trained and mostly writes a few tokens: some repeat, and some numbers are right."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(likely)] *= 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        WORLD[0]: save_model(folder / "world", world_tokenizer(), [*"abcdefgh", "<|eos|>"]),
        CHAINS[0]: save_model(folder / "chains", chains_tokenizer(), [*"0123456789", "<|eos|>"]),
    }


def run(folder: Path, model: Path, *overrides: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Evaluates; returns the metrics' means and the samples."""
    paths = [f"paths.runs={folder}/runs", f"paths.cache={folder}/cache", f"model.path={model}"]
    cfg = task_config(compose("evaluate", [*SMALL, *paths, *overrides]))
    validate(cfg, "evaluate")
    evaluate.run(cfg, folder / "run", [])
    manifest = json.loads((folder / "run" / "manifest.json").read_text(encoding="utf-8"))
    samples = (folder / "run" / "samples" / "step=000000.jsonl").read_text(encoding="utf-8").splitlines()
    return manifest["metrics"], [json.loads(line) for line in samples]


@pytest.mark.parametrize("name", SCORERS)
def test_best_of_n_by_a_reward_that_also_measures_is_the_oracle(models, tmp_path, name):
    data, overrides = SCORERS[name]
    both = [item.format(group) for group in ("reward", "scorer") for item in overrides]
    sizes = f"selection.sizes=[{','.join(map(str, SIZES))}]"
    metrics, samples = run(tmp_path, models[data[0]], *data, "selection=best_of_n", sizes, *both)
    scores = [sample["score"] for sample in samples]
    assert scores == [sample["reward"]["total"] for sample in samples]
    assert len(set(scores)) > 1
    curve = [metrics[f"selection/reward_at_{size}"] for size in SIZES]
    assert curve == pytest.approx([metrics[f"selection/oracle_at_{size}"] for size in SIZES])
    assert curve == sorted(curve)
    assert curve[-1] > curve[0] == pytest.approx(metrics["reward/total"])


def test_another_reward_measures_what_a_scorer_chose(models, tmp_path):
    reward = ("reward=length", "reward.target_tokens=4", "reward.tolerance_tokens=3")
    scorer = ("selection=best_of_n", "scorer=repetition", "scorer.n=1")
    metrics, samples = run(tmp_path, models[WORLD[0]], *WORLD, *reward, *scorer)
    groups = [samples[start : start + 16] for start in range(0, len(samples), 16)]
    chosen = [max(group, key=lambda sample: sample["score"]) for group in groups]
    assert metrics["selection/reward"] == pytest.approx(sum(s["reward"]["total"] for s in chosen) / len(groups))
    assert metrics["selection/reward"] < metrics["selection/oracle"]


def test_votes_that_a_verifier_weighs_find_every_right_answer(models, tmp_path):
    vote = ("selection=majority_vote", "selection.weights=score", "scorer=answer")
    chosen, _ = run(tmp_path, models[CHAINS[0]], *CHAINS, *vote)
    assert chosen["selection/reward_at_1"] < chosen["selection/reward"] == chosen["selection/oracle"]
