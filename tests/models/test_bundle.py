"""The bundle loads what the roles declare and nothing else; its reference strategies agree at step 0."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from alignment.data.collate import token_batch
from alignment.models.backbone import RandomModel
from alignment.models.bundle import ModelBundle
from alignment.models.references import AdapterOff, FrozenCopy, Precomputed
from alignment.types import PreferenceBatch, Role
from alignment.utils.errors import ConfigError

from tiny import LENGTHS, random_sequences

FROZEN = partial(FrozenCopy, refresh_every_n_steps=None, refresh_mix=1.0)

DPO_ROLES = frozenset({Role.POLICY, Role.REFERENCE})


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {f"t{i}": i for i in range(64)}
    words = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="t3"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", bos_token="t1", eos_token="t2")


def source(**fields) -> RandomModel:
    options = {
        "architecture": "llama",
        "config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
        },
        "seed": 0,
        "dtype": "float32",
        "attention": "sdpa",
        "gradient_checkpointing": False,
        "compile": False,
        "chunk_tokens": 16,
        "layout": "auto",
        "build_tokenizer": tokenizer,
    }
    return RandomModel(**(options | fields))


def bundle(*, adapter: bool = False, reference=None) -> ModelBundle:
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None
    return ModelBundle(source=source(), adapter=lora, reference=reference, seed=0)


def pairs(reference_token_logps: torch.Tensor | None = None) -> PreferenceBatch:
    tokens = token_batch(random_sequences(LENGTHS), pad_id=0)
    return PreferenceBatch(
        ids=("a", "b"),
        weights=torch.ones(2),
        counts={"records": 2.0, "tokens": 17.0, "chosen_tokens": 7.0},
        tokens=tokens,
        margins=torch.zeros(2),
        reference_token_logps=reference_token_logps,
    )


@pytest.mark.parametrize(
    ("adapter", "reference", "roles", "loaded"),
    [
        (False, FROZEN, DPO_ROLES, 2),
        (True, FROZEN, DPO_ROLES, 2),
        (True, partial(AdapterOff), DPO_ROLES, 1),
        (False, partial(Precomputed), DPO_ROLES, 1),
        (False, None, frozenset({Role.POLICY}), 1),
    ],
)
def test_loaded_models_equal_declared_roles(adapter, reference, roles, loaded):
    built = bundle(adapter=adapter, reference=reference)
    built.build(roles)
    assert built.loaded_models == loaded
    assert built.build(roles) is built.trained
    assert built.loaded_models == loaded, "a second build loads nothing"


@pytest.mark.parametrize(("adapter", "strategy"), [(False, FROZEN), (True, FROZEN), (True, partial(AdapterOff))])
def test_at_step_0_the_reference_is_the_policy(adapter, strategy):
    """T14."""
    built = bundle(adapter=adapter, reference=strategy)
    policy = built.build(DPO_ROLES)
    batch = pairs()
    with torch.no_grad():
        expected = policy(batch.tokens).token_logps
    got = built.reference.batch_logps(batch)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    assert not got.requires_grad


def test_a_hole_in_the_reference_cache_raises():
    built = bundle(reference=partial(Precomputed))
    built.build(DPO_ROLES)
    with pytest.raises(RuntimeError, match=r"no log-probs for the records \['a', 'b'\]"):
        built.reference.batch_logps(pairs())
    assert built.reference.scorer() is None


def test_frozen_weights_are_outside_the_module_tree_and_do_not_train():
    built = bundle(reference=FROZEN)
    policy = built.build(DPO_ROLES)
    frozen = built.reference.frozen
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    inside = {id(parameter) for parameter in policy.parameters()}
    assert not inside & {id(parameter) for parameter in frozen.parameters()}


def test_checkpointing_gives_an_adapter_its_gradients():
    """T34: with an adapter the embeddings are frozen; what trains still gets the gradient that it has without."""
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    gradients = []
    for checkpointing in (False, True):
        built = ModelBundle(source=source(gradient_checkpointing=checkpointing), adapter=lora, reference=None, seed=0)
        policy = built.build(frozenset({Role.POLICY})).train()
        policy(pairs().tokens).token_logps.sum().backward()
        trained = {name: value.grad for name, value in policy.named_parameters() if value.requires_grad}
        assert all(gradient is not None for gradient in trained.values())
        gradients.append(trained)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)
    assert any(gradient.abs().max() > 1e-4 for gradient in gradients[1].values())


def test_adapter_off_without_an_adapter_says_what_to_do():
    with pytest.raises(ConfigError, match="use reference=frozen_copy, or set adapter=lora"):
        bundle(reference=partial(AdapterOff)).build(DPO_ROLES)


def test_a_missing_reference_and_one_too_many_are_errors():
    with pytest.raises(ConfigError, match="this method compares the policy with a reference"):
        bundle().build(DPO_ROLES)
    with pytest.raises(ConfigError, match="set reference=none"):
        bundle(reference=FROZEN).build(frozenset({Role.POLICY}))


def test_a_kernel_that_compiles_itself_is_not_compiled_around():
    ModelBundle(source=source(attention="flex"), adapter=None, reference=None, seed=0).build({Role.POLICY})
    with pytest.raises(ConfigError, match=r"model\.compile.*false with model\.attention=flex"):
        ModelBundle(source=source(attention="flex", compile=True), adapter=None, reference=None, seed=0)


def test_loading_leaves_the_random_state_where_it_was():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    bundle(adapter=True, reference=FROZEN).build(DPO_ROLES)
    assert torch.equal(torch.get_rng_state(), before)
