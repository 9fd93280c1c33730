"""A policy's weights for a sampler in another process: as a folder, and as a name that says whether they changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from alignment.models.export import backbone_state, merged_state
from alignment.models.logprob_model import LogprobModel
from alignment.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HEAD_FILE = "untied.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


def weights_name(model: LogprobModel) -> str:
    """Returns a name of the weights as they are: a hash of the bits of every parameter and buffer.

    Each tensor goes in by the exclusive or of its values, so that nothing is copied from the device.
    """
    state = backbone_state(model.state_dict())
    hashes = torch.stack([torch.hash_tensor(value.detach()).cpu() for value in state.values()])
    names = "\n".join(state).encode()
    return hashlib.sha256(names + hashes.numpy().tobytes()).hexdigest()


def write_folder(model: LogprobModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the policy as a Hugging Face folder, LoRA merged and a tied head written out.

    A sampler that keeps the head in a layout of its own would go on with the old one where the file holds the
    embeddings alone. A value head is left out. The folder is there whole or not at all.

    Args:
        model: Whole on this rank. It is not changed.
        tokenizer: Written beside the weights.
        folder: Replaced if it exists.

    Raises:
        UserError: The adapter is switched off.
    """
    from peft import PeftModel

    state = backbone_state(model.state_dict())
    if isinstance(model.backbone, PeftModel):
        if any(getattr(module, "disable_adapters", None) is True for module in model.backbone.modules()):
            raise UserError("a sampler in another process has the policy with its adapter: it is switched off now")
        state = merged_state(model.backbone, state)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with _no_progress_bar():
            model.hf_model.save_pretrained(str(temporary), state_dict=dict(state))
        tokenizer.save_pretrained(str(temporary))
        if model.hf_model.config.get_text_config().tie_word_embeddings:
            _write_tied(temporary, state, model)
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clear_folder(folder: Path) -> None:
    """Sets every weight in a folder to zero: whoever loads it first shows later which ones it never loaded anew."""
    from safetensors.torch import load_file, save_file

    for path in folder.glob("*.safetensors"):
        save_file({name: torch.zeros_like(value) for name, value in load_file(path).items()}, path, {"format": "pt"})


def _write_tied(folder: Path, state: Mapping[str, Tensor], model: LogprobModel) -> None:
    """Adds the tensors that share another's memory, and has the configuration say that they do not."""
    from safetensors.torch import save_file

    tied = dict(getattr(model.hf_model, "all_tied_weights_keys", {}) or {})
    save_file({target: state[source].cpu().contiguous() for target, source in tied.items()}, folder / _HEAD_FILE)
    index = folder / _INDEX_FILE
    if index.exists():
        listed = json.loads(index.read_text(encoding="utf-8"))
        listed["weight_map"] |= dict.fromkeys(tied, _HEAD_FILE)
        index.write_text(json.dumps(listed), encoding="utf-8")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"tie_word_embeddings": False}), encoding="utf-8")


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
