"""Hand-over: a plain Hugging Face folder that transformers loads without this project."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from alignment.models.logprob_model import BackboneModule
from alignment.utils.errors import UserError
from alignment.utils.files import fsync_folder

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

_PREFIX = "backbone."


def export(
    model: BackboneModule,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    adapter: Literal["merged", "separate"],
    card: str,
    is_writer: bool,
) -> None:
    """Writes the trained model as a Hugging Face folder, all at once: it is there whole or not at all.

    Every rank calls this, since sharded weights are gathered; one of them writes.

    Args:
        model: The trained model. It is not changed.
        tokenizer: Written beside the weights, chat template included.
        folder: Replaced if it exists.
        adapter: ``merged`` folds LoRA into the weights, ``separate`` writes the adapter only (for peft).
        card: The model card's text, README.md.
        is_writer: True on rank 0.

    Raises:
        UserError: If quantised weights were to be merged.
    """
    from peft import PeftModel

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole: dict[str, Any] = get_model_state_dict(model, options=options)
    state = backbone_state(whole)
    if not is_writer:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        if isinstance(model.backbone, PeftModel) and adapter == "separate":
            model.backbone.save_pretrained(str(temporary), state_dict=state)
        else:
            merged = merged_state(model.backbone, state) if isinstance(model.backbone, PeftModel) else state
            model.hf_model.save_pretrained(str(temporary), state_dict=_untied(merged, model))
        tokenizer.save_pretrained(str(temporary))
        (temporary / "README.md").write_text(card, encoding="utf-8")
        temporary.chmod(0o755)
        _replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def backbone_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a model's weights under its backbone's own names; a value head on the trunk is none of them."""
    return {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}


def merged_state(model: PeftModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the base model's weights with LoRA folded in, under the base model's names.

    W' = W + scaling * B A, computed in fp32 from a gathered state: the live model is left as it is.

    Args:
        model: Says each layer's scaling and orientation.
        state: The whole model's weights, with peft's names.
    """
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    if getattr(model.get_base_model(), "is_quantized", False):
        raise UserError("4-bit weights cannot take a merged adapter: set export=separate")
    merged = {name: value for name, value in state.items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            adapter = module.active_adapters[0]
            low_rank = (
                state[f"{name}.lora_B.{adapter}.weight"].float() @ state[f"{name}.lora_A.{adapter}.weight"].float()
            )
            delta = low_rank.T if module.fan_in_fan_out else low_rank  # type: ignore[attr-defined]
            key = f"{name}.base_layer.weight"
            merged[key] = (state[key].float() + module.scaling[adapter] * delta).to(state[key].dtype)
        elif isinstance(module, ModulesToSaveWrapper):
            adapter = module.active_adapters[0]
            for key in [key for key in merged if key.startswith(f"{name}.modules_to_save.{adapter}.")]:
                merged[key.replace(f".modules_to_save.{adapter}", ".original_module")] = merged.pop(key)
    strip = ("base_model.model.", ".base_layer", ".original_module")
    return {_without(name, strip): value for name, value in merged.items()}


def _without(name: str, parts: tuple[str, ...]) -> str:
    for part in parts:
        name = name.replace(part, "")
    return name


def _untied(state: dict[str, Tensor], model: BackboneModule) -> dict[str, Tensor]:
    """Makes tied entries one tensor again, as save_pretrained expects, after a gather made two of them."""
    hf_model = model.hf_model
    if not hf_model.config.get_text_config().tie_word_embeddings:
        return state
    tied = dict(getattr(hf_model, "all_tied_weights_keys", {}) or {})
    for target, source in tied.items():
        if source in state:
            state[target] = state[source]
    return state


def _replace(temporary: Path, folder: Path) -> None:
    """Puts a finished folder in place of an older one; a crash in between leaves one of the two."""
    old = folder.with_name(f".{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    fsync_folder(folder.parent)
