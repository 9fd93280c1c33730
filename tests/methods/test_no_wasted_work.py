"""What a step computes: a forward pass of each model that its loss reads, and nothing beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from online_tester import ONLINE
from torch import nn

from alignment.methods.base import Method
from alignment.models.critic import StateValues
from alignment.models.logprob_model import LogprobModel
from alignment.models.score_model import SequenceScorer, StepScorer

from runs import job, train

#: Two micro-batches make a step.
SHORT = ("export=null", "trainer.limit_val_batches=0", "callbacks.checkpoint.every_n_steps=100")
FREE = ("method/kl=none", "reference=none")


@dataclass(frozen=True)
class Forward:
    """One forward pass of a model.

    Attributes:
        model: Whose.
        use: ``learns`` where a gradient is wanted, ``scores`` where none is.
        entropy: Whether entropies were asked for.
        trunk: What each pass of the trunk inside it was asked for and gave.
    """

    model: nn.Module
    use: str
    entropy: bool
    trunk: list[dict[str, Any]]


class Watch:
    """Notes every forward pass of training, which begins when all models are loaded and every cache is filled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forwards: list[Forward] = []
        self.micro_batches = 0
        self.method: Method
        for kind in (LogprobModel, SequenceScorer, StepScorer, StateValues):
            monkeypatch.setattr(kind, "forward", self._noted(kind.forward))
        start, end = Method.on_train_start, Method.end_batch

        def on_train_start(method):
            start(method)
            self.method = method
            self.forwards.clear()

        def end_batch(method, batch):
            end(method, batch)
            self.micro_batches += 1

        monkeypatch.setattr(Method, "on_train_start", on_train_start)
        monkeypatch.setattr(Method, "end_batch", end_batch)

    def _noted(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def noted(model, *args, **kwargs):
            trunk: list[dict[str, Any]] = []

            def note(module, inputs, options, output):
                kept = {
                    name: getattr(output, name, None) for name in ("hidden_states", "attentions", "past_key_values")
                }
                trunk.append(
                    {"use_cache": options.get("use_cache")} | {name: it is not None for name, it in kept.items()}
                )

            handle = model.hf_model.base_model.register_forward_hook(note, with_kwargs=True)
            try:
                return forward(model, *args, **kwargs)
            finally:
                handle.remove()
                use = "learns" if torch.is_grad_enabled() else "scores"
                self.forwards.append(Forward(model, use, kwargs.get("entropy", False), trunk))

        return noted

    def counts(self) -> dict[str, int]:
        """How often each model was run, and to what use."""
        bundle = self.method.bundle
        reference = None if bundle.reference is None else bundle.reference.frozen
        critic = None if bundle.critic is None else bundle.critic.model
        names = {id(critic): "critic", id(reference): "reference", id(self.method.trained): "policy"}
        return dict(Counter(f"{names[id(item.model)]} {item.use}" for item in self.forwards))


@pytest.fixture
def watch(monkeypatch) -> Watch:
    return Watch(monkeypatch)


def run(tmp_path: Path, *overrides: str, steps: int = 2) -> None:
    train(job(tmp_path, *SHORT, f"trainer.max_steps={steps}", *overrides), tmp_path / "run")


OFFLINE = {
    "sft": (("method=sft", "data=world_demonstrations"), {"policy learns": 4}),
    "dpo": (("method=dpo",), {"policy learns": 4, "reference scores": 4}),
    "dpo-precomputed": (("method=dpo", "reference=precomputed"), {"policy learns": 4}),
    "dpo-adapter_off": (
        ("method=dpo", "adapter=lora", "reference=adapter_off"),
        {"policy learns": 4, "policy scores": 4},
    ),
    "dpo-rpo-wpo": (
        ("method=dpo", "method.nll_coefficient=1", "method.weighting=wpo"),
        {"policy learns": 4, "reference scores": 4},
    ),
    "ipo": (("method=ipo",), {"policy learns": 4, "reference scores": 4}),
    "simpo": (("method=simpo",), {"policy learns": 4}),
    "orpo": (("method=orpo",), {"policy learns": 4}),
    "cpo": (("method=cpo",), {"policy learns": 4}),
    # Its baseline is a term too: as many completions of other prompts, without a gradient.
    "kto": (("method=kto", "data=world_feedback"), {"policy learns": 4, "policy scores": 4, "reference scores": 8}),
    "kto-zero": (
        ("method=kto", "data=world_feedback", "method.z0=zero"),
        {"policy learns": 4, "reference scores": 4},
    ),
    "reward_model": (("method=reward_model",), {"policy learns": 4}),
}


@pytest.mark.parametrize(("overrides", "counts"), OFFLINE.values(), ids=OFFLINE)
def test_an_offline_step_runs_each_model_once_a_micro_batch(tmp_path, watch, overrides, counts):
    run(tmp_path, *overrides)
    assert watch.micro_batches == 4
    assert watch.counts() == counts


WRITING = {
    # The engine's own log-probs are the old ones: one update a batch needs no others.
    "grpo-free": (2, ("method=grpo", *FREE), {"policy learns": 4}),
    "grpo": (2, ("method=grpo",), {"policy learns": 4, "reference scores": 4}),
    "grpo-two-epochs": (
        4,
        ("method=grpo", *FREE, "method.rollouts.epochs=2"),
        {"policy learns": 8, "policy scores": 4},
    ),
    "grpo-two-minibatches": (
        4,
        ("method=grpo", *FREE, "method.rollouts.minibatches=2"),
        {"policy learns": 8, "policy scores": 8},
    ),
    "grpo-corrected": (
        2,
        ("method=grpo", *FREE, "method.rollouts.importance_cap=2"),
        {"policy learns": 4, "policy scores": 4},
    ),
    "rloo-free": (2, ("method=rloo", *FREE), {"policy learns": 4}),
    "reinforce_pp-free": (2, ("method=reinforce_pp", *FREE), {"policy learns": 4}),
    "online_dpo": (2, ("method=online_dpo",), {"policy learns": 4, "reference scores": 4}),
    "online_ipo": (2, ("method=online_ipo",), {"policy learns": 4, "reference scores": 4}),
    # The critic is read once when completions are measured, and once when it learns.
    "ppo": (
        2,
        ("method=ppo", "method.rollouts.minibatches=1", "method.rollouts.epochs=1"),
        {"policy learns": 4, "reference scores": 4, "critic learns": 4, "critic scores": 4},
    ),
    "ppo-value_head": (
        4,
        ("method=ppo", *FREE, "critic=value_head", "method.rollouts.minibatches=1", "method.rollouts.epochs=2"),
        {"policy learns": 8, "policy scores": 4},
    ),
}


@pytest.mark.parametrize(("steps", "overrides", "counts"), WRITING.values(), ids=WRITING)
def test_completions_are_scored_again_only_for_later_updates(tmp_path, watch, steps, overrides, counts):
    run(tmp_path, *ONLINE, *overrides, steps=steps)
    assert watch.micro_batches == 2 * steps
    assert watch.counts() == counts


@pytest.mark.parametrize(
    "overrides",
    [("method=dpo",), ("method=reward_model",), (*ONLINE, "method=ppo"), ("method=dpo", "model.layout=padded")],
    ids=" ".join,
)
def test_a_forward_pass_is_one_of_the_trunk_and_keeps_nothing_that_nobody_reads(tmp_path, watch, overrides):
    run(tmp_path, *overrides)
    assert len(watch.forwards) >= 4
    nothing = {"use_cache": False, "hidden_states": False, "attentions": False, "past_key_values": False}
    assert all(item.trunk == [nothing] for item in watch.forwards)


@pytest.mark.parametrize("overrides", [("method=sft", "data=world_demonstrations"), (*ONLINE, "method=grpo", *FREE)])
def test_entropies_are_computed_for_steps_that_are_logged(tmp_path, watch, overrides):
    run(tmp_path, *overrides, "trainer.log_every_n_steps=2", steps=4)
    assert [item.entropy for item in watch.forwards] == [False, False, True, True] * 2
