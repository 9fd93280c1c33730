"""What is written in the precision of training is cast once a batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.data.worlds.tokenizer import world_tokenizer
from alignment.methods.writer import Writer
from alignment.models.logprob_model import LogprobModel
from alignment.rollout.engine import EncodedPrompt
from alignment.rollout.hf import HFEngine
from alignment.types import Rewards, Rollout, Sampling

SAMPLING = Sampling(
    max_new_tokens=6, temperature=1.0, top_p=1.0, top_k=0, num_samples=2, seed=3, batch_size=4,
    min_p=0.0, stop=[], bad_words=[],
)  # fmt: skip


class Lengths:
    def score(self, rollouts: list[Rollout]) -> Rewards:
        return Rewards(tuple(float(len(rollout.completion_ids)) for rollout in rollouts), {})


class Casts(TorchDispatchMode):
    """Counts how often each weight is made another type."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.names:
            self.made[self.names[args[0].data_ptr()]] += 1
        return func(*args, **(kwargs or {}))


def as_lightning_has_it() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)


def test_weights_are_cast_once_a_batch_and_not_once_a_token():
    torch.manual_seed(0)
    tokenizer = world_tokenizer()
    config = LlamaConfig(
        vocab_size=640, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    policy = LogprobModel(LlamaForCausalLM(config), chunk_tokens=64)
    engine = HFEngine(policy, tokenizer)
    prompts = [EncodedPrompt(text, text, (1, *tokenizer(text)["input_ids"])) for text in ("The soup", "Wow")]
    writer = Writer(
        policy=policy, engine=engine, reward=Lengths(), reference=None, critic=None, needs_old_logps=True,
        temperature=1.0, pad_id=0, sequences_a_pass=4, precision=as_lightning_has_it,
    )  # fmt: skip
    with Casts(policy) as casts:
        measured = writer.write(prompts, SAMPLING)
    projections = [name for name, _ in policy.named_parameters() if "proj" in name]
    assert len(projections) == 14
    assert {casts.made[name] for name in projections} == {1}
    with torch.no_grad(), as_lightning_has_it(), Casts(policy) as anew:
        expected = engine.generate(prompts, SAMPLING)
    assert min(anew.made[name] for name in projections) >= 6
    assert [item.rollout.completion_ids for item in measured] == [rollout.completion_ids for rollout in expected]
    assert [item.rollout.token_logps for item in measured] == [rollout.token_logps for rollout in expected]

    # What was made without gradients is not found in training, and not when the weights have changed.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        writer.write(prompts, SAMPLING)
        policy.hf_model(input_ids=torch.tensor([[1, 5, 7]])).logits.float().logsumexp(-1).sum().backward()
    assert all(policy.get_parameter(name).grad is not None for name in projections)
    with torch.no_grad():
        for name in projections:
            policy.get_parameter(name).zero_()
    with Casts(policy) as casts:
        writer.write(prompts, SAMPLING)
    assert {casts.made[name] for name in projections} == {1}
