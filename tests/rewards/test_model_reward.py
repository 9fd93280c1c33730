"""Reward models as a reward: the same numbers as in plain transformers, ensembles, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignment.config.paths import conf_dir
from alignment.data.chat_templates import TEMPLATES
from alignment.data.tokenizer import TokenizerOptions
from alignment.data.worlds.tokenizer import world_tokenizer
from alignment.models.backbone import PretrainedModel
from alignment.models.export import export
from alignment.models.score_model import SequenceScorer
from alignment.rewards.model import ModelReward, aggregated
from alignment.types import Head, Rollout
from alignment.utils.errors import BrokenJudgeError, ConfigError, UserError

FAMILIES = ["gpt2", "llama", "qwen2", "mistral", "gemma", "phi"]
CHAT = [{"role": "user", "content": "Write a casual review of the soup at the castle."}]
COMPLETIONS = ["Wow, the soup was great!", "No.", "The soup at the castle was dull, and the look was grim, too."]


def rollout(completion: str, *, prompt: object = CHAT, name: str = "line 7") -> Rollout:
    return Rollout(name, prompt, (1, 2), (5,), completion, "stop", 0)


CHATS = [rollout(completion) for completion in COMPLETIONS]
TEXTS = [rollout(f" {completion}", prompt="The soup at the castle:") for completion in COMPLETIONS]


def reward(*paths: Path, **changes) -> ModelReward:
    cfg = OmegaConf.load(conf_dir() / "reward" / "model.yaml")
    return instantiate(OmegaConf.merge(cfg, {"paths": [str(path) for path in paths], "device": "cpu"}, changes))


def plain_scores(folder: Path, rollouts: list[Rollout], *, side: str = "right") -> torch.Tensor:
    """What transformers says, with padding of its own and its own search for where a sequence ends."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side=side)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = []
    for item in rollouts:
        if isinstance(item.prompt, str):
            texts.append(item.prompt + item.completion + tokenizer.eos_token)
        else:
            turns = [*item.prompt, {"role": "assistant", "content": item.completion}]
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False))
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        return model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], position_ids=positions
        ).logits[:, 0]


