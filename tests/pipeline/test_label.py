"""The verb label: counts against an independent recount, resuming, and what is written and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.config.compose import compose, task_config
from alignment.config.validate import validate
from alignment.data.records import RecordKind, from_row
from alignment.data.sources import FileSource
from alignment.data.worlds.tokenizer import chains_tokenizer
from alignment.models.logprob_model import LogprobModel
from alignment.pipeline import label
from alignment.rollout.engine import EncodedPrompt
from alignment.rollout.hf import HFEngine
from alignment.types import Sampling
from alignment.utils.errors import ConfigError, UserError

CHAT = [{"role": "user", "content": "Start with 27. Add 5."}]
# Of even and of odd lengths: the verifier of these tests counts letters.
STEPS = [
    ["27 + 5 = 32", "Answer: 32"],
    ["27 + 5= 22", "22 + 0 = 22", "Answer: 22"],
    ["Answer: 32"],
    ["27 + 5 = 31", "Wait!?", "It is 32.", "Answer: 32"],
]
SAMPLES = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = chains_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_verifier(monkeypatch):
    monkeypatch.setenv("ALIGNMENT_ALLOW_TARGETS", "verifiers")


@pytest.fixture
def data(tmp_path) -> Path:
    """Solutions whose labels mean nothing, since they are not to be looked at."""
    path = tmp_path / "solutions.jsonl"
    rows = [
        {"id": f"s{number}", "prompt": CHAT, "completions": steps, "labels": [0.25] * len(steps),
         "answer": {"rest": number % 2}}
        for number, steps in enumerate(STEPS)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def configured(model: Path, data: Path, tmp_path: Path, *overrides: str) -> DictConfig:
    settings = [
        f"model.path={model}", f"data.train.path={data}", f"paths.runs={tmp_path}/runs",
        f"paths.cache={tmp_path}/cache", "reward={_target_: verifiers.CountsLetters}",
        f"rollout.sampling.num_samples={SAMPLES}", "rollout.sampling.max_new_tokens=6", "rollout.sampling.batch_size=3",
    ]  # fmt: skip
    settings = settings if not any(text.startswith("reward=") for text in overrides) else [*settings[:4], *settings[5:]]
    cfg = task_config(compose("label", [*settings, *overrides]))
    validate(cfg, "label")
    return cfg


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def recount(model: Path) -> list[list[int]]:
    """Right continuations of each step, from tokens put together by hand; for the last step of the solution itself."""
    tokenizer = chains_tokenizer()
    engine = HFEngine(LogprobModel(LlamaForCausalLM.from_pretrained(model).eval(), chunk_tokens=8), tokenizer)
    sampling = Sampling(6, 1.0, 1.0, 0, SAMPLES, seed=0, batch_size=64, min_p=0.0, stop=[], bad_words=[])
    found = []
    for number, steps in enumerate(STEPS):
        counts = []
        for length in range(1, len(steps)):
            prefix = "\n".join(steps[:length]) + "\n"
            ids = tokenizer.encode("<|bos|><|user|>Start with 27. Add 5.<|assistant|>" + prefix)
            prompt = EncodedPrompt(f"s{number}/step {length}", CHAT, tuple(ids))
            rollouts = engine.generate([prompt], sampling)
            counts.append(sum(len(prefix + rollout.completion) % 2 == number % 2 for rollout in rollouts))
        found.append([*counts, int(len("\n".join(steps)) % 2 == number % 2)])
    return found


def test_labels_are_the_shares_of_continuations_that_are_right(model, data, tmp_path, capsys):
    run_dir = tmp_path / "run"
    label.run(configured(model, data, tmp_path), run_dir, [])
    counts = recount(model)
    assert len({count for row in counts for count in row[:-1]}) > 2
    rows = lines(run_dir / "steps.jsonl")
    assert [row["labels"] for row in rows] == [[*(n / SAMPLES for n in row[:-1]), row[-1]] for row in counts]
    # What is written is read back as judged steps, answers included: it trains as it is.
    source = FileSource(path=str(run_dir / "steps.jsonl"))
    assert source.kind is RecordKind.STEPWISE
    records = [from_row(source.kind, row) for row in source.load()]
    assert [list(record.steps) for record in records] == STEPS
    assert [record.id for record in records] == ["s0", "s1", "s2", "s3"]
    assert [list(record.labels) for record in records] == [row["labels"] for row in rows]
    assert [record.answer["rest"] for record in records] == [0, 1, 0, 1]
    assert all(record.prompt == CHAT for record in records)
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert (manifest["verb"], manifest["status"]) == ("label", "finished")
    assert manifest["artefacts"] == {"steps": "steps.jsonl"}
    flat = [value for row in rows for value in row["labels"]]
    solved = [row[-1] for row in counts]
    assert manifest["metrics"]["label/mean"] == pytest.approx(sum(flat) / len(flat))
    assert manifest["metrics"]["label/solved_share"] == sum(solved) / 4
    assert manifest["metrics"]["label/steps"] == 10
    assert manifest["budget"]["prompts"] == 6
    assert 6 * SAMPLES <= manifest["budget"]["tokens_generated"] <= 6 * SAMPLES * 6
    printed = capsys.readouterr().out
    assert f"4 solutions, {sum(solved)} of them right" in printed
    assert "Mean label of a step" in printed


def test_hard_labels_say_whether_any_continuation_is_right(model, data, tmp_path):
    label.run(configured(model, data, tmp_path, "labels=hard"), tmp_path / "run", [])
    wanted = [[float(count > 0) for count in row] for row in recount(model)]
    assert [row["labels"] for row in lines(tmp_path / "run" / "steps.jsonl")] == wanted


def test_a_killed_run_goes_on_and_labels_nothing_twice(model, data, tmp_path, monkeypatch):
    asked: list[list[str]] = []
    real = HFEngine.generate

    def generate(self, prompts, sampling):
        asked.append([prompt.id for prompt in prompts])
        if kill and len(asked) == 2:
            raise SystemExit(143)
        return real(self, prompts, sampling)

    kill = True
    monkeypatch.setattr(HFEngine, "generate", generate)
    monkeypatch.setattr(label, "_CHUNK_BATCHES", 1)
    cfg = configured(model, data, tmp_path)
    with pytest.raises(SystemExit):
        label.run(cfg, tmp_path / "killed", [])
    assert not (tmp_path / "killed" / "steps.jsonl").exists()
    assert json.loads((tmp_path / "killed" / "manifest.json").read_text())["status"] == "interrupted"
    (journal,) = (tmp_path / "cache" / "labels").iterdir()
    with journal.open("a") as file:  # a kill in the middle of a line
        file.write('{"solution": "ab')
    kill = False
    label.run(cfg, tmp_path / "second", [])
    first, second = ["s0/step 1"], ["s1/step 1", "s1/step 2"]
    assert asked == [first, second, second, ["s3/step 1", "s3/step 2", "s3/step 3"]]
    rows = (tmp_path / "second" / "steps.jsonl").read_text()
    label.run(configured(model, data, tmp_path, f"paths.cache={tmp_path}/other"), tmp_path / "whole", [])
    assert (tmp_path / "whole" / "steps.jsonl").read_text() == rows
    budgets = [json.loads((tmp_path / n / "manifest.json").read_text())["budget"] for n in ("second", "whole")]
    assert budgets[0] == budgets[1]
    asked.clear()
    # Hard labels come from the same counts; another model, another seed or another verifier does not.
    label.run(configured(model, data, tmp_path, "labels=hard", "rollout.sampling.batch_size=7"), tmp_path / "hard", [])
    assert asked == []
    label.run(configured(model, data, tmp_path, "rollout.sampling.seed=1"), tmp_path / "seed", [])
    assert asked


def test_demonstrations_are_split_at_the_separator(model, tmp_path):
    path = tmp_path / "demonstrations.jsonl"
    rows = [{"prompt": CHAT, "completion": "27 + 5 = 32\n\nAnswer: 32\n", "answer": {"rest": 0}}] * 2
    path.write_text("".join(json.dumps(row | {"id": str(n)}) + "\n" for n, row in enumerate(rows)))
    label.run(configured(model, path, tmp_path, "data.limit=1"), tmp_path / "run", [])
    (row,) = lines(tmp_path / "run" / "steps.jsonl")
    assert row["completions"] == ["27 + 5 = 32", "Answer: 32"]
    assert row["labels"][1] == 1.0  # 24 characters
    cfg = configured(model, path, tmp_path, "separator=' ки'")
    with pytest.raises(ConfigError, match=r"separator: got ' ки', expected .* it is in none of 2 completions"):
        label.run(cfg, tmp_path / "none", [])


def test_records_that_are_no_solutions_are_left_out_and_counted(model, tmp_path, caplog):
    path = tmp_path / "preferences.jsonl"
    sides = {"prompt": "Q", "chosen": " 32\nAnswer: 32", "rejected": " 22\nAnswer: 22"}
    rows = [sides | {"id": str(number), "probability": value} for number, value in enumerate((0.5, 0.9, 0.5))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    verifier = "reward={_target_: verifiers.AgreesWithAll}"
    label.run(configured(model, path, tmp_path, verifier), tmp_path / "run", [])
    assert [row["id"] for row in lines(tmp_path / "run" / "steps.jsonl")] == ["1"]
    assert "2 records left out: tie" in caplog.text
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(ConfigError, match="data: got 'no record that is a solution'"):
        label.run(configured(model, path, tmp_path, verifier), tmp_path / "none", [])


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["reward=length", "reward.target_tokens=16"], UserError, r"LengthReward gives .* a verifier gives 1"),
        (
            ["rollout.sampling.max_new_tokens=60"],
            UserError,
            r"prompt s0/step 1: .* do not fit the model's context of 64",
        ),
        (["rollout.sampling.temperature=0"], ConfigError, r"rollout\.sampling\.num_samples: got 5, expected 1 at temp"),
        (["separator=''"], ConfigError, r"separator: got ''"),
    ],
)
def test_what_cannot_work_is_named_before_anything_is_sampled(
    model, data, tmp_path, monkeypatch, overrides, error, message
):
    monkeypatch.setattr(HFEngine, "generate", None)
    with pytest.raises(error, match=message):
        label.run(configured(model, data, tmp_path, *overrides), tmp_path / "run", [])


def test_a_verifier_is_asked_for(model, data, tmp_path):
    cfg = configured(model, data, tmp_path)
    cfg.reward = None
    with pytest.raises(UserError, match=r"align label needs a verifier .* reward=answer"):
        label.run(cfg, tmp_path / "run", [])


def test_prompts_alone_are_no_solutions(model, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "Q", "answer": {"rest": 1}}) + "\n")
    with pytest.raises(ConfigError, match="data: got 'prompt records'"):
        label.run(configured(model, path, tmp_path), tmp_path / "run", [])
