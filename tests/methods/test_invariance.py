"""Every objective against everything that may change speed or memory and never a number.

The cells that need two processes, accumulation or a resume stand beside each method (test_NAME.py), and the gradient of
a step that is cut up in test_gradient_shares.py. What a method refuses is listed here with the words of its error.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from online_tester import ONLINE

from alignment.config.rules import check_rules
from alignment.methods.prm import PRM
from alignment.methods.reward_model import RewardModel
from alignment.methods.terms import TermsMethod
from alignment.types import BinaryBatch, TokenBatch
from alignment.utils.errors import ConfigError

from runs import exported, job, metrics, train

METHODS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "method").glob("*.yaml"))
#: What chooses a method on records that it can read with a tiny model.
CHOICE = {name: (f"method={name}",) for name in METHODS} | {"prm": ("method=prm", "model=chains_init")}
#: Those that write what they learn from.
WRITERS = ("grpo", "online_dpo", "online_ipo", "ppo", "reinforce_pp", "rloo")
CHOICE |= {name: (f"method={name}", "method.rollouts.group_size=2", *ONLINE) for name in WRITERS}
SHORT = ("trainer.max_steps=3", "callbacks.checkpoint.every_n_steps=100", "trainer.limit_val_batches=0")
JUDGES = {"reward_model", "prm"}
NO_REFERENCE = {"sft", "simpo", "cpo", "orpo"} | JUDGES
#: Each kind of batch, of head and of writing; the decoder, which is what is compiled, knows no method.
COMPILED = {"sft", "dpo", "kto", "reward_model", "prm", "grpo", "ppo"}
#: Changes nothing but rounding.
OPTIONS = {
    "chunk size": ("model.chunk_tokens=3",),
    "checkpointing": ("model.gradient_checkpointing=true",),
    "compile": ("model.compile=true",),
    "workers": ("data.num_workers=1",),
    "pieces": ("data.micro_batch_size=1",),
    "padded rows": ("model.layout=padded",),
    "packed rows": ("model.layout=packed",),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    """What a process has compiled decides which shapes torch takes for dynamic next: each test begins without it."""
    torch.compiler.reset()


def losses(tmp_path, name: str, *overrides: str) -> dict[int, dict[str, float]]:
    rows = metrics(train(job(tmp_path, *CHOICE[name], *SHORT, *overrides), tmp_path / "-".join(overrides)))
    # Accuracy counts signs: where policy and reference are the same, rounding decides how a tie falls.
    kept = {n for row in rows.values() for n in row if "/loss/" in n or "/reward/" in n} - {"train/reward/accuracy"}
    kept.add("train/optim/grad_norm")  # a loss says nothing of its gradient: at ratio 1 it is minus the mean advantage
    return {step: {n: row[n] for n in kept & row.keys()} for step, row in rows.items()}


def assert_equal(got, expected, *, tolerance: float) -> None:
    assert set(got) == set(expected) == {1, 2, 3}
    for step, row in expected.items():
        assert row.keys() == got[step].keys()
        for metric, value in row.items():
            assert got[step][metric] == pytest.approx(value, rel=tolerance, abs=tolerance), (step, metric)
    assert any(value != expected[3].get(metric, value) for metric, value in expected[1].items())


@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("name", METHODS)
def test_options_change_no_number(tmp_path, name, adapter):
    plain = losses(tmp_path, name, f"adapter={adapter}", "export=null")
    for overrides in OPTIONS.values():
        if overrides == OPTIONS["compile"] and (name not in COMPILED or adapter == "lora"):
            continue  # with the adapter inside the compiled trunk: below
        got = losses(tmp_path, name, f"adapter={adapter}", "export=null", *overrides)
        assert_equal(got, plain, tolerance=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "sft"])
def test_compiling_a_model_with_an_adapter_changes_no_number(tmp_path, name):
    plain = losses(tmp_path, name, "adapter=lora", "export=null")
    assert_equal(losses(tmp_path, name, "adapter=lora", "export=null", *OPTIONS["compile"]), plain, tolerance=2e-4)


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "reward_model", "prm", "grpo"])
def test_the_side_that_rows_are_filled_on_changes_no_number(tmp_path, monkeypatch, name):
    """Each kind of batch and of head. The product fills on the right; what reads a batch must not rely on it."""
    padded = (*OPTIONS["padded rows"], "export=null")
    right = losses(tmp_path / "right", name, *padded)
    step = TermsMethod.training_step
    turned: list[int] = []

    def turn(self: TermsMethod, batch: Any, batch_idx: int) -> torch.Tensor:
        other: dict[str, Any] = {"tokens": filled_on_the_left(batch.tokens)}
        if isinstance(batch, BinaryBatch):
            pairs = (replace(some, tokens=filled_on_the_left(some.tokens)) for some in batch.mismatched)
            other["mismatched"] = tuple(pairs)
        turned.append(int((other["tokens"].attention_mask[:, 0] == 0).sum()))
        return step(self, replace(batch, **other), batch_idx)

    monkeypatch.setattr(TermsMethod, "training_step", turn)
    assert_equal(losses(tmp_path / "left", name, *padded), right, tolerance=2e-4)
    assert sum(turned) > 0, "no row had any padding"


def filled_on_the_left(tokens: TokenBatch) -> TokenBatch:
    """The same rows with their padding in front, which a mask and positions make known."""
    rows, width = tokens.input_ids.shape
    row = tokens.target_index // width
    ends = torch.zeros(rows, dtype=torch.long).scatter_reduce(0, row, tokens.target_index % width + 1, "amax")
    shift = (width - ends)[:, None]
    columns = torch.arange(width)
    mask, positions = (columns >= shift).long(), (columns - shift).clamp_min(0)
    return replace(
        tokens,
        input_ids=tokens.input_ids.gather(1, positions) * mask,
        attention_mask=mask,
        position_ids=positions,
        predictor_index=tokens.predictor_index + shift[row, 0],
        target_index=tokens.target_index + shift[row, 0],
    )


@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_trains_and_is_merged(tmp_path, name):
    run = train(job(tmp_path, *CHOICE[name], *SHORT, "adapter=lora"), tmp_path / "run")
    plain = train(job(tmp_path, *CHOICE[name], *SHORT, "trainer.max_steps=1", "optim.lr=1e-12"), tmp_path / "start")
    weights, start = exported(run), exported(plain)
    assert weights.keys() == start.keys()
    moved = {name for name in weights if not weights[name].equal(start[name])}
    assert any("q_proj" in name for name in moved)
    assert not any("embed_tokens" in name for name in moved if (weights[name] - start[name]).abs().max() > 1e-6)


@pytest.mark.parametrize("strategy", ["frozen_copy", "adapter_off", "precomputed"])
@pytest.mark.parametrize("name", sorted(NO_REFERENCE))
def test_a_reference_that_nothing_reads_is_refused(tmp_path, name, strategy):
    overrides = (*CHOICE[name], f"reference={strategy}", *(("adapter=lora",) if strategy == "adapter_off" else ()))
    with pytest.raises(ConfigError, match="reference"):
        train(job(tmp_path, *overrides), tmp_path / "run")


@pytest.mark.parametrize("name", sorted(set(METHODS) - NO_REFERENCE))
def test_no_reference_where_one_is_needed_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="reference"):
        train(job(tmp_path, f"method={name}", "reference=none"), tmp_path / "run")


def test_a_judge_is_asked_for_no_samples():
    cfg = {"callbacks": {"fresh_samples": {"num_prompts": 8}}, "trainer": {}}
    for judge in (PRM, RewardModel):
        with pytest.raises(ConfigError, match=r"callbacks\.fresh_samples.*writes nothing"):
            check_rules(cfg, {"method": judge})
    check_rules({"callbacks": {"fresh_samples": None}, "trainer": {}}, {"method": PRM})