def scores_alone(folder: Path, sequences: list[list[int]]) -> torch.Tensor:
    """Each sequence without padding, read at its last token by hand."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        ends = [model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in sequences]
        return torch.stack([model.score(end)[0] for end in ends])


def close(got: tuple[float, ...], wanted: torch.Tensor) -> None:
    assert torch.tensor(got).std() > 0.1  # scores of different texts differ
    torch.testing.assert_close(torch.tensor(got), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rollouts", [CHATS, TEXTS], ids=["chat", "text"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_transformers_scores_the_same_here(save, family, rollouts, side):
    folder = save("score", family)
    for batch_size in (1, 3):
        close(reward(folder, batch_size=batch_size).score(rollouts).total, plain_scores(folder, rollouts, side=side))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_was_exported_here_scores_the_same_in_transformers(save, family, tmp_path):
    source = PretrainedModel(
        path=str(save("language", family)), revision=None, dtype="float32", attention="sdpa", quantization=None,
        gradient_checkpointing=False, compile=False, chunk_tokens=1, layout="auto",
        tokenizer=TokenizerOptions(None, None, None, None),
    )  # fmt: skip
    model = SequenceScorer(source.load(Head.SCORE, seed=3))
    export(model, source.tokenizer(), tmp_path / "model", adapter="merged", card="", is_writer=True)
    close(reward(tmp_path / "model").score(CHATS).total, plain_scores(tmp_path / "model", CHATS))


def test_t27_the_last_real_token_is_read_where_padding_is_the_end_of_sequence(save):
    folder = save("score")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": c}]) for c in COMPLETIONS]
    sequences = [list(ids["input_ids"]) for ids in texts]
    assert {ids[-1] for ids in sequences} == {tokenizer.eos_token_id}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": tokenizer.eos_token_id}))
    wanted = scores_alone(folder, sequences)
    for options in ({}, {"batch_size": 1}, {"tokenizer": {"pad_token": tokenizer.eos_token}}):
        close(reward(folder, **options).score(CHATS).total, wanted)


def test_the_order_of_roll_outs_and_the_size_of_a_batch_change_nothing(save):
    judge = reward(save("score"), batch_size=2)
    total = judge.score(CHATS + TEXTS).total
    turned = judge.score((CHATS + TEXTS)[::-1]).total
    assert turned[::-1] == pytest.approx(total, abs=1e-5)
    assert judge.score([]).total == ()


def test_every_member_of_an_ensemble_sees_its_own_tokens(save):
    folders = [save("score", seed=1), save("score", "qwen2", seed=2), save("score", "gpt2", seed=3)]
    second = AutoTokenizer.from_pretrained(folders[1])
    second.chat_template = TEMPLATES["plain"]
    second.save_pretrained(folders[1])
    rewards = reward(*folders).score(CHATS)
    for number, folder in enumerate(folders, start=1):
        assert rewards.components[f"member_{number}"] == pytest.approx(reward(folder).score(CHATS).total, abs=1e-6)
    text = CHAT[0]["content"] + "\n" + COMPLETIONS[0]
    ids = [*second(text)["input_ids"], second.eos_token_id]
    assert rewards.components["member_2"][0] == pytest.approx(scores_alone(folders[1], [ids])[0].item(), abs=1e-5)
    members = torch.tensor([rewards.components[f"member_{number}"] for number in (1, 2, 3)], dtype=torch.float64)
    assert rewards.total == pytest.approx(members.mean(0).tolist(), abs=1e-12)
    assert rewards.components["spread"] == pytest.approx(members.std(0, unbiased=False).tolist(), abs=1e-12)
    assert reward(*folders, aggregate="min").score(CHATS).total == pytest.approx(members.min(0).values.tolist())
    uncertain = reward(*folders, aggregate="mean_minus_variance", variance_coefficient=0.5).score(CHATS)
    assert uncertain.total == pytest.approx((members.mean(0) - 0.5 * members.var(0, unbiased=False)).tolist())


def test_aggregates_by_hand():
    scores = torch.tensor([[1.0, -2.0], [2.0, -2.0], [6.0, -2.0]])
    assert aggregated(scores, aggregate="mean", coefficient=None).tolist() == [3.0, -2.0]
    assert aggregated(scores, aggregate="min", coefficient=None).tolist() == [1.0, -2.0]
    # Deviations from 3 are -2, -1 and 3: the variance is 14 / 3.
    got = aggregated(scores, aggregate="mean_minus_variance", coefficient=0.3)
    assert got.tolist() == pytest.approx([3.0 - 0.3 * 14 / 3, -2.0])


def test_a_prompt_that_is_too_long_loses_its_beginning_and_is_counted(save, caplog):
    folder = save("score")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = "The soup was great. " * 10
    long = rollout(" It was.", prompt=words)
    prompt, completion = tokenizer(words)["input_ids"], tokenizer(" It was.")["input_ids"]
    rewards = reward(folder, max_length=20).score([long, *TEXTS[:2]])
    kept = [*prompt, *completion, tokenizer.eos_token_id][-20:]
    assert rewards.total[0] == pytest.approx(scores_alone(folder, [kept])[0].item(), abs=1e-5)
    assert rewards.components["prompt_cut"] == (1.0, 0.0, 0.0)
    assert "the beginning of 1 prompts was cut off" in caplog.text
    # A chat keeps the token that begins it.
    chat = tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": "No."}])["input_ids"]
    cut = reward(folder, max_length=8).score([rollout("No.")])
    kept = [tokenizer.bos_token_id, *chat[-7:]]
    assert cut.total[0] == pytest.approx(scores_alone(folder, [kept])[0].item(), abs=1e-5)


def test_the_models_context_is_a_limit_and_a_completion_is_never_cut(save):
    folder = save("score", context=16)
    assert reward(folder).score([rollout(" It was.", prompt="The soup was great. " * 10)]).components["prompt_cut"] == (
        1.0,
    )
    with pytest.raises(UserError, match=r"reward\.paths=.*prompt line 7: its completion has \d+ tokens .* but 16 are"):
        reward(folder).score([rollout("The soup was great. " * 10)])
    with pytest.raises(ConfigError, match=r"reward\.max_length: got 17, expected at most 16"):
        reward(folder, max_length=17).score(CHATS)


@pytest.mark.parametrize("completion", ["", " \n"])
def test_an_empty_answer_is_the_end_of_sequence_alone(save, completion):
    folder = save("score")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rewards = reward(folder).score([rollout(completion, prompt="The soup"), rollout("", prompt=CHAT)])
    text = [*tokenizer("The soup")["input_ids"], tokenizer.eos_token_id]
    chat = tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": ""}])["input_ids"]
    close(rewards.total, scores_alone(folder, [text, list(chat)]))


def test_scoring_leaves_the_random_state_alone_and_ignores_the_callers_precision(save):
    folder = save("score")
    state = torch.get_rng_state()
    plain = reward(folder).score(CHATS).total
    assert torch.equal(torch.get_rng_state(), state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reward(folder).score(CHATS).total == plain
    assert reward(folder, dtype="bfloat16").score(CHATS).total == pytest.approx(plain, abs=0.5)


def test_a_language_model_is_refused(save):
    folder = save("language")
    with pytest.raises(ConfigError, match=r"reward\.paths: got '.*language-llama.*', expected a sequence classifier .* "
                       r"it is a LlamaForCausalLM: train one with align train method=reward_model"):  # fmt: skip
        reward(folder).score(CHATS)


def test_several_outputs_are_refused(save):
    with pytest.raises(ConfigError, match=r"reward\.paths: .*but it has 3 outputs"):
        reward(save("score", num_labels=3)).score(CHATS)


def test_a_head_that_is_missing_is_refused(save):
    folder = save("score")
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BrokenJudgeError, match=r"1 weights do not fit config\.json: score\.weight is missing.*random"):
        reward(folder).score(CHATS)


def test_a_pickle_is_refused(save):
    folder = save("score")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BrokenJudgeError, match=r"reward\.paths=.*the weights cannot be loaded: .*safetensors"):
        reward(folder).score(CHATS)


def test_weights_that_are_not_finite_are_named(save):
    folder = save("score")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][world_tokenizer()("Wow")["input_ids"][0]] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"reward\.paths=.*1 of 3 scores are not finite; try reward\.dtype=float32"):
        reward(folder).score(CHATS)


def test_a_chat_needs_a_template_of_the_reward_model(save):
    folder = save("score")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"reward\.tokenizer\.chat_template: got None"):
        reward(folder).score(CHATS)
    given = reward(folder, tokenizer={"chat_template": "plain"}).score([*CHATS, rollout("")])
    assert len(set(given.total)) == 4


def test_a_path_that_is_not_there_is_named_when_it_is_needed(tmp_path):
    judge = reward(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"reward\.paths: got '.*nowhere', expected a folder that holds config\.json"):
        judge.score(CHATS)


def test_a_device_that_is_not_there_is_refused(save, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"reward\.device: got 'cuda', expected cpu"):
        reward(save("score"), device="cuda").score(CHATS)


@pytest.mark.parametrize(
    ("num", "changes", "message"),
    [
        (0, {}, r"reward\.paths: got \[\]"),
        (2, {"revision": "main"}, r"reward\.revision: got 'main', expected null for an ensemble"),
        (1, {"aggregate": "min"}, r"reward\.aggregate: got 'min', expected mean"),
        (2, {"aggregate": "mean_minus_variance"}, r"reward\.variance_coefficient: got None, expected more than 0"),
        (2, {"aggregate": "mean_minus_variance", "variance_coefficient": 0.0}, r"variance_coefficient: got 0\.0"),
        (2, {"variance_coefficient": 1.0}, r"variance_coefficient: got 1\.0, expected null for reward\.aggregate=mean"),
        (1, {"batch_size": 0}, r"reward\.batch_size: got 0"),
        (1, {"max_length": 1}, r"reward\.max_length: got 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(num, changes, message):
    # Raised while the configuration is instantiated, which wraps what it meets.
    with pytest.raises(Exception, match=message):
        reward(*[Path(f"model{number}") for number in range(num)], **changes)
