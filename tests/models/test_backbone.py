"""Bad models are refused with what is wrong and what to do (S1, S4)."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from alignment.data.tokenizer import TokenizerOptions
from alignment.models.backbone import PretrainedModel
from alignment.utils.errors import ConfigError, UserError

from tiny import tiny_causal_lm

OWN = TokenizerOptions(pad_token=None, eos_token=None, bos_token=None, chat_template=None)


def pretrained(path, **fields) -> PretrainedModel:
    options = {
        "path": str(path),
        "revision": None,
        "dtype": "float32",
        "attention": "sdpa",
        "quantization": None,
        "gradient_checkpointing": False,
        "compile": False,
        "chunk_tokens": 16,
        "layout": "auto",
        "tokenizer": OWN,
    }
    return PretrainedModel(**(options | fields))


@pytest.fixture
def folder(tmp_path):
    tiny_causal_lm("llama").save_pretrained(tmp_path / "model")
    words = Tokenizer(tokenizer_models.WordLevel({f"t{i}": i for i in range(64)}, unk_token="t3"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t2").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_loads_what_was_saved(folder):
    loaded = pretrained(folder).load()
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), tiny_causal_lm("llama").parameters(), strict=True)
    )


def test_a_path_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"model.path: got '.*/nowhere', expected a folder .* no such folder"):
        pretrained(tmp_path / "nowhere").tokenizer()


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ConfigError, match=r"the folder is there but has no config.json"):
        pretrained(tmp_path).config()


def test_missing_weights_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=r"1 weights do not fit config.json: model.layers.1.mlp.up_proj.weight is missing"
    ):
        pretrained(folder).load()


def test_misshapen_weights_are_named(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(UserError, match=r"cannot be loaded|do not fit config.json"):
        pretrained(folder).load()


def test_truncated_weights(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"the weights cannot be loaded"):
        pretrained(folder).load()


def test_pickled_weights_are_refused(folder):
    """S1: a pickle runs code when it is read."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"safetensors"):
        pretrained(folder).load()


def test_code_in_a_repository_is_never_run(folder, tmp_path):
    """S4: a repository's own code is not run, whatever its config asks for."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    with pytest.raises(ConfigError, match=r"model.path"):
        pretrained(folder).config()
    assert not trace.exists()


def test_a_tokenizer_without_padding_pads_with_its_end_token(folder):
    tokenizer = pretrained(folder).tokenizer()
    assert tokenizer.pad_token == tokenizer.eos_token == "t2"


def test_tokens_outside_the_vocabulary_are_refused(folder):
    options = TokenizerOptions(pad_token="<pad>", eos_token=None, bos_token=None, chat_template=None)
    with pytest.raises(
        ConfigError, match=r"model.tokenizer.pad_token: got '<pad>', expected a token of the vocabulary"
    ):
        pretrained(folder, tokenizer=options).tokenizer()


def test_the_weights_hash_follows_the_content(folder):
    before = pretrained(folder).weights_hash()
    assert before == pretrained(folder).weights_hash()
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert pretrained(folder).weights_hash() != before


def test_quantisation_needs_a_gpu(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"model.quantization: got '4bit', expected null on a machine without"):
        pretrained(folder, quantization="4bit").load()
