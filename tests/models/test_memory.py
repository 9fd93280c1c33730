"""The plan of memory against what a real step holds."""

from __future__ import annotations

import pytest
import torch

from alignment.models.memory import MemoryPlan, plan_memory, require_memory
from alignment.utils.errors import UserError


def plan(parameters: int, *, number: float = 4, **others: float) -> MemoryPlan:
    """Of whole weights that all train, without a reference, unless it says otherwise."""
    sizes = {"bytes_a_weight": number, "bytes_a_trained_number": number, "bytes_a_moment": number}
    return plan_memory(parameters=parameters, **(sizes | {"copies": 1, "trainable_share": 1.0, "shards": 1} | others))


@pytest.mark.parametrize(("dtype", "bytes_a_number"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_the_plan_is_what_a_step_of_adamw_holds(dtype, bytes_a_number):
    model = torch.nn.Linear(64, 32, bias=False, dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 64, dtype=dtype)).sum().backward()
    optimizer.step()
    (state,) = optimizer.state.values()
    held = model.weight.grad.nbytes + state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes
    planned = plan(model.weight.numel(), number=bytes_a_number, copies=2)
    assert planned == MemoryPlan(weights=2 * model.weight.nbytes, training=held)


def test_shards_divide_everything_and_an_adapter_trains_its_share_in_fp32():
    assert plan(1000, bytes_a_weight=0.5, trainable_share=0.02, shards=2) == MemoryPlan(weights=250, training=120)


def test_what_cannot_fit_is_refused_with_what_would_help():
    gib = 2**30
    with pytest.raises(UserError, match=r"needs about 8.0 GiB .*weights 2.0, .* 6.0.*, and 7.0 GiB are free"):
        require_memory(MemoryPlan(2 * gib, 6 * gib), available=7 * gib, what="model m")
    require_memory(MemoryPlan(2 * gib, 6 * gib), available=8 * gib, what="model m")


def test_memory_is_refused_with_the_numbers():
    planned = plan(7 * 10**9, copies=2)
    assert planned.weights == 56 * 10**9
    assert planned.training == 84 * 10**9
    with pytest.raises(UserError, match=r"needs about 130.4 GiB .* and 24.0 GiB are free. Use adapter=lora"):
        require_memory(planned, available=24 * 2**30, what="model x")
    require_memory(planned, available=200 * 2**30, what="model x")
