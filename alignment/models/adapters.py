"""Low-rank adapters through peft."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from alignment.models.score_model import score_head_name
from alignment.types import Head
from alignment.utils.errors import ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

    from alignment.models.logprob_model import LogprobModel


#: peft's name of what a model with each head is for.
_TASKS = {Head.LANGUAGE: "CAUSAL_LM", Head.SCORE: "SEQ_CLS", Head.STEPS: "TOKEN_CLS"}


def adapter_for(config: LoraConfig, model: PreTrainedModel, head: Head) -> LoraConfig:
    """Returns the configuration for a model with this head: one that judges trains whole, beside the adapter."""
    if head is Head.LANGUAGE:
        return config
    changed = copy.deepcopy(config)
    changed.task_type = _TASKS[head]
    changed.modules_to_save = sorted({*(config.modules_to_save or ()), score_head_name(model)})
    return changed


def apply_adapter(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> PeftModel:
    """Puts an adapter into a model; only the adapter trains, and at first it changes nothing.

    Args:
        model: The base model, whose weights are frozen.
        config: A peft configuration.
        seed: Seeds the adapter's weights, so that every rank draws the same ones.

    Raises:
        ConfigError: If the configuration names modules that are not there, uses dropout, or would untie tied weights.
    """
    from peft import get_peft_model

    _check_adapter(model, config)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.random.default_generator.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            modules = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if hasattr(m, "weight")})
            raise ConfigError(
                "adapter.target_modules",
                got=config.target_modules,
                expected=f"names among {', '.join(modules)}, or all-linear",
                hint=str(error).splitlines()[0],
            ) from error
    return adapted  # type: ignore[return-value]


_NOT_OFF = "with it, the model with its adapter off is no longer the base model: adapter_off would be a wrong reference"
_NOT_MERGED = "the merged export does not know it, and would be another model"
#: Options of peft that would give wrong numbers without a sign: name, values that are fine, why.
_REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("bias", ("none",), _NOT_OFF),
    ("init_lora_weights", (True, "gaussian"), _NOT_OFF),
    ("use_dora", (False, None), _NOT_MERGED),
    ("lora_bias", (False, None), _NOT_MERGED),
    ("target_parameters", (None,), _NOT_MERGED),
    ("trainable_token_indices", (None,), _NOT_MERGED),
    ("layer_replication", (None,), _NOT_MERGED),
)


def _check_adapter(model: PreTrainedModel, config: LoraConfig) -> None:
    if config.lora_dropout:
        raise ConfigError(
            "adapter.lora_dropout",
            got=config.lora_dropout,
            expected="0.0",
            hint="with dropout the policy's log-probs differ from its own on the same tokens",
        )
    for name, neutral, why in _REFUSED:
        value = getattr(config, name, None)
        if value not in neutral:
            raise ConfigError(f"adapter.{name}", got=value, expected=f"{neutral[0]!r}", hint=why)
    head_names = {"lm_head", "embed_tokens", "wte", "embed_out", "embed_in"}
    saved = set(config.modules_to_save or ()) & head_names
    targeted = set() if isinstance(config.target_modules, str) else set(config.target_modules or ()) & head_names
    if model.config.get_text_config().tie_word_embeddings and (saved or targeted):
        raise ConfigError(
            "adapter.modules_to_save" if saved else "adapter.target_modules",
            got=sorted(saved or targeted),
            expected="no embedding and no head, because this model ties the two",
            hint="an adapted copy of one would untie them, and a merged export would be another model",
        )


@contextmanager
def adapter_disabled(model: LogprobModel) -> Iterator[None]:
    """Switches the adapter off: inside, the model is its base model, bit by bit."""
    with model.backbone.disable_adapter():  # type: ignore[operator]
        yield
