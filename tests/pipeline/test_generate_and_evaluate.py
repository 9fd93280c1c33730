"""The verbs generate and evaluate, from their own configuration, on tiny models of the embedded world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.config.compose import compose, task_config
from alignment.config.validate import validate
from alignment.data.sources import FileSource
from alignment.data.worlds.tokenizer import world_tokenizer
from alignment.pipeline import evaluate, generate
from alignment.pipeline.inference import one_device, start_model
from alignment.utils.errors import ConfigError, UserError

SMALL = ["rollout.sampling.max_new_tokens=6", "rollout.sampling.batch_size=16", "data.train.num_records=24",
         "data.validation.num_records=12", "num_prompts=5"]  # fmt: skip


def save_model(folder: Path, *, seed: int) -> Path:
    torch.manual_seed(seed)
    tokenizer = world_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # A model that knows nothing seldom draws one token: with many of them completions end at different lengths.
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(300, 500)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return save_model(folder / "policy", seed=0), save_model(folder / "start", seed=1)


def configured(verb: str, tmp_path: Path, *overrides: str) -> DictConfig:
    paths = [f"paths.runs={tmp_path}/runs", f"paths.cache={tmp_path}/cache"]
    cfg = task_config(compose(verb, [*SMALL, *paths, *overrides]))
    validate(cfg, verb)
    return cfg


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_generate_writes_rollouts_pairs_and_manifest(models, tmp_path):
    cfg = configured("generate", tmp_path, f"model.path={models[0]}", "reward=length", "pairing=best_worst",
                     "rollout.sampling.num_samples=3", "seed=4")  # fmt: skip
    run_dir = tmp_path / "run"
    generate.run(cfg, run_dir, ["seed=4"])
    rollouts = lines(run_dir / "rollouts.jsonl")
    assert len(rollouts) == 15
    assert len({row["prompt_id"] for row in rollouts}) == 5
    assert [row["sample"] for row in rollouts[:3]] == [0, 1, 2]
    assert all(len(row["completion_ids"]) == row["num_tokens"] for row in rollouts)
    best = {
        row["prompt_id"]: row["reward"]["total"] for row in sorted(rollouts, key=lambda row: row["reward"]["total"])
    }
    pairs = lines(run_dir / "pairs.jsonl")
    by_tokens = {(row["prompt_id"], tuple(row["completion_ids"])): row["reward"]["total"] for row in rollouts}
    for pair in pairs:
        assert by_tokens[pair["id"], tuple(pair["chosen_ids"])] == best[pair["id"]]
        assert pair["margin"] > 0
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert (manifest["verb"], manifest["status"], manifest["overrides"]) == ("generate", "finished", ["seed=4"])
    assert manifest["artefacts"] == {"rollouts": "rollouts.jsonl", "pairs": "pairs.jsonl"}
    assert manifest["budget"]["tokens_generated"] == sum(row["num_tokens"] for row in rollouts)
    assert manifest["metrics"]["pairing/pairs"] == len(pairs)
    assert manifest["model"]["source"] == str(models[0])
    # Pairs train as they are: the data layer reads them, tokens and all.
    assert len(FileSource(path=str(run_dir / "pairs.jsonl")).load()) == len(pairs)


def test_generate_without_any_pair_says_why(models, tmp_path):
    cfg = configured("generate", tmp_path, f"model.path={models[0]}", "reward=length", "pairing=best_worst",
                     "rollout.sampling.num_samples=2", "rollout.sampling.max_new_tokens=1")  # fmt: skip
    with pytest.raises(UserError, match="none of 5 prompts gave a pair: 5 x tied rewards"):
        generate.run(cfg, tmp_path / "run", [])
    assert len(lines(tmp_path / "run" / "rollouts.jsonl")) == 10
    assert not (tmp_path / "run" / "pairs.jsonl").exists()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


def test_generate_takes_held_out_prompts_that_no_training_prompt_equals(models, tmp_path):
    asked = {}
    for split in ("train", "held_out"):
        cfg = configured("generate", tmp_path, f"model.path={models[0]}", f"split={split}", "num_prompts=null")
        generate.run(cfg, tmp_path / split, [])
        asked[split] = {row["prompt"][0]["content"] for row in lines(tmp_path / split / "rollouts.jsonl")}
        assert not (tmp_path / split / "pairs.jsonl").exists()
    assert len(asked["train"]) > len(asked["held_out"]) > 5
    assert not asked["train"] & asked["held_out"]


def test_generate_completes_a_typed_prompt(models, tmp_path, capsys):
    cfg = configured("generate", tmp_path, f"model.path={models[0]}", "prompt='Write [it] down.'",
                     "rollout.sampling.num_samples=2")  # fmt: skip
    generate.run(cfg, tmp_path / "run", [])
    rows = lines(tmp_path / "run" / "rollouts.jsonl")
    assert len(rows) == 2
    assert rows[0]["prompt"] == [{"role": "user", "content": "Write [it] down."}]
    assert rows[0]["prompt_ids"][0] == world_tokenizer().bos_token_id
    assert capsys.readouterr().out.count("Write [it] down.") == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pairing=best_worst"], "reward: got None, expected a reward"),
        (["pairing=best_worst", "reward=length"], r"rollout\.sampling\.num_samples: got 1, expected at least 2"),
        (["num_prompts=0"], "num_prompts: got 0"),
        (["hardware=cpu_ddp2"], r"hardware\.devices: got '2 on 1 nodes', expected 1"),
    ],
)
def test_generate_names_what_cannot_work(models, tmp_path, overrides, message):
    cfg = configured("generate", tmp_path, f"model.path={models[0]}", *overrides)
    with pytest.raises(ConfigError, match=message):
        generate.run(cfg, tmp_path / "run", [])


def test_evaluate_measures_both_models_on_the_same_prompts(models, tmp_path, capsys):
    policy, start = models
    cfg = configured("evaluate", tmp_path, f"model.path={policy}", f"start.path={start}", "reward=length",
                     "rollout.sampling.num_samples=2")  # fmt: skip
    run_dir = tmp_path / "run"
    evaluate.run(cfg, run_dir, [])
    before, after = lines(run_dir / "evaluations.jsonl")
    assert (before["step"], after["step"]) == (0, 1)
    assert before["metrics"]["kl/policy_start_nats"]["mean"] == 0
    assert after["metrics"]["kl/policy_start_nats"]["mean"] > 0
    assert {"win_rate/against_start", "reward/gain_against_start", "reward/total"} <= after["metrics"].keys()
    samples = [lines(run_dir / "samples" / f"step=00000{step}.jsonl") for step in (0, 1)]
    assert [row["prompt_id"] for row in samples[0]] == [row["prompt_id"] for row in samples[1]]
    assert after["num_samples"] == len(samples[1]) == 10
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["status"] == "finished"
    assert manifest["metrics"]["reward/total"] == after["metrics"]["reward/total"]["mean"]
    printed = capsys.readouterr().out
    assert "kl/policy_start_nats" in printed
    assert "win_rate/against_start" in printed
    evaluate.run(cfg, run_dir, [])
    assert len(lines(run_dir / "evaluations.jsonl")) == 2


def test_evaluate_without_a_start_has_no_kl(models, tmp_path):
    cfg = configured("evaluate", tmp_path, f"model.path={models[0]}", "reward=none")
    evaluate.run(cfg, tmp_path / "run", [])
    (line,) = lines(tmp_path / "run" / "evaluations.jsonl")
    assert line["step"] == 0
    assert not {"kl/policy_start_nats", "win_rate/against_start", "reward/total"} & line["metrics"].keys()


def test_the_start_is_the_same_kind_of_model_from_another_path():
    cfg = OmegaConf.create(
        {"model": {"path": "a", "revision": "x", "dtype": "float32"}, "start": {"path": "b", "revision": None}}
    )
    assert start_model(cfg) == {"path": "b", "revision": None, "dtype": "float32"}
    fresh = OmegaConf.create({"model": {"architecture": "llama"}, "start": {"path": "b", "revision": None}})
    with pytest.raises(ConfigError, match=r"start\.path: .*the model has no path"):
        start_model(fresh)


def test_the_hardware_group_means_one_device(monkeypatch):
    cpu = OmegaConf.create({"accelerator": "cpu", "devices": 1, "num_nodes": 1})
    assert one_device(cpu) == torch.device("cpu")
    for change in ({"devices": -1}, {"devices": 2}, {"devices": [0, 1]}, {"num_nodes": 2}):
        with pytest.raises(ConfigError, match=r"hardware\.devices"):
            one_device(OmegaConf.merge(cpu, change))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with open_dict(cpu), pytest.raises(ConfigError, match=r"hardware\.accelerator: got 'cuda', expected cpu"):
        one_device(OmegaConf.merge(cpu, {"accelerator": "cuda"}))
