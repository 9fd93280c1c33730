"""Whole runs of ``align train`` against the gradient of the expected reward, which can be enumerated (E4).

A completion has two tokens at most and the optimiser stands still, so that every step's gradient is one draw around the
same mean: the gradient over all completions, made here from the exported weights with plain transformers.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pyarrow import parquet
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from runs import job, train

PROMPTS, GROUP, TOKENS, STEPS = 4, 32, 2, 150
PATTERN = "w|k"
OVERRIDES = (
    "model.config.hidden_size=16",
    "model.config.intermediate_size=32",
    "model.config.num_hidden_layers=1",
    "model.config.num_attention_heads=2",
    "model.config.num_key_value_heads=2",
    f"data.train.num_records={PROMPTS}",
    f"data.batch_size={PROMPTS}",
    f"data.micro_batch_size={PROMPTS // 2}",
    f"method.rollouts.group_size={GROUP}",
    f"rollout.sampling.batch_size={PROMPTS * GROUP}",
    "reference=none",
    "method/kl=none",
    "reward=regex",
    f"reward.pattern='{PATTERN}'",
    "reward.match=search",
    f"rollout.sampling.max_new_tokens={TOKENS}",
    "trainer.max_epochs=null",
    f"trainer.max_steps={STEPS}",
    "trainer.gradient_clip_val=null",
    "callbacks.checkpoint.every_n_steps=100000",
)
#: With the temperature, and the share of the gradient that a method's definition leaves of it.
METHODS = {
    "RLOO": (("method=rloo",), 1.5, 1.0),
    "REINFORCE": (("method=rloo", "method.baseline=none"), 1.0, 1.0),
    # What the critic says is the baseline; the loss is divided by the most tokens.
    "first PPO step": (
        (
            "method=ppo",
            "method.lam=1",
            "method.whiten_advantages=false",
            "method.normaliser=constant",
            "method.rollouts.minibatches=1",
            "method.rollouts.epochs=1",
        ),
        1.0,
        1 / TOKENS,
    ),
    # The group's mean holds the completion itself.
    "Dr. GRPO": (("method=grpo", "method/preset=dr_grpo"), 1.0, (GROUP - 1) / GROUP / TOKENS),
}
#: Of Hotelling's T² for 16 weights and 150 draws: one unbiased gradient in a thousand lies beyond.
BEYOND = 47.9


@pytest.mark.parametrize(("overrides", "temperature", "share"), list(METHODS.values()), ids=list(METHODS))
def test_the_mean_of_a_run_s_gradients(overrides, temperature, share, tmp_path, monkeypatch):
    overrides = (*overrides, f"rollout.sampling.temperature={temperature}")
    drawn = gradients_of_a_run(tmp_path, *overrides, monkeypatch=monkeypatch)
    expected = share * enumerated(tmp_path / "run", temperature)
    # All weights, along the gradient itself: sharp enough to tell one that is a third too small.
    along = drawn @ (expected / expected.norm())
    error = along.std() / STEPS**0.5
    assert abs(along.mean() - expected.norm()) < 3 * error
    assert expected.norm() > 9 * error
    # The last norm's 16 weights, in all directions.
    norm = drawn[:, -16:]
    off = norm.mean(0) - expected[-16:]
    assert off @ torch.linalg.solve(torch.cov(norm.T) / STEPS, off) < BEYOND


def gradients_of_a_run(tmp_path: Path, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Runs a method with an optimiser that takes no step: [steps, weights of the policy, the last norm's last]."""
    drawn: list[Tensor] = []

    def note(self: torch.optim.AdamW, closure) -> None:
        closure()
        policy = self.param_groups[0]["params"] + self.param_groups[1]["params"]
        drawn.append(torch.cat([weight.grad.flatten() for weight in policy]))

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    train(job(tmp_path, *OVERRIDES, *overrides), tmp_path / "run")
    assert len(drawn) == STEPS
    return torch.stack(drawn).double()


def enumerated(run_dir: Path, temperature: float) -> Tensor:
    """Returns the gradient of minus the expected reward, over all completions: [weights of the policy]."""
    model = AutoModelForCausalLM.from_pretrained(run_dir / "model").double().eval()
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "model")
    prompts = prompts_of(run_dir)
    assert len(prompts) == PROMPTS
    size = model.config.vocab_size

    def text(*tokens: int) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True)

    has_match = torch.tensor([[bool(re.search(PATTERN, text(a, b))) for b in range(size)] for a in range(size)])
    ends = torch.arange(size) == tokenizer.eos_token_id
    has_match[ends] = False  # nothing is written behind the end
    expected = torch.zeros((), dtype=torch.float64)
    for prompt in prompts:
        first = next_logps(model, torch.tensor([prompt]), temperature)[0]
        longer = torch.cat([torch.tensor([prompt] * size), torch.arange(size)[:, None]], dim=1)
        second = next_logps(model, longer, temperature)
        both = first[:, None] + second
        expected = expected + (both.exp() * has_match).sum() / len(prompts)
    assert 0.1 < expected < 0.9
    weights = [weight for weight in model.parameters() if weight.ndim >= 2]
    weights += [weight for weight in model.parameters() if weight.ndim < 2]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(-expected, weights)])


def next_logps(model: torch.nn.Module, tokens: Tensor, temperature: float) -> Tensor:
    """Of every token after each row, as they are drawn: [rows, vocabulary]."""
    return (model(tokens).logits[:, -1] / temperature).log_softmax(-1)


def prompts_of(run_dir: Path) -> list[list[int]]:
    """The prompts that a run's completions were written for."""
    files = sorted((run_dir / "rollouts").rglob("*.parquet"))
    rows = parquet.read_table(files[0], columns=["prompt_ids"]).to_pylist()
    return [list(prompt) for prompt in dict.fromkeys(tuple(row["prompt_ids"]) for row in rows)]
