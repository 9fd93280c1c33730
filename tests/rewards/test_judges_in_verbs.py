"""Trained judges from their configuration, in the verbs and callbacks that take a reward."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from alignment.config.compose import compose, task_config
from alignment.config.validate import validate
from alignment.pipeline import evaluate, generate
from alignment.rewards.model import ModelReward
from alignment.types import Rollout

from runs import SMALL as SMALL_RUN
from runs import exported, job, metrics, train

SMALL = ["rollout.sampling.max_new_tokens=8", "data.train.num_records=24", "data.validation.num_records=12",
         "num_prompts=4", "rollout.sampling.num_samples=3"]  # fmt: skip


def configured(verb: str, tmp_path: Path, *overrides: str) -> DictConfig:
    paths = [f"paths.runs={tmp_path}/runs", f"paths.cache={tmp_path}/cache"]
    cfg = task_config(compose(verb, [*SMALL, *paths, *overrides]))
    validate(cfg, verb)
    return cfg


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_generate_makes_pairs_by_an_ensemble(save, tmp_path):
    judges = [save("score", seed=1), save("score", "gpt2", seed=2)]
    cfg = configured(
        "generate", tmp_path, f"model.path={save('language')}", "reward=model", "pairing=best_worst",
        f"reward.paths=[{judges[0]},{judges[1]}]", "reward.aggregate=min",
    )  # fmt: skip
    generate.run(cfg, tmp_path / "run", [])
    rows = lines(tmp_path / "run" / "rollouts.jsonl")
    assert len(rows) == 12
    for row in rows:
        components = row["reward"]["components"]
        assert row["reward"]["total"] == min(components["member_1"], components["member_2"])
    by_hand = ModelReward(
        paths=[str(judges[0])], revision=None, aggregate="mean", variance_coefficient=None, dtype="float32",
        device="cpu", batch_size=1, max_length=None, tokenizer=instantiate(cfg.reward.tokenizer),
    ).score([Rollout("x", row["prompt"], (), (), row["completion"], "stop", 0) for row in rows])  # fmt: skip
    assert [row["reward"]["components"]["member_1"] for row in rows] == pytest.approx(by_hand.total, abs=1e-5)
    pairs = lines(tmp_path / "run" / "pairs.jsonl")
    totals = {(row["prompt_id"], row["completion"]): row["reward"]["total"] for row in rows}
    for pair in pairs:
        best = totals[pair["id"], pair["chosen"][0]["content"]]
        assert best == max(value for (name, _), value in totals.items() if name == pair["id"])
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert {"reward/member_1", "reward/spread", "reward/prompt_cut"} <= manifest["metrics"].keys()


def test_evaluate_measures_with_a_process_reward_model(save, tmp_path):
    cfg = configured(
        "evaluate", tmp_path, f"model.path={save('language')}", "reward=process", f"reward.path={save('steps')}",
        "reward.separator=' '",
    )  # fmt: skip
    evaluate.run(cfg, tmp_path / "run", [])
    (line,) = lines(tmp_path / "run" / "evaluations.jsonl")
    assert 0 < line["metrics"]["reward/total"]["mean"] < 1
    assert {"reward/mean", "reward/product", "reward/last", "reward/steps", "reward/first_error_step"} <= line[
        "metrics"
    ].keys()


def test_fresh_samples_are_judged_and_training_is_not_disturbed(save, tmp_path):
    small = [override for override in SMALL_RUN if "fresh_samples" not in override]
    common = [*small, "method=dpo", "trainer.max_steps=2"]
    fresh = ["callbacks.fresh_samples.num_prompts=2", "callbacks.fresh_samples.every_n_steps=1",
             "rollout.sampling.max_new_tokens=4", "reward=model", f"reward.paths=[{save('score')}]"]  # fmt: skip
    watched = train(job(tmp_path, *common, *fresh, small=False), tmp_path / "watched")
    plain = train(job(tmp_path, *common, "callbacks.fresh_samples=null", small=False), tmp_path / "plain")
    measured = lines(watched / "evaluations.jsonl")
    assert [line["step"] for line in measured] == [0, 1, 2]
    assert all("reward/total" in line["metrics"] for line in measured)
    assert all(torch.equal(value, exported(plain)[name]) for name, value in exported(watched).items())


def plain_logits(folder: Path, auto, text: str) -> torch.Tensor:
    """What transformers says of a text at each of its tokens, or of the whole."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), auto.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(
            **tokenizer(text, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)
        ).logits[0]


