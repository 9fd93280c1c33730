"""The protocol of measurement: KL, rewards and intervals on fresh samples."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.data.worlds import reviews
from alignment.data.worlds.tokenizer import world_tokenizer
from alignment.evaluation.fresh import (
    KL,
    LOG_RATIO,
    Evaluation,
    Sample,
    against_start,
    evaluate_policy,
    rewards_by_prompt,
    summarize,
)
from alignment.evaluation.records import evaluation_row, record_evaluation, sample_row
from alignment.models.logprob_model import LogprobModel
from alignment.rewards.gold import GoldReward
from alignment.rewards.length import LengthReward
from alignment.rollout.engine import EncodedPrompt
from alignment.rollout.hf import HFEngine
from alignment.types import Layout, Rollout, Sampling, TokenBatch, TokenLogps
from alignment.utils.errors import UserError

SAMPLING = Sampling(
    max_new_tokens=8, temperature=1.0, top_p=1.0, top_k=0, num_samples=2, seed=0, batch_size=8,
    min_p=0.0, stop=[], bad_words=[],
)  # fmt: skip
REWARD = LengthReward(target_tokens=8, tolerance_tokens=8)


def tiny(seed: int, vocab_size: int = 640, layout: Layout = Layout.PADDED) -> LogprobModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        initializer_range=0.3,
    )  # fmt: skip
    return LogprobModel(LlamaForCausalLM(config), chunk_tokens=32, layout=layout)


@pytest.fixture(scope="module")
def tokenizer():
    return world_tokenizer()


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[EncodedPrompt]:
    texts = reviews.prompts("held_out")[:6]
    chats = [[{"role": "user", "content": text}] for text in texts]
    ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]
    return [EncodedPrompt(f"p{i}", chat, tuple(row)) for i, (chat, row) in enumerate(zip(chats, ids, strict=True))]


def measure(policy, start, tokenizer, prompts, sampling=SAMPLING, reward=REWARD, **options) -> Evaluation:
    return evaluate_policy(
        policy=policy,
        start=start,
        tokenizer=tokenizer,
        engine=HFEngine,
        prompts=prompts,
        sampling=sampling,
        reward=reward,
        **options,
    )


def sample(prompt_id: str, reward: float | None = 0.0, *, tokens: int = 2, log_ratio: float | None = None, number=0):
    rollout = Rollout(prompt_id, "x", (1,), (5,) * tokens, "a b", "stop", number)
    return Sample(rollout, reward, {}, policy_sum_logp=-1.0 * tokens, log_ratio_nats=log_ratio)


@pytest.mark.parametrize("layout", [Layout.PACKED, Layout.PREFIX_SHARED])
def test_t9_the_layout_changes_no_measurement(tokenizer, prompts, layout, monkeypatch):
    expected = measure(tiny(1), tiny(2), tokenizer, prompts)
    rows: list[int] = []
    forward = LogprobModel.forward
    monkeypatch.setattr(
        LogprobModel, "forward", lambda self, batch: rows.append(len(batch.input_ids)) or forward(self, batch)
    )
    got = measure(tiny(1, layout=layout), tiny(2, layout=layout), tokenizer, prompts)
    assert set(rows) == {1}
    assert got.metrics.keys() == expected.metrics.keys()
    assert expected.metrics[KL].mean > 0.1
    for name, estimate in expected.metrics.items():
        assert got.metrics[name].mean == pytest.approx(estimate.mean, rel=1e-4, abs=1e-5), name


def test_t14_a_policy_is_no_nats_from_itself(tokenizer, prompts):
    policy = tiny(0)
    metrics = measure(policy, copy.deepcopy(policy), tokenizer, prompts).metrics
    assert (metrics[KL].mean, metrics[KL].ci_low, metrics[KL].ci_high) == (0, 0, 0)
    assert metrics[KL].num == 12


class Bigram(torch.nn.Module):
    """Scores every token by a fixed table over the vocabulary."""

    def __init__(self, probabilities: torch.Tensor) -> None:
        super().__init__()
        self.logps = probabilities.log()

    def forward(self, batch: TokenBatch, temperature: float = 1.0) -> TokenLogps:
        return TokenLogps(self.logps[batch.targets], batch.sequence_index, batch.num_sequences)


def test_kl_agrees_with_the_exact_kl_of_a_known_distribution(tokenizer):
    # Both models ignore what went before, so that a step's KL is known and a sequence's is its sum over steps.
    policy = tiny(0, vocab_size=8)
    with torch.no_grad():
        for parameter in policy.backbone.parameters():
            parameter.zero_()
    start = Bigram(torch.softmax(torch.arange(8.0) / 4, 0))
    # A zero model is uniform over 8 tokens, two of which (2 of the config and of the tokenizer) end a sequence.
    sampling = replace(SAMPLING, num_samples=400, batch_size=400)
    prompts = [EncodedPrompt(f"q{i}", "x", (1,)) for i in range(10)]
    metrics = measure(policy, start, tokenizer, prompts, sampling, reward=None).metrics
    step = (torch.full((8,), 1 / 8).log() - start.logps).mean().item()
    stop = 1 / 8
    expected_tokens = sum((1 - stop) ** t for t in range(8))
    assert metrics[KL].mean == pytest.approx(step * expected_tokens, rel=0.1)
    assert metrics[KL].ci_low < step * expected_tokens < metrics[KL].ci_high
    assert metrics["length/completion_tokens"].mean == pytest.approx(expected_tokens, rel=0.03)
    assert metrics["length/truncated_share"].mean == pytest.approx((1 - stop) ** 8, abs=0.03)
    assert metrics["entropy/token_nats"].mean == pytest.approx(math.log(8), abs=1e-4)
    assert "reward/total" not in metrics


def test_kl_of_each_sample_is_the_difference_of_its_log_probs(tokenizer, prompts):
    policy, start = tiny(0), tiny(1)
    evaluation = measure(policy, start, tokenizer, prompts)
    assert evaluation.metrics[KL].mean > 0
    for item in evaluation.samples:
        ids = torch.tensor([[*item.rollout.prompt_ids, *item.rollout.completion_ids]])
        sums = []
        for model in (policy, start):
            logps = model.backbone(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            sums.append(logps[len(item.rollout.prompt_ids) - 1 :].sum().item())
        assert item.log_ratio_nats == pytest.approx(sums[0] - sums[1], abs=1e-4)
        assert item.policy_sum_logp == pytest.approx(sums[0], abs=1e-4)
    mean = np.mean([item.log_ratio_nats for item in evaluation.samples])
    assert evaluation.metrics[KL].mean == pytest.approx(mean)


@pytest.mark.parametrize("change", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}])
def test_samples_of_another_distribution_do_not_give_a_kl(change, tokenizer, prompts):
    metrics = measure(tiny(0), tiny(1), tokenizer, prompts, replace(SAMPLING, **change)).metrics
    assert KL not in metrics
    assert "entropy/token_nats" not in metrics
    assert LOG_RATIO in metrics


def test_without_a_start_there_is_no_kl(tokenizer, prompts):
    assert not {KL, LOG_RATIO} & measure(tiny(0), None, tokenizer, prompts).metrics.keys()


def test_t38_measuring_moves_nothing(tokenizer, prompts):
    policy = tiny(0).train()
    before, state = copy.deepcopy(policy.state_dict()), torch.get_rng_state()
    first = measure(policy, tiny_scorer(), tokenizer, prompts)
    second = measure(policy, tiny_scorer(), tokenizer, prompts)
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert policy.training
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert all(torch.equal(before[name], value) for name, value in policy.state_dict().items())


def tiny_scorer() -> LogprobModel:
    state = torch.get_rng_state()
    model = tiny(1)
    torch.set_rng_state(state)
    return model


def test_the_gold_reward_and_its_components_are_measured(tokenizer, prompts):
    evaluation = measure(tiny(0), None, tokenizer, prompts, reward=GoldReward())
    names = {name for name in evaluation.metrics if name.startswith("reward/")}
    assert names == {f"reward/{n}" for n in ("total", "sentiment", "style", "length", "grammar", "on_topic")}
    assert evaluation.metrics["reward/total"].mean == 0
    assert evaluation.num_prompts == 6
    assert evaluation.tokens_generated == sum(len(s.rollout.completion_ids) for s in evaluation.samples)
    assert evaluation.metrics["budget/tokens_generated"].mean == evaluation.tokens_generated


def test_what_a_failed_sample_lacks_is_zero():
    failed = replace(sample("a"), components={"errors": 1.0})
    judged = replace(sample("b", 1.0), components={"right": 1.0, "errors": 0.0})
    metrics = summarize([failed, judged], is_plain=True)
    assert (metrics["reward/right"].mean, metrics["reward/errors"].mean) == (0.5, 0.5)


def test_means_are_over_samples_and_intervals_over_prompts():
    samples = [sample(prompt_id, reward, number=i) for prompt_id, reward in (("a", 0.0), ("b", 1.0)) for i in range(10)]
    total = summarize(samples, is_plain=True)["reward/total"]
    assert (total.mean, total.num) == (0.5, 20)
    # Two prompts: a resample holds a twice, b twice, or each once.
    assert (total.ci_low, total.ci_high) == (0, 1)


def test_entropy_weighs_tokens_and_not_samples():
    long = replace(sample("a", tokens=9), policy_sum_logp=-9.0)
    short = replace(sample("b", tokens=1), policy_sum_logp=-3.0)
    assert summarize([long, short], is_plain=True)["entropy/token_nats"].mean == pytest.approx(12 / 10)


def test_win_rate_by_hand():
    ours = [sample("a", 2.0), sample("a", 0.0, number=1), sample("b", 1.0)]
    start = [sample("b", 1.0), sample("a", 1.0), sample("a", 0.0, number=1)]
    metrics = against_start(ours, rewards_by_prompt(start))
    # a: 2 beats both, 0 loses to 1 and ties with 0: 2.5 of 4. b: a tie: a half.
    assert metrics["win_rate/against_start"].mean == pytest.approx((2.5 / 4 + 0.5) / 2)
    assert metrics["reward/gain_against_start"].mean == pytest.approx((0.5 + 0.0) / 2)
    with pytest.raises(UserError, match="same prompts"):
        against_start(ours, rewards_by_prompt(start[1:]))
    with pytest.raises(UserError, match="needs a reward"):
        against_start([replace(ours[0], reward=None)], rewards_by_prompt(start))


def test_a_policy_ties_with_itself(tokenizer, prompts):
    first = measure(tiny(0), None, tokenizer, prompts)
    again = measure(tiny(0), None, tokenizer, prompts, start_rewards=rewards_by_prompt(first.samples))
    assert again.metrics["win_rate/against_start"].mean == 0.5
    assert again.metrics["reward/gain_against_start"].mean == 0


def test_no_prompts_are_refused(tokenizer):
    with pytest.raises(UserError, match="at least one prompt"):
        measure(tiny(0), None, tokenizer, [])


def test_what_is_written_is_strict_json_in_the_agreed_form(tokenizer, prompts, tmp_path):
    evaluation = measure(tiny(0), tiny(1), tokenizer, prompts)
    path = record_evaluation(evaluation, tmp_path, step=100, policy="step 100")
    record_evaluation(evaluation, tmp_path, step=200, policy="step 200")
    assert path == tmp_path / "samples" / "step=000100.jsonl"
    lines = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200]
    assert lines[0] == evaluation_row(evaluation, step=100, policy="step 100")
    assert set(lines[0]) == {"step", "policy", "num_prompts", "num_samples", "metrics"}
    assert set(lines[0]["metrics"][KL]) == {"mean", "ci_low", "ci_high", "num"}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [sample_row(item) for item in evaluation.samples]
    assert set(rows[0]) == {
        *("prompt_id", "prompt", "sample", "completion", "finish_reason", "num_tokens", "kl_nats", "reward"),
    }
    assert set(rows[0]["reward"]) == {"total", "components"}


def as_json(evaluation: Evaluation) -> str:
    row = evaluation_row(evaluation, step=0, policy="x")
    return json.dumps({"row": row, "samples": [sample_row(item) for item in evaluation.samples]})


def _worker(rank: int, world_size: int, store: str, out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    tokenizer = world_tokenizer()
    prompts = [EncodedPrompt(f"p{i}", "x", (1, 20 + i)) for i in range(5)]
    evaluation = measure(tiny(0), tiny(1), tokenizer, prompts, rank=rank, world_size=world_size)
    Path(f"{out}.{rank}").write_text(as_json(evaluation))
    torch.distributed.destroy_process_group()


def test_two_processes_measure_what_one_does(tokenizer, tmp_path):
    # Five prompts over two processes: an uneven share must neither hang nor count a prompt twice.
    prompts = [EncodedPrompt(f"p{i}", "x", (1, 20 + i)) for i in range(5)]
    alone = measure(tiny(0), tiny(1), tokenizer, prompts)
    context = mp.get_context("fork")
    arguments = (2, str(tmp_path / "store"), str(tmp_path / "out"))
    workers = [context.Process(target=_worker, args=(rank, *arguments)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    both = [(tmp_path / f"out.{rank}").read_text() for rank in range(2)]
    assert both[0] == both[1]
    together, expected = json.loads(both[0]), json.loads(as_json(alone))
    assert together["row"]["num_samples"] == expected["row"]["num_samples"] == 10
    for name, estimate in expected["row"]["metrics"].items():
        assert together["row"]["metrics"][name] == pytest.approx(estimate, abs=1e-4), name
    for ours, theirs in zip(together["samples"], expected["samples"], strict=True):
        assert ours["kl_nats"] == pytest.approx(theirs["kl_nats"], abs=1e-4)
        assert {**ours, "kl_nats": 0} == {**theirs, "kl_nats": 0}
