"""The one log-prob path: a token batch goes in, the log-probs of its scored tokens come out.

Every method, evaluation and reference reads log-probs here and nowhere else. Only this module knows
how rows are laid out; sharding, compiling and activation checkpointing all see this one forward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from alignment.models.attention import SEGMENTED
from alignment.models.kernels import Kernel, prepare
from alignment.models.reading import values_at
from alignment.ops.logprobs import chunked_head
from alignment.types import Layout, TokenBatch, TokenLogps
from alignment.utils.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

#: Changes whenever the path's numbers may change: it is part of the reference cache's key.
LOGPROB_PATH_VERSION = 4


class BackboneModule(nn.Module):
    """A Hugging Face model, with or without an adapter, behind one forward of this project's own.

    Args:
        backbone: The Hugging Face model, or the PeftModel around it.
        layout: How its batches are to be laid out; padded ones it takes too.
        kernel: What computes the attention of several sequences in one row.

    Attributes:
        backbone: As given: for generation, adapters and export.
        layout: As given.
        kernel: As given.
    """

    def __init__(
        self, backbone: PreTrainedModel | PeftModel, *, layout: Layout = Layout.PADDED, kernel: Kernel = "sdpa"
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layout = layout
        self.kernel: Kernel = kernel
        if layout is not Layout.PADDED:
            self.hf_model.set_attn_implementation(SEGMENTED)

    @property
    def hf_model(self) -> PreTrainedModel:
        """The Hugging Face model itself; adapters sit inside its layers."""
        return unwrap(self.backbone)

    def last_hidden(self, batch: TokenBatch) -> Float[Tensor, "positions hidden"]:
        """Runs the trunk; rows and columns are flat, as ``predictor_index`` counts them."""
        model, mask, options = self.hf_model, batch.attention_mask, dict[str, Any]()
        if batch.segments is not None:
            # A mask of four dimensions reaches the attention as it is, which has no use for it: else transformers
            # would make one over the whole row.
            mask = batch.input_ids.new_zeros(1, 1, 1, 1, dtype=torch.bool)
            options["segments"] = prepare(
                batch.segments, self.kernel, config=model.config, device=mask.device, dtype=model.dtype
            )
        output = model.base_model(
            input_ids=batch.input_ids,
            attention_mask=mask,
            position_ids=batch.position_ids,
            use_cache=False,
            **options,
        )
        return output.last_hidden_state.flatten(0, 1)


class LogprobModel(BackboneModule):
    """Wraps a causal language model.

    Args:
        backbone: The Hugging Face model, or the PeftModel around it.
        chunk_tokens: Scored tokens whose logits exist at a time, in fp32; a head of another type is copied whole.
        layout: How its batches are to be laid out.
        kernel: What computes the attention of several sequences in one row.

    Attributes:
        value_head: A critic's layer on this trunk; ``None`` without one.
    """

    def __init__(
        self,
        backbone: PreTrainedModel | PeftModel,
        *,
        chunk_tokens: int,
        layout: Layout = Layout.PADDED,
        kernel: Kernel = "sdpa",
    ) -> None:
        super().__init__(backbone, layout=layout, kernel=kernel)
        self.chunk_tokens = chunk_tokens
        self.value_head: nn.Linear | None = None

    def forward(
        self,
        batch: TokenBatch,
        temperature: float = 1.0,
        collision: bool = False,
        entropy: bool = False,
        rank: bool = False,
        values: bool = False,
    ) -> TokenLogps:
        """Scores a batch.

        Args:
            batch: Sequences in rows.
            temperature: Divides the logits, as in sampling.
            collision: Whether to give ``collision_logps`` too.
            entropy: Whether to give ``entropies`` too.
            rank: Whether to give ``ranks`` too.
            values: Whether to give ``values`` too, by the value head.

        Returns:
            Log-probs in nats, fp32, flat over the scored tokens.
        """
        model = self.hf_model
        head = active_head(model)
        hidden = self.last_hidden(batch)
        scored = chunked_head(
            hidden[batch.predictor_index],
            head.weight,
            batch.targets,
            bias=head.bias,
            scale=_logit_scale(model),
            softcap=_text_config(model, "final_logit_softcapping"),
            temperature=temperature,
            chunk_tokens=self.chunk_tokens,
            collision=collision,
            entropy=entropy,
            rank=rank,
            half=half_for_products(head.weight),
        )
        return TokenLogps(
            token_logps=scored.logps,
            sequence_index=batch.sequence_index,
            num_sequences=batch.num_sequences,
            in_completion=batch.in_completion,
            is_greedy=scored.is_greedy,
            collision_logps=scored.collision_logps,
            entropies=scored.entropies,
            ranks=scored.ranks,
            values=values_at(hidden, batch, head=self.value_head) if values and self.value_head is not None else None,
        )


def half_for_products(weight: Tensor) -> torch.dtype | None:
    """Returns the half precision that a head's products are made in: on a GPU autocast's, or the weights' own."""
    if weight.device.type != "cuda":
        return None
    if torch.is_autocast_enabled("cuda"):
        return torch.get_autocast_dtype("cuda")
    return weight.dtype if weight.dtype in (torch.bfloat16, torch.float16) else None


