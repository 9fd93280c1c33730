"""Between two logged steps nothing waits for the device: no number is asked for, no shape depends on one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from online_tester import ONLINE
from torch.utils._python_dispatch import TorchDispatchMode

from alignment.data.datamodule import DataModule
from alignment.diagnostics.health import StopOnNonFinite
from alignment.methods.terms import TermsMethod
from alignment.types import Batch

from runs import job, train

#: Operations whose result, or its shape, must be known on the CPU before anything else can go on.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item")


class NoWaiting(TorchDispatchMode):
    """Raises where a GPU would be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split("::")[1].split(".")[0]
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        by_tensor = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        assert name not in WAITING, f"{name} waits for the device"
        assert not by_mask, "an index by a mask waits for the device"
        assert not by_tensor, "repeat_interleave without output_size waits for the device"
        return func(*args, **(kwargs or {}))


def test_the_mode_sees_what_waits():
    values = torch.arange(4.0)
    waiting: list[Any] = [
        lambda: float(values.sum()),
        lambda: bool((values > 1).any()),
        lambda: values[values > 1],
        lambda: values.repeat_interleave(torch.tensor([1, 2, 1, 1])),
    ]
    for ask in waiting:
        with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
            ask()
    with NoWaiting():
        torch.where(values > 1, values, 0.0).sum()


@pytest.mark.parametrize(
    "method",
    [
        ("method=sft",),
        ("method=dpo",),
        ("method=dpo", "method/loss=bco"),
        ("method=dpo", "reference=precomputed"),
        ("method=kto",),
        ("method=orpo",),
        ("method=simpo",),
        ("method=reward_model",),
        ("data.max_length=192", "data.max_prompt_length=96", "method=prm"),
        (*ONLINE, "method=grpo"),
        (*ONLINE, "method=ppo", "critic=value_head"),
        (*ONLINE, "method=online_dpo"),
    ],
    ids=lambda words: words[-1],
)
def test_a_step_that_is_not_logged_waits_for_nothing(method, tmp_path, monkeypatch):
    """A micro-batch's way to the device, its terms and its loss; whether that is finite is asked once a step.

    Of rows without padding: transformers itself looks for packed sequences in padded ones, once a forward pass.
    """
    steps: list[str] = []
    training_step, noted = TermsMethod.training_step, StopOnNonFinite.on_before_backward
    moved: list[Any] = []
    transfer = DataModule.transfer_batch_to_device

    def watched(self: TermsMethod, batch: Batch, batch_idx: int) -> Any:
        with ExitStack() as stack:
            if not self.is_logged:
                steps.append("watched")
                stack.enter_context(NoWaiting())
            return training_step(self, batch, batch_idx)

    def watched_loss(self: StopOnNonFinite, *args: Any) -> None:
        with NoWaiting():
            noted(self, *args)

    monkeypatch.setattr(TermsMethod, "training_step", watched)
    monkeypatch.setattr(StopOnNonFinite, "on_before_backward", watched_loss)

    def moving(self: DataModule, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        whole = type(batch).to
        monkeypatch.setattr(
            type(batch), "to", lambda *args, **options: moved.append(options) or whole(*args, **options)
        )
        try:
            return transfer(self, batch, device, dataloader_idx)
        finally:
            monkeypatch.setattr(type(batch), "to", whole)

    monkeypatch.setattr(DataModule, "transfer_batch_to_device", moving)
    train(job(tmp_path, *method, "trainer.max_steps=3", "trainer.log_every_n_steps=3", "export=null"), tmp_path / "run")
    assert len(steps) >= 4
    assert moved
    assert all(options == {"non_blocking": True} for options in moved)
