"""What every roll-out engine must do, on a tiny Llama of head size 32, which vLLM's CPU kernels have too."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from alignment.data.collate import TokenSequence, token_batch
from alignment.data.worlds.tokenizer import world_tokenizer
from alignment.models.logprob_model import LogprobModel
from alignment.rollout.engine import EncodedPrompt, RolloutEngine
from alignment.rollout.hf import completion_text, filtered
from alignment.types import Rollout, Sampling
from alignment.utils.errors import ConfigError, UserError

CONTEXT = 512
NEW = 12
SAMPLING = Sampling(
    max_new_tokens=NEW, temperature=1.0, top_p=1.0, top_k=0, num_samples=2, seed=3, batch_size=4,
    min_p=0.0, stop=[], bad_words=[],
)  # fmt: skip
GREEDY = replace(SAMPLING, temperature=0.0, num_samples=1)
#: Many tokens end a completion, so that some completions end.
ENDS = tuple(range(2, 30))
TOKENIZER = world_tokenizer()
TEXTS = ("The soup", "In our view, the lamp was so", "Wow", "We found the price to be", "Hey, that")
PROMPTS = [EncodedPrompt(f"p{i}", text, (1, *TOKENIZER(text)["input_ids"]), {"n": i}) for i, text in enumerate(TEXTS)]


def policy(*, seed: int = 0, tied: bool = True) -> LogprobModel:
    """A fresh model; two seeds are two sets of weights of one architecture."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=640, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=list(ENDS),
        pad_token_id=0, initializer_range=0.2, tie_word_embeddings=tied,
    )  # fmt: skip
    return LogprobModel(LlamaForCausalLM(config).eval(), chunk_tokens=64)


def logits(model: LogprobModel, rollout: Rollout) -> torch.Tensor:
    """The policy's own, before each token of a completion (completion tokens x vocabulary)."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
    with torch.no_grad():
        return model.hf_model(input_ids=ids, use_cache=False).logits[0, len(rollout.prompt_ids) - 1 : -1].float()


def greedy_ids(model: LogprobModel, prompt: EncodedPrompt) -> tuple[int, ...]:
    """What transformers' own generate writes."""
    ids = torch.tensor([prompt.prompt_ids])
    out = model.hf_model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, pad_token_id=0
    )
    return tuple(out[0, ids.shape[1] :].tolist())


