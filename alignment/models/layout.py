"""Which layouts an architecture can take, and the proof that it does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from alignment.data.collate import TokenSequence, token_batch
from alignment.models.attention import segmented_attention
from alignment.models.kernels import Blocks, Kernel, Runs, plain_attention, window_of
from alignment.types import Layout, Segments
from alignment.utils.errors import ConfigError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from alignment.models.backbone import Attention
    from alignment.models.logprob_model import BackboneModule

LayoutChoice = Literal["auto", "padded", "packed", "prefix_shared"]

#: Architectures (transformers' model types) whose gradients in all layouts are compared by this project's tests.
TESTED = frozenset(
    {"llama", "qwen2", "qwen3", "gemma", "gemma3_text", "mistral", "gpt2", "gpt_neox", "granite", "cohere"}
)
#: Kinds of layers whose attention is that of earlier tokens, all of them or those of a window.
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


def choose_layout(
    wanted: LayoutChoice, *, config: PreTrainedConfig, attention: Attention, tested: frozenset[str] = TESTED
) -> tuple[Layout, str]:
    """Returns the layout to use and why, before any weight is read.

    Args:
        wanted: ``auto`` takes the fastest that is known to be exact.
        config: The architecture.
        attention: The attention implementation.
        tested: The model types that ``auto`` trusts.

    Raises:
        ConfigError: The layout that was asked for cannot be exact for this architecture.
    """
    text = config.get_text_config()
    obstacle = _obstacle(text, attention)
    if wanted == "padded":
        return Layout.PADDED, "as asked for"
    if wanted != "auto":
        if obstacle is not None:
            raise ConfigError(
                "model.layout", got=wanted, expected="padded or auto", hint=f"{text.model_type}: {obstacle}"
            )
        return Layout(wanted), "as asked for"
    if obstacle is not None:
        return Layout.PADDED, f"{text.model_type}: {obstacle}"
    if text.model_type not in tested:
        return Layout.PADDED, (
            f"{text.model_type} is not among the architectures that were tested with the others; "
            "model.layout=prefix_shared tries it, after a check at the start"
        )
    return Layout.PREFIX_SHARED, "no padding, and a shared prompt is computed once"


def _obstacle(config: PreTrainedConfig, attention: Attention) -> str | None:
    """Says why sequences cannot lie behind one another in a row, if they cannot."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if plain_attention(attention) != "sdpa":
        return f"model.attention={attention} sees a row as one sequence; sdpa, flex and varlen can be told otherwise"
    model = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if getattr(model, "_is_stateful", False):
        return "it carries a state from token to token, across the border of two sequences"
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "its attention counts distances in the row (ALiBi)"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if others or getattr(config, "attention_chunk_size", None):
        return f"it has layers of another kind: {', '.join(others) or 'chunked_attention'}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        return "its attention bounds its logits, which sdpa cannot do"
    if not getattr(model, "_supports_sdpa", False):
        return "its attention is none that sdpa computes"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention is written out in its own code, where sequences cannot be told apart"
    return None


@torch.no_grad()
def check_layout(model: BackboneModule) -> None:
    """Compares a model's hidden states in its layout with those of padded rows, on a few tokens.

    Its kernel is compared by itself, on the GPU: the weights may not be there yet.

    Raises:
        UserError: If the two disagree by more than rounding: the architecture would train on wrong numbers.
    """
    if model.layout is Layout.PADDED:
        return
    inner = model.hf_model
    device = next(inner.parameters()).device
    ids = (torch.arange(1, 17) * 7919 % inner.config.get_text_config().vocab_size).tolist()
    pairs = [(ids[:5], ids[5:9]), (ids[:5], ids[9:16]), (ids[3:5], ids[:6])]
    sequences = [TokenSequence(prompt, completion) for prompt, completion in pairs]
    expected, got = (
        model.last_hidden(batch)[batch.target_index].float()
        for layout in (Layout.PADDED, model.layout)
        for batch in [token_batch(sequences, pad_id=0, layout=layout).to(device)]
    )
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    # Quantised weights are computed with in bf16, whatever the type of the rest.
    is_exact = inner.dtype == torch.float32 and not getattr(inner, "is_quantized", False)
    tolerance = 1e-3 if is_exact else 0.05
    if not error <= tolerance:
        raise UserError(
            f"model.layout={model.layout}: hidden states of {type(inner).__name__} differ from those of padded rows by "
            f"{error:.2g} of their size (at most {tolerance} is rounding). Set model.layout=padded"
        )
    if model.kernel != "sdpa" and torch.cuda.is_available():
        check_kernel(model.kernel, config=inner.config, device=torch.device("cuda"))


@torch.enable_grad()
def check_kernel(kernel: Kernel, *, config: PreTrainedConfig, device: torch.device) -> None:
    """Compares a kernel with sdpa, forward and backward in bf16, on a row of random numbers.

    Args:
        kernel: Not ``sdpa``.
        config: The architecture: its heads, and whether it has a sliding window.
        device: Where the kernel runs.

    Raises:
        UserError: If it fails there, or gives anything but what sdpa gives.
    """
    text = config.get_text_config()
    heads, kv_heads = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    # Of more than one block, with a trunk and branches that cross the border of two.
    sequences = [TokenSequence([1] * prompt, [1] * own) for prompt, own in ((150, 7), (150, 60), (3, 2), (40, 130))]
    segments = token_batch(sequences, pad_id=0, layout=Layout.PREFIX_SHARED).segments
    assert segments is not None
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(1, n, segments.home.numel(), size, generator=generator) for n in (heads, kv_heads, kv_heads)]
    there = segments.to(device)
    for window in {None, None if window_of(text) is None else 20}:
        row = Blocks.of(there, windows={window}) if kernel == "flex" else Runs.of(there, dtype=torch.bfloat16)
        expected = _attended(drawn, segments, window=window)
        try:
            got = _attended([states.to(device, torch.bfloat16) for states in drawn], row, window=window)
        except Exception as error:
            raise UserError(
                f"model.attention={kernel} does not run here ({type(error).__name__}: {error}). "
                "Set model.attention=sdpa"
            ) from error
        for mine, theirs in zip(got, expected, strict=True):
            off = ((mine.float().cpu() - theirs).abs().max() / theirs.abs().max()).item()
            if not off <= 0.05:
                raise UserError(
                    f"model.attention={kernel} differs from sdpa by {off:.2g} of its size on this device (at most 0.05 "
                    "is rounding). Set model.attention=sdpa"
                )


def _attended(drawn: list[Tensor], segments: Segments | Blocks | Runs, *, window: int | None) -> list[Tensor]:
    """Returns a layer's output and the gradients of its queries, keys and values."""
    states = [part.detach().requires_grad_() for part in drawn]
    query, key, value = states
    layer: Any = SimpleNamespace(
        training=True, is_causal=True, num_key_value_groups=query.shape[1] // key.shape[1], layer_idx=0
    )
    output, _ = segmented_attention(
        layer, query, key, value, None, segments=segments, sliding_window=window, scaling=query.shape[-1] ** -0.5
    )
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), states)]
