"""The recipes of online methods: what they promise of their budgets, their prompts and their hidden rewards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from alignment.cli.app import sweep_jobs
from alignment.config.compose import compose, task_config
from alignment.config.validate import validate
from alignment.data.chat import render
from alignment.data.sources import FileSource
from alignment.pipeline import graph
from alignment.types import Rollout

from runs import job, train

METHODS = ["grpo", "rloo", "reinforce_pp", "ppo", "online_dpo"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rollouts(run_dir: Path) -> list[dict]:
    return [row for path in sorted((run_dir / "rollouts").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


class TestStoriesOnline:
    """Five online methods at the budget of the offline ones."""

    def test_the_sweep_is_every_method_with_every_seed_and_each_writes_as_much(self):
        overrides = ["+sweep=stories_online"]
        sweep = compose("train", overrides, run_mode=RunMode.MULTIRUN)
        jobs = [
            task_config(compose("train", ["hydra.mode=RUN", *one]))
            for one in sweep_jobs(sweep, list(sweep.hydra.overrides.task), None)
        ]
        for cfg in jobs:
            validate(cfg, "train")
        classes = {cfg.method._target_ for cfg in jobs}
        assert (len(classes), len(jobs)) == (5, 15)
        assert {cfg.seed for cfg in jobs} == {1, 2, 3}
        # Every opening once, with as many completions, each learnt from once, in as many updates.
        budget = {
            (plan.group_size, plan.epochs, plan.dynamic_sampling, cfg.data.batch_size, cfg.trainer.max_epochs)
            for cfg in jobs
            for plan in [cfg.method.rollouts]
        }
        assert budget == {(8, 1, None, 8, 1)}
        # The 256 training prompts make whole experiences.
        assert all(256 % (cfg.data.batch_size * cfg.method.rollouts.minibatches) == 0 for cfg in jobs)

    def test_prompts_samples_and_reward_are_those_of_the_offline_recipe(self):
        offline = task_config(compose("train", ["experiment=stories_sentiment"]))
        online = task_config(compose("train", ["experiment=stories_online"]))
        for key in ("data.train", "data.validation_size", "rollout", "reward", "model", "optim", "callbacks"):
            assert OmegaConf.select(online, key) == OmegaConf.select(offline, key), key

    @pytest.mark.slow
    @pytest.mark.parametrize("method", METHODS)
    def test_each_method_learns_from_eight_completions_of_every_opening(self, tmp_path, shared_data, method):
        weights = shared_data / "weights" / "stories260K"
        pairs = [
            {"prompt": f"Once upon a time there were {number}", "chosen": " cats", "rejected": " dogs"}
            for number in range(34)
        ]
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        cfg = job(
            tmp_path, "experiment=stories_online", f"method={method}", "model=stories260k", f"model.path={weights}",
            f"data.train.path={path}", "data.validation_size=2", "rollout.sampling.max_new_tokens=8", "export=null",
            "hardware.threads=1", small=False,
        )  # fmt: skip
        run_dir = train(cfg, tmp_path / "run")
        written = Counter(row["prompt_id"] for row in rollouts(run_dir))
        assert set(written.values()) == {8}
        # Online DPO keeps no prompt without a pair.
        assert len(written) == 32 or (method == "online_dpo" and len(written) > 16)
        budget = json.loads((run_dir / "manifest.json").read_text())["budget"]
        assert 0.9 * 32 * 8 * 8 < budget["tokens_generated"] <= 32 * 8 * 8
        before, after = lines(run_dir / "evaluations.jsonl")
        assert (before["num_prompts"], before["num_samples"]) == (2, 4)
        assert before["metrics"]["kl/policy_start_nats"]["mean"] == 0
        assert after["metrics"]["kl/policy_start_nats"]["mean"] != 0


@pytest.fixture(scope="module")
def pipeline():
    cfg = task_config(compose("pipeline", ["pipeline=stories_rlhf"]))
    stages = graph.read_stages(cfg, Path("runs") / "pipeline" / "stories_rlhf")
    configs = {name: graph._stage_config(stage, []) for name, stage in stages.items() if stage.verb != "report"}
    return stages, configs


class TestStoriesRLHF:
    """SFT, a reward model, PPO against it, and a gold reward that nothing is trained on."""

    def test_every_stage_is_valid(self, pipeline):
        stages, configs = pipeline
        assert list(configs) == ["sft", "reward", "ppo"]
        for name, cfg in configs.items():
            validate(cfg, stages[name].verb)

    def test_the_gold_reward_is_held_out(self, pipeline):
        _, configs = pipeline
        ppo = configs["ppo"]
        assert ppo.reward.paths == ["stage://reward/model"]
        gold = {name: part.reward._target_ for name, part in ppo.callbacks.fresh_samples.reward.parts.items()}
        assert gold == {
            "sentiment": "alignment.rewards.vader.VaderReward",
            "again": "alignment.rewards.repetition.RepetitionPenalty",
        }
        assert ppo.callbacks.reward_hacking.guard == "fresh/reward/total"
        for cfg in configs.values():
            assert "vader" not in str(cfg.reward).lower()
        # Policy, critic and reward model come from one start.
        assert ppo.model.path == configs["reward"].model.path == "stage://sft/model"
        assert ppo.critic.path == "stage://reward/model"

    @pytest.mark.slow
    def test_it_runs_from_sft_to_the_report(self, tmp_path, shared_data):
        common = ["model=stories260k", "trainer.max_steps=2", "data.batch_size=4", "data.micro_batch_size=4",
                  "rollout.sampling.max_new_tokens=8", "hardware.threads=1"]  # fmt: skip
        command = [str(Path(sys.executable).parent / "align"), "pipeline", "stories_rlhf", f"common={common}",
                   f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}"]  # fmt: skip
        environment = os.environ | {"ALIGNMENT_SHARED": str(shared_data.parent), "OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
        folder = tmp_path / "runs" / "pipeline" / "stories_rlhf"
        assert (folder / "report" / "report.html").is_file()
        first, *_ = lines(folder / "ppo" / "evaluations.jsonl")
        # Its parts' own components: the guard is not the reward that is trained on.
        assert {"reward/sentiment", "reward/sentiment/positive", "reward/again"} <= first["metrics"].keys()
        assert "reward/sentiment" not in json.dumps(rollouts(folder / "ppo")[0], default=str)


class TestMAWPS:
    """GRPO on word problems whose answers are numbers."""

    def test_every_answer_is_right_about_itself(self, shared_data):
        cfg = task_config(compose("train", ["experiment=smollm2_mawps"]))
        path = shared_data / "prompts" / "mawps_easy.jsonl"
        rows = FileSource(path=str(path), columns={"prompt": "input"}, as_chat=True).load()
        answers = [json.loads(row["answer"]) for row in rows]
        reward = instantiate(cfg.reward)

        def scores(text: str, *, more: int) -> set[float]:
            given = [
                Rollout("x", "", (), (), text.format(answer["target"] + more), "stop", 0, answer) for answer in answers
            ]
            return set(reward.score(given).total)

        assert len(answers) == 1475
        assert scores("They have 7 + 2.\nAnswer: {}", more=0) == {1.0}
        assert scores("They have 7 + 2.\nAnswer: {}", more=1) == {0.0}

    def test_the_instruction_is_the_system_message_of_a_chat_without_one(self, shared_data):
        cfg = task_config(compose("train", ["experiment=smollm2_mawps"]))
        tokenizer = AutoTokenizer.from_pretrained(shared_data / "weights" / "stories260K")
        tokenizer.chat_template = cfg.model.tokenizer.chat_template
        question = {"role": "user", "content": "What is 2 + 2?"}
        system, user, answer = render(tokenizer, [question], generation_prompt=True).split("<|im_end|>\n")
        assert system.startswith("<|im_start|>system\nSolve the problem")
        assert '"Answer: 42"' in system
        assert user == "<|im_start|>user\nWhat is 2 + 2?"
        assert answer == "<|im_start|>assistant\n"
        chat = [{"role": "system", "content": "Be brief."}, question]
        assert render(tokenizer, chat, generation_prompt=False) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
        )

    @pytest.mark.slow
    def test_it_runs(self, tmp_path, shared_data, monkeypatch):
        """With a model that knows no sums: completions of its prompts are judged, and none is right."""
        monkeypatch.setenv("ALIGNMENT_SHARED", str(shared_data.parent))
        cfg = job(
            tmp_path, "experiment=smollm2_mawps", "model=stories260k", "data.batch_size=2", "data.micro_batch_size=2",
            "data.max_length=512", "data.max_prompt_length=440", "method.rollouts.group_size=2", "trainer.max_steps=1",
            "rollout.sampling.max_new_tokens=8", "callbacks.fresh_samples.num_prompts=2", "export=null",
            "hardware.threads=1", small=False,
        )  # fmt: skip
        written = rollouts(train(cfg, tmp_path / "run"))
        assert len(written) == 4
        assert {row["reward"] for row in written} == {0.0}