def tokens(rollouts: Sequence[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.completion_ids for rollout in rollouts]


class EngineContract(ABC):
    """Inherit, and say how the engine is made."""

    #: Nats a token, between the engine's log-probs and the policy's.
    tolerance: float

    @abstractmethod
    def engine(self, model: LogprobModel) -> RolloutEngine: ...

    def close(self, token_logps: Sequence[float], expected: torch.Tensor) -> None:
        torch.testing.assert_close(torch.tensor(token_logps), expected, atol=self.tolerance, rtol=0)

    def test_roll_outs_stand_in_the_order_of_prompts_and_samples(self):
        rollouts = self.engine(policy()).generate(PROMPTS, SAMPLING)
        assert [(r.prompt_id, r.sample) for r in rollouts] == [(p.id, i) for p in PROMPTS for i in range(2)]
        for rollout, prompt in zip(rollouts[::2], PROMPTS, strict=True):
            assert (rollout.prompt, rollout.prompt_ids, rollout.answer) == (
                prompt.prompt, prompt.prompt_ids, prompt.answer
            )  # fmt: skip
            assert rollout.seed == SAMPLING.seed

    def test_tokens_are_kept_and_the_reason_to_stop_is_named(self):
        rollouts = self.engine(policy()).generate(PROMPTS, replace(SAMPLING, num_samples=8))
        for rollout in rollouts:
            ids = rollout.completion_ids
            ends = [token in ENDS for token in ids]
            assert not any(ends[:-1])
            assert len(rollout.token_logps) == len(ids) <= NEW
            assert rollout.finish_reason == ("stop" if ends[-1] else "length")
            assert ends[-1] or len(ids) == NEW
            text_ids = ids[:-1] if ends[-1] else ids
            assert rollout.completion == completion_text(TOKENIZER, rollout.prompt_ids, text_ids)
        assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}

    @pytest.mark.parametrize("tied", [True, False])
    def test_greedy_equals_transformers_generate(self, tied):
        model = policy(seed=1, tied=tied)
        for rollout, prompt in zip(self.engine(model).generate(PROMPTS, GREEDY), PROMPTS, strict=True):
            assert rollout.completion_ids == greedy_ids(model, prompt)
            assert rollout.token_logps == (0.0,) * len(rollout.completion_ids)

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_token_logps_are_the_policys_at_the_temperature_of_sampling(self, temperature):
        model = policy()
        rollouts = self.engine(model).generate(PROMPTS, replace(SAMPLING, temperature=temperature))
        sequences = [TokenSequence(r.prompt_ids, r.completion_ids) for r in rollouts]
        with torch.no_grad():
            expected = model(token_batch(sequences, pad_id=0), temperature=temperature).token_logps
        self.close([value for rollout in rollouts for value in rollout.token_logps], expected)

    @pytest.mark.parametrize(
        "change",
        [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.8, "min_p": 0.05, "temperature": 1.3}],
        ids=str,
    )
    def test_filtered_sampling_gives_the_log_probs_of_what_is_left(self, change):
        model, sampling = policy(), replace(SAMPLING, **change)
        for rollout in self.engine(model).generate(PROMPTS, sampling):
            left = filtered(
                logits(model, rollout) / sampling.temperature,
                top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p,
            ).log_softmax(-1)  # fmt: skip
            self.close(rollout.token_logps, left.gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0])

    def test_draws_follow_the_distribution(self):
        """The surprise of many first tokens has the mean and the spread that the policy's entropy says."""
        model = policy()
        sampling = replace(SAMPLING, max_new_tokens=1, num_samples=1000, batch_size=250, temperature=0.7)
        rollouts = self.engine(model).generate(PROMPTS[:1], sampling)
        logps = (logits(model, rollouts[0])[0] / 0.7).log_softmax(-1)
        entropy = -(logps.exp() * logps).sum().item()
        std = (logps.exp() * (logps + entropy) ** 2).sum().sqrt().item()
        mean = -sum(rollout.token_logps[0] for rollout in rollouts) / 1000
        assert abs(mean - entropy) < 4 * std / 1000**0.5
        likeliest = logps.argmax().item()
        share, p = sum(tokens(rollouts)[i][0] == likeliest for i in range(1000)) / 1000, logps.max().exp().item()
        assert abs(share - p) < 4 * (p * (1 - p) / 1000) ** 0.5

    def test_t28_the_samples_of_a_prompt_differ(self):
        rollouts = self.engine(policy()).generate(PROMPTS, replace(SAMPLING, num_samples=8))
        for prompt in PROMPTS:
            assert len({r.completion_ids for r in rollouts if r.prompt_id == prompt.id}) == 8

    def test_a_sample_depends_on_seed_prompt_and_number_alone(self):
        sampler = self.engine(policy())
        whole = {(r.prompt_id, r.sample): r.completion_ids for r in sampler.generate(PROMPTS, SAMPLING)}
        turned = sampler.generate(PROMPTS[::-1][:3], replace(SAMPLING, batch_size=5, num_samples=1))
        assert all(whole[rollout.prompt_id, rollout.sample] == rollout.completion_ids for rollout in turned)
        again = sampler.generate(PROMPTS, replace(SAMPLING, seed=4))
        assert all(whole[r.prompt_id, r.sample] != r.completion_ids for r in again)

    def test_a_stop_text_ends_its_own_completion_alone_and_stays_in_it(self):
        sampler = self.engine(policy())
        free = sampler.generate(PROMPTS, SAMPLING)
        word = next(r.completion for r in free if len(r.completion.split()) > 2).split()[1][:3]
        stopped = sampler.generate(PROMPTS, replace(SAMPLING, stop=[word]))
        for one, other in zip(free, stopped, strict=True):
            assert one.completion_ids[: len(other.completion_ids)] == other.completion_ids
            if word in one.completion:
                assert word in other.completion
                assert other.finish_reason == "stop"
                assert word not in TOKENIZER.decode(other.completion_ids[:-1])
            else:
                assert other.completion_ids == one.completion_ids
        assert sum(map(len, tokens(stopped))) < sum(map(len, tokens(free)))

    def test_a_bad_word_is_never_written_and_takes_no_probability(self):
        model, many = policy(), replace(SAMPLING, num_samples=8)
        sampler = self.engine(model)
        written = [token for ids in tokens(sampler.generate(PROMPTS, many)) for token in ids if token not in ENDS]
        names = Counter(TOKENIZER.convert_ids_to_tokens([token for token in written if token < len(TOKENIZER)]))
        word = next(
            name for name, _ in names.most_common()
            if name.isalpha() and len(TOKENIZER(name, add_special_tokens=False)["input_ids"]) == 1
        )  # fmt: skip
        (banned,) = TOKENIZER(word, add_special_tokens=False)["input_ids"]
        assert banned in written
        spaced = TOKENIZER(f" {word}", add_special_tokens=False)["input_ids"]
        for rollout in sampler.generate(PROMPTS, replace(many, bad_words=[word])):
            assert banned not in rollout.completion_ids
            values = logits(model, rollout)
            values[:, banned] = float("-inf")
            for place in range(len(rollout.completion_ids)):
                if tuple(rollout.completion_ids[:place])[-len(spaced) + 1 :] == tuple(spaced[:-1]):
                    values[place, spaced[-1]] = float("-inf")
            expected = values.log_softmax(-1).gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
            self.close(rollout.token_logps, expected)

    def test_t19_after_a_weight_change_the_next_samples_are_the_new_policys(self):
        """The prompts are long enough to be cached by their old weights' keys and values."""
        model = policy()
        long = [replace(p, prompt_ids=(1, *range(30, 430), *p.prompt_ids)) for p in PROMPTS]
        sampler = self.engine(model)
        before = sampler.generate(long, SAMPLING)
        sampler.generate(long, SAMPLING)
        for name in ("model.norm.weight", "model.embed_tokens.weight", "model.layers.0.self_attn.k_proj.weight", ""):
            with torch.no_grad():
                for own, parameter in model.hf_model.named_parameters():
                    if own.startswith(name):
                        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            after = sampler.generate(long, SAMPLING)
            for rollout in after:
                expected = logits(model, rollout).log_softmax(-1)
                self.close(
                    rollout.token_logps, expected.gather(-1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]
                )
        assert tokens(after) != tokens(before)
        greedy = sampler.generate(long, GREEDY)
        assert tokens(greedy) == [greedy_ids(model, prompt) for prompt in long]
        assert tokens(self.engine(model).generate(long, SAMPLING)) == tokens(after)

    def test_a_lora_policy_samples_with_its_adapter(self):
        from peft import LoraConfig, get_peft_model

        model = policy()
        torch.manual_seed(5)
        adapted = get_peft_model(
            model.hf_model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        )
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn_like(parameter))
        lora = LogprobModel(adapted, chunk_tokens=64)
        rollouts = self.engine(lora).generate(PROMPTS, SAMPLING)
        moved = 0.0
        for rollout in rollouts:
            ids = torch.tensor(rollout.completion_ids)[:, None]
            expected = logits(lora, rollout).log_softmax(-1).gather(-1, ids)[:, 0]
            self.close(rollout.token_logps, expected)
            with adapted.disable_adapter():
                moved += (logits(lora, rollout).log_softmax(-1).gather(-1, ids)[:, 0] - expected).abs().max().item()
        assert moved > 1.0, "the adapter changes next to nothing: this shows nothing"

    def test_t38_random_state_and_modes_are_left_alone(self):
        model = policy()
        model.train()
        model.hf_model.model.layers[0].eval()
        modes = [module.training for module in model.modules()]
        state, plain, arrays = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        self.engine(model).generate(PROMPTS, SAMPLING)
        assert torch.equal(torch.get_rng_state(), state)
        assert random.getstate() == plain
        assert (np.random.get_state()[1] == arrays).all()
        assert [module.training for module in model.modules()] == modes

    def test_a_prompt_that_does_not_fit_is_named(self):
        sampler = self.engine(policy())
        long = EncodedPrompt("data.jsonl:7", "x", (1,) * (CONTEXT - NEW + 1))
        with pytest.raises(UserError, match=rf"data.jsonl:7: 501 tokens, and 12 new ones.*context of {CONTEXT}"):
            sampler.generate([long], SAMPLING)
        (rollout,) = sampler.generate([replace(long, prompt_ids=(1,) * (CONTEXT - NEW))], GREEDY)
        assert len(rollout.completion_ids) == NEW or rollout.completion_ids[-1] in ENDS

    def test_empty_and_repeated_prompts_are_refused(self):
        sampler = self.engine(policy())
        with pytest.raises(UserError, match="prompt p0: 1 ids name more than one"):
            sampler.generate([PROMPTS[0], PROMPTS[0]], SAMPLING)
        with pytest.raises(UserError, match="prompt void: no tokens"):
            sampler.generate([EncodedPrompt("void", "", ())], SAMPLING)
        assert sampler.generate([], SAMPLING) == []

    @pytest.mark.parametrize(
        ("change", "key"),
        [
            ({"temperature": -1.0}, "temperature"),
            ({"temperature": float("nan")}, "temperature"),
            ({"top_p": 0.0}, "top_p"),
            ({"top_k": -1}, "top_k"),
            ({"min_p": 1.0}, "min_p"),
            ({"stop": [""]}, "stop"),
            ({"bad_words": [""]}, "bad_words"),
            ({"max_new_tokens": 0}, "max_new_tokens"),
            ({"num_samples": 0}, "num_samples"),
            ({"batch_size": 0}, "batch_size"),
            ({"temperature": 0.0}, "num_samples"),
        ],
    )
    def test_bad_sampling_is_refused_by_key(self, change, key):
        with pytest.raises(ConfigError, match=f"rollout.sampling.{key}: got"):
            self.engine(policy()).generate(PROMPTS, replace(SAMPLING, **change))
