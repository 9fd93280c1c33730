"""The in-process engine: the contract of all engines, and what is its own: batches, drawing, text."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import pytest
import torch
from engine_contract import TOKENIZER, EngineContract
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from alignment.data.collate import TokenSequence, token_batch
from alignment.data.worlds.tokenizer import world_tokenizer
from alignment.models.logprob_model import LogprobModel
from alignment.rollout.engine import EncodedPrompt, draws_from_own_distribution, encoded_prompts
from alignment.rollout.hf import HFEngine, closed_up, completion_text, decode, draw, end_of_sequence_ids, filtered
from alignment.types import PromptBatch, Sampling

torch.set_num_threads(1)
SAMPLING = Sampling(
    max_new_tokens=12, temperature=1.0, top_p=1.0, top_k=0, num_samples=2, seed=3, batch_size=4,
    min_p=0.0, stop=[], bad_words=[],
)  # fmt: skip
GREEDY = replace(SAMPLING, temperature=0.0, num_samples=1)
EOS = 2


def tiny(family: str, *, seed: int = 0, dropout: float = 0.0, eos: int | list[int] = EOS) -> PreTrainedModel:
    torch.manual_seed(seed)
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=640, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=eos,
            resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, initializer_range=0.3,
        )  # fmt: skip
        return GPT2LMHeadModel(config)
    config = LlamaConfig(
        vocab_size=640, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=eos, pad_token_id=0,
        attention_dropout=dropout, initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def tokenizer():
    return world_tokenizer()


@pytest.fixture
def prompts(tokenizer) -> list[EncodedPrompt]:
    texts = ["The soup", "In our view, the lamp was so", "Wow", "We found the price to be", "Hey, that"]
    return [EncodedPrompt(f"p{i}", text, (1, *tokenizer(text)["input_ids"])) for i, text in enumerate(texts)]


def engine(model: PreTrainedModel, tokenizer) -> HFEngine:
    return HFEngine(LogprobModel(model, chunk_tokens=64), tokenizer)


def tokens(rollouts) -> list[tuple[int, ...]]:
    return [rollout.completion_ids for rollout in rollouts]


class TestContract(EngineContract):
    tolerance = 1e-4

    def engine(self, model: LogprobModel) -> HFEngine:
        return HFEngine(model, TOKENIZER)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_equals_generate_of_each_prompt_alone(family, tokenizer, prompts):
    # Prompts of unequal length share a batch: left padding with absolute positions is what breaks here.
    model = tiny(family).eval()
    rollouts = engine(model, tokenizer).generate(prompts, GREEDY)
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        ids = torch.tensor([prompt.prompt_ids])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
        )
        assert rollout.completion_ids == tuple(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_samplers_log_probs_are_those_of_a_full_forward(family, temperature, prompts):
    model = tiny(family).eval()
    sampling = replace(SAMPLING, temperature=temperature)
    uniforms = [torch.rand(12, generator=torch.Generator().manual_seed(i)).double().numpy() for i in range(5)]
    with torch.no_grad():
        decoded = decode(
            model, [p.prompt_ids for p in prompts], uniforms=uniforms, sampling=sampling, stop_ids=frozenset({EOS})
        )
        sequences = [TokenSequence(p.prompt_ids, d.token_ids) for p, d in zip(prompts, decoded, strict=True)]
        path = LogprobModel(model, chunk_tokens=7)
        logps = path(token_batch(sequences, pad_id=0), temperature=temperature).token_logps
    sampled = torch.tensor([value for row in decoded for value in row.token_logps])
    torch.testing.assert_close(sampled, logps, atol=1e-4, rtol=0)


def test_rows_leave_the_batch_when_they_end_and_the_others_go_on(tokenizer, prompts):
    # Many ids end a completion here, so that rows end at different steps.
    model = tiny("llama", eos=list(range(2, 120))).eval()
    sampling = replace(SAMPLING, num_samples=4, batch_size=20)
    rollouts = engine(model, tokenizer).generate(prompts, sampling)
    alone = engine(model, tokenizer).generate(prompts, replace(sampling, batch_size=1))
    assert [replace(r, token_logps=()) for r in rollouts] == [replace(r, token_logps=()) for r in alone]
    for one, other in zip(rollouts, alone, strict=True):
        assert one.token_logps == pytest.approx(other.token_logps, abs=1e-4)
    assert len({len(rollout.completion_ids) for rollout in rollouts}) > 3
    for rollout in rollouts:
        ends = [token in range(2, 120) for token in rollout.completion_ids]
        assert not any(ends[:-1])
        assert rollout.finish_reason == ("stop" if ends[-1] else "length")
        assert ends[-1] or len(rollout.completion_ids) == sampling.max_new_tokens


def test_every_end_of_sequence_id_counts(tokenizer):
    model = tiny("llama", eos=[5, 9])
    assert model.generation_config.eos_token_id == [5, 9]
    assert end_of_sequence_ids(model, tokenizer) == {5, 9, tokenizer.eos_token_id}


def test_a_sample_depends_on_seed_prompt_and_number_alone(tokenizer, prompts):
    sampler = engine(tiny("llama"), tokenizer)
    whole = {(r.prompt_id, r.sample): r.completion_ids for r in sampler.generate(prompts, SAMPLING)}
    turned = sampler.generate(prompts[::-1][:3], replace(SAMPLING, batch_size=5, num_samples=1))
    assert all(whole[rollout.prompt_id, rollout.sample] == rollout.completion_ids for rollout in turned)
    again = sampler.generate(prompts, replace(SAMPLING, seed=4))
    assert [whole[r.prompt_id, r.sample] for r in again] != tokens(again)


def test_t19_after_a_weight_change_the_next_samples_are_a_fresh_engines(tokenizer, prompts):
    model = tiny("llama")
    sampler = engine(model, tokenizer)
    before = sampler.generate(prompts, SAMPLING)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    after = sampler.generate(prompts, SAMPLING)
    assert tokens(after) != tokens(before)
    assert after == engine(copy.deepcopy(model), tokenizer).generate(prompts, SAMPLING)


def test_t14_t38_dropout_is_off_and_modes_and_random_state_are_left_alone(tokenizer, prompts):
    model = tiny("gpt2", dropout=0.5)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first = engine(model, tokenizer).generate(prompts, SAMPLING)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert first == engine(model, tokenizer).generate(prompts, SAMPLING)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_nothing_is_printed_or_warned(family, tokenizer, recwarn, capfd, caplog):
    # Prompts of one length that hold the padding token: transformers warns about such input without a mask.
    model = tiny(family)
    model.config.pad_token_id = 0
    prompts = [EncodedPrompt(str(i), "x", (1, i, 0)) for i in range(3)]
    engine(model, tokenizer).generate(prompts, SAMPLING)
    printed = capfd.readouterr()
    assert (printed.out, printed.err, list(recwarn), caplog.records) == ("", "", [], [])


def test_draw_follows_the_distribution():
    probabilities = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0])
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    ids, logps = draw(probabilities.log().expand(1000, -1), uniforms, sampling=SAMPLING)
    assert Counter(ids.tolist()) == {0: 500, 2: 250, 3: 250}
    torch.testing.assert_close(logps, probabilities.log()[ids])


def test_draw_at_the_ends_never_picks_what_has_no_probability():
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]])
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    first = torch.tensor([0.0], dtype=torch.float64)
    assert draw(logits, first, sampling=SAMPLING)[0].item() == 1
    assert draw(logits, last, sampling=SAMPLING)[0].item() == 2


def test_a_temperature_sharpens():
    logits = torch.tensor([[0.0, 1.0]]).expand(1000, -1)
    uniforms = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    ids, logps = draw(logits, uniforms, sampling=replace(SAMPLING, temperature=0.5))
    share = torch.sigmoid(torch.tensor(2.0)).item()
    assert abs(ids.double().mean().item() - share) < 2e-3
    torch.testing.assert_close(logps.max(), torch.tensor(share).log())


def test_top_k_and_top_p_keep_what_transformers_keeps():
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3
    for top_k, top_p in [(5, 1.0), (0, 0.7), (8, 0.5), (0, 1e-6), (100, 0.95)]:
        expected = logits
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        assert torch.equal(filtered(logits, top_k=top_k, top_p=top_p, min_p=0.0), expected)


def test_min_p_keeps_what_transformers_keeps():
    from transformers import MinPLogitsWarper

    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0)) * 3
    for min_p in (0.05, 0.3, 0.99):
        expected = MinPLogitsWarper(min_p)(None, logits)
        assert torch.equal(filtered(logits, top_k=0, top_p=1.0, min_p=min_p), expected)


def test_only_the_models_own_distribution_is_plain():
    assert draws_from_own_distribution(SAMPLING)
    changes = ({"temperature": 0.9}, {"top_p": 0.9}, {"top_k": 9}, {"min_p": 0.1}, {"bad_words": ["x"]})
    assert not any(draws_from_own_distribution(replace(SAMPLING, **change)) for change in changes)
    assert draws_from_own_distribution(replace(SAMPLING, stop=["x"])), (
        "a text that ends a completion changes no token's probability"
    )


def test_prompts_of_a_batch_leave_fillers_out():
    batch = PromptBatch(
        ids=("a", "b"),
        weights=torch.tensor([1.0, 0.0]),
        prompt_ids=((1, 4), (1,)),
        prompts=("x", "y"),
        answers=({"answer": 3}, {}),
        counts={"records": 1.0},
    )
    assert encoded_prompts(batch) == [EncodedPrompt("a", "x", (1, 4), {"answer": 3})]


def test_the_space_between_prompt_and_completion_is_kept():
    words = {"▁once": 0, "▁upon": 1, "▁a": 2, "<s>": 3, "</s>": 4, "<unk>": 5}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert tokenizer.decode([1, 2]) == "upon a"
    assert completion_text(tokenizer, (3, 0), (1, 2)) == " upon a"
    assert completion_text(tokenizer, (3,), (1, 2)) == "upon a"


def test_a_character_over_the_border_is_decoded_alone(tokenizer):
    ids = tokenizer("é")["input_ids"]
    assert len(ids) == 2
    assert completion_text(tokenizer, (1, ids[0]), (ids[1],)) == tokenizer.decode([ids[1]])
    assert completion_text(tokenizer, tuple(tokenizer("a")["input_ids"]), tuple(ids)) == "é"


def test_a_peft_model_samples_with_its_adapter(tokenizer, prompts):
    from peft import LoraConfig, get_peft_model

    base = tiny("llama")
    plain_tokens = tokens(engine(copy.deepcopy(base), tokenizer).generate(prompts, SAMPLING))
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    sampler = HFEngine(LogprobModel(adapted, chunk_tokens=64), tokenizer)
    assert tokens(sampler.generate(prompts, SAMPLING)) != plain_tokens
    with adapted.disable_adapter():
        assert tokens(sampler.generate(prompts, SAMPLING)) == plain_tokens


@pytest.mark.parametrize(
    "stays", [[True] * 4, [False, True, True, True], [True, False, True, False, True], [True, False]]
)
def test_of_the_rows_that_stay_only_as_many_move_as_others_left_gaps(stays):
    kept = closed_up(torch.tensor(stays)).tolist()
    assert sorted(kept) == [row for row, stay in enumerate(stays) if stay]
    gaps = stays[: len(kept)].count(False)
    assert sum(row != place for place, row in enumerate(kept)) == gaps