def test_what_method_reward_model_exports_is_served_as_it_was_trained(tmp_path):
    small = [override for override in SMALL_RUN if "fresh_samples" not in override]
    run_dir = train(job(tmp_path, *small, "method=reward_model", "trainer.max_steps=2", small=False), tmp_path / "run")
    cfg = configured("generate", tmp_path, "model.path=x", "reward=model", f"reward.paths=[{run_dir / 'model'}]")
    rewards = instantiate(cfg.reward, _convert_="all").score(
        [Rollout("p", [{"role": "user", "content": "Is tea hot?"}], (), (), "Wow, the tea was great!", "stop", 0)]
    )
    text = "<|bos|><|user|>Is tea hot?<|assistant|>Wow, the tea was great!<|eos|>"
    wanted = plain_logits(run_dir / "model", AutoModelForSequenceClassification, text)
    assert rewards.total[0] == pytest.approx(wanted.item(), abs=1e-5)


def test_what_method_prm_exports_is_served_as_it_was_trained(tmp_path):
    # The method brings the chains world, its model included.
    small = [override for override in SMALL_RUN if "fresh_samples" not in override and override != "model=world_init"]
    run_dir = train(job(tmp_path, *small, "method=prm", "trainer.max_steps=2", small=False), tmp_path / "run")
    cfg = configured("generate", tmp_path, "model.path=x", "reward=process", f"reward.path={run_dir / 'model'}")
    rewards = instantiate(cfg.reward, _convert_="all").score(
        [Rollout("p", [{"role": "user", "content": "Add 5."}], (), (), "27 + 5 = 32\nAnswer: 32\n", "stop", 0)]
    )
    first = plain_logits(
        run_dir / "model", AutoModelForTokenClassification, "<|bos|><|user|>Add 5.<|assistant|>27 + 5 = 32"
    )
    second = plain_logits(
        run_dir / "model", AutoModelForTokenClassification, "<|bos|><|user|>Add 5.<|assistant|>27 + 5 = 32\nAnswer: 32"
    )
    wanted = [logits[-1].softmax(-1)[1].item() for logits in (first, second)]
    assert rewards.total[0] == pytest.approx(min(wanted), abs=1e-5)
    assert rewards.components["last"][0] == pytest.approx(wanted[1], abs=1e-5)


def test_grpo_learns_from_what_method_prm_exports(tmp_path):
    """Every completion that was trained on has the score that the exported model gives it."""
    small = [override for override in SMALL_RUN if override != "model=world_init"]
    prm = train(job(tmp_path, *small, "method=prm", "trainer.max_steps=4", small=False), tmp_path / "prm")
    judge = ["reward=process", f"reward.path={prm / 'model'}"]
    # Fresh weights end a line in one completion of ten: 64 are enough for some of more than one step.
    online = ["method=grpo", "data=world_chains", "model=chains_init", "method.rollouts.group_size=8",
              "rollout.sampling.max_new_tokens=32", "trainer.max_steps=2"]  # fmt: skip
    run_dir = train(job(tmp_path, *small, *online, *judge, small=False), tmp_path / "grpo")

    reward = instantiate(configured("generate", tmp_path, "model.path=x", *judge).reward, _convert_="all")
    logged = metrics(run_dir)
    assert set(logged) == {1, 2}
    for number, file in enumerate(sorted((run_dir / "rollouts").glob("*.parquet")), start=1):
        rows = pq.read_table(file).to_pylist()
        assert len(rows) == 64
        seen = [Rollout(row["prompt_id"], json.loads(row["prompt"]), (), (), row["completion"], "stop", 0)
                for row in rows]  # fmt: skip
        wanted = reward.score(seen)
        assert [row["reward"] for row in rows] == pytest.approx(wanted.total, abs=1e-5)
        assert logged[number]["train/reward/total"] == pytest.approx(sum(wanted.total) / 64, abs=1e-5)
        assert logged[number]["train/reward/steps"] == sum(wanted.components["steps"]) / 64
        advantages = torch.tensor([row["advantages"][0] for row in rows]).reshape(8, 8)
        best = torch.tensor(wanted.total).reshape(8, 8).argmax(1)
        assert (advantages.argmax(1) == best).all()
    assert logged[1]["train/reward/steps"] > 1
    assert logged[1]["train/reward/group_std"] > 0
