"""Adapters: off is the base model bit by bit, merged is the adapted model (T32, T33)."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from alignment.models.adapters import adapter_disabled, apply_adapter
from alignment.models.export import export
from alignment.models.logprob_model import LogprobModel
from alignment.utils.errors import ConfigError

from tiny import random_batch, tiny_causal_lm, tiny_model


def lora(**fields) -> LoraConfig:
    return LoraConfig(**({"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | fields))


def adapted(family: str, **fields) -> LogprobModel:
    """An adapter that does something: its weights are random, not the zeros that it starts from."""
    model = LogprobModel(apply_adapter(tiny_causal_lm(family), lora(**fields), seed=1), chunk_tokens=5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {f"t{i}": i for i in range(64)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen2", "llama_tied"])
def test_a_fresh_adapter_changes_nothing(family):
    base, batch = tiny_model(family), random_batch()
    fresh = LogprobModel(apply_adapter(tiny_causal_lm(family), lora(), seed=1), chunk_tokens=5)
    torch.testing.assert_close(fresh(batch).token_logps, base(batch).token_logps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen2", "llama_tied"])
@pytest.mark.parametrize("modules_to_save", [None, ["lm_head"]])
def test_adapter_off_is_the_base_model_bitwise(family, modules_to_save):
    if modules_to_save and family in ("gpt2", "gemma2", "llama_tied"):
        with pytest.raises(ConfigError, match=r"ties the two"):
            adapted(family, modules_to_save=modules_to_save)
        return
    base, model, batch = (
        tiny_model(family).eval(),
        adapted(family, modules_to_save=modules_to_save).eval(),
        random_batch(),
    )
    with torch.no_grad():
        expected = base(batch).token_logps
        on = model(batch).token_logps
        with adapter_disabled(model):
            off = model(batch).token_logps
        again = model(batch).token_logps
    assert torch.equal(off, expected)
    assert torch.equal(on, again)
    assert not torch.allclose(on, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("family", "modules_to_save"),
    [("llama", None), ("llama", ["lm_head"]), ("gpt2", None), ("gemma2", None), ("llama_tied", None)],
)
def test_merged_export_keeps_logits_and_ties(family, modules_to_save, tokenizer, tmp_path):
    model, batch = adapted(family, modules_to_save=modules_to_save).eval(), random_batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export(model, tokenizer, tmp_path / "model", adapter="merged", card="# card", is_writer=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        got = LogprobModel(loaded.eval(), chunk_tokens=5)(batch).token_logps
        torch.testing.assert_close(got, model(batch).token_logps, rtol=1e-4, atol=1e-4)
    tied = loaded.config.tie_word_embeddings
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), (
        "export changed the model"
    )


def test_separate_export_loads_with_peft(tokenizer, tmp_path):
    from peft import PeftModel

    model, batch = adapted("llama").eval(), random_batch()
    export(model, tokenizer, tmp_path / "model", adapter="separate", card="# card", is_writer=True)
    assert not (tmp_path / "model" / "model.safetensors").exists()
    loaded = PeftModel.from_pretrained(tiny_causal_lm("llama"), str(tmp_path / "model"))
    with torch.no_grad():
        got = LogprobModel(loaded.eval(), chunk_tokens=5)(batch).token_logps
        torch.testing.assert_close(got, model(batch).token_logps, rtol=1e-5, atol=1e-5)


def test_export_replaces_an_older_folder_whole(tokenizer, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "stale.txt").write_text("old")
    export(tiny_model(), tokenizer, folder, adapter="merged", card="# card", is_writer=True)
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_wrong_target_modules_name_what_there_is():
    with pytest.raises(ConfigError, match=r"adapter.target_modules: got .*q_porj.*expected names among .*q_proj"):
        apply_adapter(tiny_causal_lm("llama"), lora(target_modules=["q_porj"]), seed=0)


def test_dropout_in_the_adapter_is_refused():
    with pytest.raises(ConfigError, match=r"adapter.lora_dropout: got 0.1, expected 0.0"):
        apply_adapter(tiny_causal_lm("llama"), lora(lora_dropout=0.1), seed=0)


def test_the_adapters_weights_depend_on_the_seed_and_on_nothing_else():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = apply_adapter(tiny_causal_lm("llama"), lora(), seed=3)
    torch.manual_seed(99)
    second = apply_adapter(tiny_causal_lm("llama"), lora(), seed=3)
    other = apply_adapter(tiny_causal_lm("llama"), lora(), seed=4)
    weights = [[p for n, p in model.named_parameters() if "lora_A" in n] for model in (first, second, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0])
    assert state is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("bias", "all"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", False),
    ],
)
def test_options_that_break_the_reference_or_the_merged_export_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"adapter.{field}: got {value!r}"):
        apply_adapter(tiny_causal_lm("llama"), lora(**{field: value}), seed=0)