def unwrap(backbone: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Returns the Hugging Face model inside a PeftModel, or the model itself."""
    from peft import PeftModel

    return backbone.get_base_model() if isinstance(backbone, PeftModel) else backbone  # type: ignore[return-value]


def active_head(model: PreTrainedModel) -> nn.Linear:
    """Returns the linear layer that projects onto the vocabulary, the adapter's own copy when it has one.

    Raises:
        UserError: If the head is adapted in a way that has no weight of its own, LoRA on the head for example.
    """
    from peft.utils import ModulesToSaveWrapper

    head = model.get_output_embeddings()
    if isinstance(head, ModulesToSaveWrapper):
        adapted = not head.disable_adapters and bool(head.active_adapters)
        head = head.modules_to_save[head.active_adapters[0]] if adapted else head.original_module
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"the output head of {type(model).__name__} is a {type(head).__name__}, expected a plain linear layer. "
            "LoRA on the head itself is not offered: take it out of adapter.target_modules, "
            "or train a full copy with adapter.modules_to_save"
        )
    return head


def _text_config(model: PreTrainedModel, name: str) -> float | None:
    value = getattr(model.config.get_text_config(), name, None)
    return None if value is None else float(value)


def _logit_scale(model: PreTrainedModel) -> float:
    multiplier = _text_config(model, "logit_scale")  # Cohere multiplies
    divisor = _text_config(model, "logits_scaling")  # Granite divides
    return (1.0 if multiplier is None else multiplier) / (1.0 if divisor is None else divisor)


@torch.no_grad()
def check_head(model: LogprobModel) -> None:
    """Compares the path with the model's own logits on a few tokens.

    An architecture that treats its logits in a way this path does not know would train on wrong numbers
    without any sign; it is refused by name instead.

    Raises:
        UserError: If the two disagree by more than rounding.
    """
    hf_model = model.hf_model
    vocabulary = hf_model.config.get_text_config().vocab_size
    device = next(hf_model.parameters()).device
    ids = (torch.arange(1, 9, device=device) * 7919 % vocabulary)[None]
    width = ids.shape[1]
    batch = TokenBatch(
        input_ids=ids,
        attention_mask=None,
        position_ids=None,
        predictor_index=torch.arange(width - 1, device=device),
        target_index=torch.arange(1, width, device=device),
        targets=ids[0, 1:],
        sequence_index=torch.zeros(width - 1, dtype=torch.long, device=device),
        num_sequences=1,
        num_real_tokens=width,
    )
    logits = hf_model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    expected = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    got = model(batch).token_logps
    tolerance = 1e-3 if logits.abs().max() < 1e3 and hf_model.dtype == torch.float32 else 0.25
    error = (got - expected).abs().max().item()
    if not error <= tolerance:
        raise UserError(
            f"{type(hf_model).__name__}: log-probs of the chunked head differ from the model's own by {error:.2g} "
            f"nats (at most {tolerance} is rounding). This architecture changes its logits in a way that is not "
            "known here; it cannot be trained with these weights until the head is described in "
            "alignment/models/logprob_model.py"
        )


def num_parameters(module: nn.Module, *, trainable_only: bool = False) -> int:
    """Counts parameters, shared ones once."""
    parameters: list[Tensor] = list(module.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad or not trainable_only)
