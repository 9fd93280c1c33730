"""Models that judge: a value for each sequence, or two logits for each step of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignment.models.logprob_model import BackboneModule
from alignment.models.reading import last_token_index, project
from alignment.types import Head, TokenBatch
from alignment.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Outputs of each kind of head.
NUM_LABELS = {Head.SCORE: 1, Head.STEPS: 2}


class SequenceScorer(BackboneModule):
    """Wraps a sequence classifier with one output: the reward of each sequence, read at its last real token.

    The place comes from lengths, never from a search for the pad token: padding on either side, or a pad token that
    is the end-of-sequence token, changes nothing.
    """

    def forward(self, batch: TokenBatch) -> Float[Tensor, "sequences"]:
        """Returns one value a sequence, fp32, without a unit."""
        hidden = self.last_hidden(batch)[last_token_index(batch)]
        return project(hidden, score_head(self.hf_model))[:, 0]


class StepScorer(BackboneModule):
    """Wraps a token classifier with two outputs, wrong and right, read at each scored token."""

    def forward(self, batch: TokenBatch) -> Float[Tensor, "tokens 2"]:
        """Returns the two logits of each scored token, fp32."""
        hidden = self.last_hidden(batch)[batch.target_index]
        return project(hidden, score_head(self.hf_model))


def score_head(model: PreTrainedModel) -> nn.Linear:
    """Returns the linear layer on top of the trunk, the adapter's trained copy of it when there is one.

    Raises:
        UserError: If the architecture has no such layer of its own.
    """
    head = _active(getattr(model, score_head_name(model)))
    assert isinstance(head, nn.Linear)
    return head


def score_head_name(model: PreTrainedModel) -> str:
    """Returns the attribute under which a classifier keeps its linear head."""
    for name, module in model.named_children():
        if name != model.base_model_prefix and isinstance(_active(module), nn.Linear):
            return name
    raise UserError(
        f"{type(model).__name__} has no plain linear head on its trunk: it cannot serve as a reward model here. "
        "Use a Llama, Qwen, Mistral, Gemma, Phi or GPT-2 model"
    )


def _active(module: nn.Module) -> nn.Module:
    from peft.utils import ModulesToSaveWrapper

    if not isinstance(module, ModulesToSaveWrapper):
        return module
    adapted = not module.disable_adapters and bool(module.active_adapters)
    return module.modules_to_save[module.active_adapters[0]] if adapted else module.original_module


@torch.no_grad()
def check_score_head(model: SequenceScorer | StepScorer) -> None:
    """Compares a scorer with the classifier's own forward on a few tokens.

    Raises:
        UserError: If the two disagree by more than rounding: this architecture does something more with its head.
    """
    inner = model.hf_model
    device = next(inner.parameters()).device
    ids = (torch.arange(1, 9, device=device) * 7919 % inner.config.get_text_config().vocab_size)[None]
    pad = inner.config.get_text_config().pad_token_id
    if pad is not None:  # the classifier's own search for the end must not stop here
        ids[ids == pad] = (pad + 1) % inner.config.get_text_config().vocab_size
    width = ids.shape[1]
    index = torch.arange(width - 1, device=device)
    batch = TokenBatch(ids, None, None, index, index + 1, ids[0, 1:], torch.zeros_like(index), 1, width)
    expected = inner(input_ids=ids, use_cache=False).logits.float()
    got = model(batch)
    wanted = expected[0] if isinstance(model, SequenceScorer) else expected[0, 1:]
    error = (got - wanted).abs().max().item()
    tolerance = 1e-3 if inner.dtype == torch.float32 else 0.25
    if not error <= tolerance * max(1.0, wanted.abs().max().item()):
        raise UserError(
            f"{type(inner).__name__}: scores differ from the model's own by {error:.2g}. This architecture does more "
            "with its head than a linear layer, and cannot serve as a reward model here"
        )
