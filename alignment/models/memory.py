"""How much memory a run will need, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
import torch

from alignment.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

GIB = 2**30
_MOMENTS = 2  # of Adam


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a process holds whatever the batch: activations come on top.

    Attributes:
        weights: All loaded models.
        training: Gradients and optimiser state.
    """

    weights: int
    training: int

    @property
    def total(self) -> int:
        """Weights and training state together."""
        return self.weights + self.training


def count_parameters(config: PreTrainedConfig) -> int:
    """Counts an architecture's parameters without allocating any."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def plan_memory(
    *,
    parameters: int,
    bytes_a_weight: float,
    bytes_a_trained_number: int,
    bytes_a_moment: int,
    copies: int,
    trainable_share: float,
    shards: int,
) -> MemoryPlan:
    """Adds up what a run holds.

    Args:
        parameters: Of one model.
        bytes_a_weight: 4 for fp32, 2 for bf16, .5 for 4 bits.
        bytes_a_trained_number: Of what trains and its gradient: 4 for fp32, 2 for bf16.
        bytes_a_moment: Of each of Adam's two: as of what trains, or 1 for 8 bits.
        copies: Models that are loaded, the policy and a frozen reference for example.
        trainable_share: What trains, in parameters of one model; an adapter's share is near zero.
        shards: Processes over which FSDP2 spreads everything; 1 otherwise.
    """
    weights = parameters * bytes_a_weight * copies / shards
    bytes_a_parameter = bytes_a_trained_number + _MOMENTS * bytes_a_moment
    training = parameters * trainable_share * bytes_a_parameter / shards
    return MemoryPlan(int(weights), int(training))


def available_bytes(accelerator: str) -> int:
    """Returns the free memory of the device that will train."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def require_memory(plan: MemoryPlan, *, available: int, what: str) -> None:
    """Refuses a run that cannot fit.

    Raises:
        UserError: If the plan's total is more than ``available`` bytes.
    """
    if plan.total > available:
        raise UserError(
            f"{what} needs about {plan.total / GIB:.1f} GiB before any activation "
            f"(weights {plan.weights / GIB:.1f}, gradients and optimiser {plan.training / GIB:.1f}), "
            f"and {available / GIB:.1f} GiB are free. Use adapter=lora with reference=adapter_off, "
            "model.dtype=bfloat16, optim=adamw_8bit, hardware=fsdp on more devices, or a smaller model"
        )
