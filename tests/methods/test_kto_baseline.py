"""KTO's reference point z0 (T31): mismatched pairs, clamped, over the whole step and all ranks, without gradient."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from alignment.diagnostics.checkpoint import latest_checkpoint
from alignment.methods.kto import KTO
from alignment.types import BinaryBatch
from alignment.utils.errors import DataError

from method_tester import TWO_PROCESSES, MethodTester
from runs import exported, job, metrics, train, train_forked

Z0 = ("train/kl/z0_nats", "val/kl/z0_nats")
SHORT = ("method=kto", "trainer.max_steps=4", "export=null", "callbacks.checkpoint.every_n_steps=100")
UNEVEN = ("method=kto", "data.limit=45", "trainer.max_epochs=1", "trainer.max_steps=-1", "export=null")


def thumbs(path: Path, *, up: int, down: int, prompts: int = 100) -> tuple[str, ...]:
    """A file of labelled completions, and what reads it with the world's model."""
    marks = [True] * up + [False] * down
    rows = [
        {
            "prompt": f"topic: {index % prompts}\nreview:",
            "completion": f" it is {index}" + " so" * (index % 4),
            "label": mark,
        }
        for index, mark in enumerate(marks)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = ("validation_size=4", "batch_size=8", "micro_batch_size=4", "max_length=128", "max_prompt_length=null")
    small = ("hidden_size=32", "intermediate_size=64", "num_hidden_layers=2")
    return (
        *("method=kto", "model=world_init", "data=jsonl", f"data.train.path={path}", "reward=none"),
        *(f"data.{change}" for change in changes),
        *(f"model.config.{change}" for change in small),
        *("optim.lr=1e-3", "trainer.max_steps=4", "trainer.log_every_n_steps=1", "trainer.val_every_n_steps=2"),
        *("callbacks.fresh_samples=null", "hardware.threads=1", "export=null"),
    )


class Watched(KTO):
    """Notes what z0 should be by its definition, from the model's own logits, before each step is taken."""

    def training_step(self, batch: BinaryBatch, batch_idx: int):
        if batch.mismatched:
            raw = torch.cat([self.differences(part.tokens) for part in batch.mismatched])
            weights = torch.cat([part.weights for part in batch.mismatched]).double()
            seen.append((float((raw * weights).sum() / weights.sum()), batch.counts["records"], weights.sum().item()))
        loss = super().training_step(batch, batch_idx)
        assert not self._step_z0.requires_grad
        used.append(float(self._step_z0))
        return loss

    def differences(self, tokens):
        totals = []
        for model in (self.policy.hf_model, self.bundle.reference.frozen.hf_model):
            with torch.no_grad():
                logps = model(input_ids=tokens.input_ids, use_cache=False).logits.double().log_softmax(-1)
            picked = logps.flatten(0, 1)[tokens.predictor_index, tokens.targets]
            totals.append(picked.new_zeros(tokens.num_sequences).index_add(0, tokens.sequence_index, picked))
        return totals[0] - totals[1]


seen: list[tuple[float, float, float]] = []
used: list[float] = []


@pytest.fixture
def watched(monkeypatch):
    seen.clear()
    used.clear()
    monkeypatch.setattr("alignment.methods.kto.KTO", Watched)


@pytest.mark.usefixtures("watched")
@pytest.mark.parametrize("sign", [1, -1])
def test_z0_is_the_clamped_mean_over_the_step(tmp_path, monkeypatch, sign):
    """Against the definition with plain logits; with the reference moved instead of the policy it is clamped to 0."""
    if sign < 0:
        plain = Watched.differences
        monkeypatch.setattr(Watched, "differences", lambda self, tokens: -plain(self, tokens))
        score = KTO._score
        monkeypatch.setattr(KTO, "_score", lambda self, batch: swap(self, batch, score))
    # Rows of their own: the definition is computed by the Hugging Face model's own forward.
    rows = metrics(train(job(tmp_path, *UNEVEN, "model.layout=padded"), tmp_path / "run"))
    assert [counted for _, counted, _ in seen] == [counts for _, _, counts in seen] == [8.0] * 11 + [2.0]
    expected = [max(0.0, raw) for raw, _, _ in seen]
    for step, value in enumerate(expected, start=1):
        assert rows[step]["train/kl/z0_nats"] == pytest.approx(value, abs=2e-5), step
    assert used == pytest.approx([value for value in expected for _ in range(2)], abs=2e-5), "kept for the whole step"
    raw = [value for value, _, _ in seen[1:]]
    assert min(raw) > 0.05 if sign > 0 else max(raw) < -0.05


def swap(self, batch, score):
    """On mismatched pairs the policy's log-probs for the reference's."""
    policy, reference = score(self, batch)
    return (policy, reference) if isinstance(batch, BinaryBatch) else (reference, policy)


def test_z0_does_not_depend_on_the_cut(tmp_path):
    """T8 with an uneven last step: accumulated, and over two ranks; held-out records too."""
    whole = metrics(train(job(tmp_path, *UNEVEN, "data.micro_batch_size=8"), tmp_path / "whole"))
    others = [metrics(train(job(tmp_path, *UNEVEN, "data.micro_batch_size=1"), tmp_path / "pieces"))]
    others += [
        metrics(train_forked(job(tmp_path, *UNEVEN, f"hardware={hardware}"), tmp_path / hardware))
        for hardware in TWO_PROCESSES
    ]
    for other in others:
        for step, row in whole.items():
            for name in Z0:
                assert other[step].get(name) == pytest.approx(row.get(name), abs=1e-4), (step, name)
    assert whole[12]["train/kl/z0_nats"] > 0.05
    assert whole[12]["val/kl/z0_nats"] > 0.05


@pytest.mark.parametrize("z0", ["mismatched", "zero"])
def test_each_z0_has_a_reference_cache_of_its_own(tmp_path, z0):
    """One that was filled for z0=zero holds nothing for mismatched pairs."""
    for name in ("zero", "mismatched"):
        overrides = (*SHORT, f"method.z0={name}")
        cached = metrics(train(job(tmp_path, *overrides, "reference=precomputed"), tmp_path / name))
    rows = metrics(train(job(tmp_path, *SHORT, f"method.z0={z0}"), tmp_path / "copy"))
    cached = metrics(tmp_path / z0)
    for step, row in rows.items():
        for name in ("train/loss/total", *Z0):
            assert (name in cached[step]) == (name in row)
            if name in row:
                assert cached[step][name] == pytest.approx(row[name], rel=1e-5, abs=1e-6), (step, name)
    assert len(list((tmp_path / "cache" / "reference").glob("*/COMPLETE"))) == 2


def test_apo_zero_has_no_baseline(tmp_path):
    rows = {
        z0: metrics(train(job(tmp_path, *SHORT, f"method.z0={z0}"), tmp_path / z0)) for z0 in ("zero", "mismatched")
    }
    assert {row["train/kl/z0_nats"] for row in rows["zero"].values()} == {0.0}
    assert rows["zero"][1]["train/loss/total"] == rows["mismatched"][1]["train/loss/total"] == 0.5
    assert rows["zero"][4]["train/loss/total"] != pytest.approx(rows["mismatched"][4]["train/loss/total"], rel=1e-3)


def test_a_run_stopped_within_a_step_goes_on_bitwise(tmp_path, monkeypatch):
    """SIGTERM before the second micro-batch of step 3: that step is finished with the z0 of its first one."""
    overrides = ("method=kto", "data.micro_batch_size=2")
    whole = train(job(tmp_path, *overrides), tmp_path / "whole")
    plain, calls = KTO.training_step, []

    def stopped(self, batch, batch_idx):
        calls.append(batch_idx)
        if len(calls) == 2 * 4 + 2:
            assert batch.mismatched == ()
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(KTO, "training_step", stopped)
        with pytest.raises(SystemExit) as exit_code:
            train(job(tmp_path, *overrides), tmp_path / "broken")
    assert exit_code.value.code == 128 + signal.SIGTERM
    latest = latest_checkpoint(tmp_path / "broken" / "checkpoints")
    assert latest is not None
    assert latest.name == "step-000003"
    train(job(tmp_path, *overrides, f"resume={tmp_path / 'broken'}"), tmp_path / "unused")
    expected, got = exported(whole), exported(tmp_path / "broken")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    for step in (4, 5, 6):
        name = "train/kl/z0_nats"
        assert metrics(whole)[step][name] == metrics(tmp_path / "broken")[step][name] > 0


def test_unbalanced_thumbs_are_learnt_from_and_said_once(tmp_path, caplog):
    """30 up and 10 down, less 4 held out: the advice is what the paper's ratio gives."""
    overrides = thumbs(tmp_path / "thumbs.jsonl", up=30, down=10)
    rows = metrics(train(job(tmp_path, *overrides, small=False), tmp_path / "run"))
    assert rows[1]["train/loss/total"] == pytest.approx(0.5)
    assert rows[4]["train/reward/chosen"] != 0.0
    (said,) = [record.getMessage() for record in caplog.records if "thumbs up" in record.getMessage()]
    up, down = (int(word) for word in (said.split()[0], said.split()[4]))
    assert up + down == 36
    assert f"desirable_weight between {down / up:.3g} and {down / up * 3 / 2:.3g}" in said
    assert f"undesirable_weight between {up / down * 2 / 3:.3g} and {up / down:.3g}" in said
    caplog.clear()
    advice = f"method.undesirable_weight={up / down * 2 / 3:.3g}"
    weighted = metrics(train(job(tmp_path, *overrides, advice, small=False), tmp_path / "weighted"))
    assert weighted[1]["train/loss/total"] > 0.5
    assert not [record for record in caplog.records if "thumbs up" in record.getMessage()]


def test_a_step_without_a_label_logs_nothing_for_it(tmp_path):
    """One thumbs down among 40: most steps have none, and no NaN is logged for it."""
    overrides = thumbs(tmp_path / "thumbs.jsonl", up=40, down=2)
    rows = metrics(train(job(tmp_path, *overrides, "data.batch_size=4", small=False), tmp_path / "run"))
    steps = [row for row in rows.values() if "train/loss/total" in row]
    have = [{"train/reward/rejected", "train/reward/margin"} <= row.keys() for row in steps]
    assert not all(have)
    assert all("train/reward/chosen" in row for row in steps)
    assert all(value == value for row in rows.values() for value in row.values())


@pytest.mark.parametrize(
    ("counts", "changes", "message"),
    [
        ({"up": 40, "down": 0}, (), "all 36 completions are desirable.*method=sft"),
        ({"up": 0, "down": 40}, ("method.z0=zero",), "all 36 completions are undesirable"),
        ({"up": 20, "down": 20, "prompts": 1}, ("data.validation_size=0",), "40 of 40 records have the same"),
    ],
    ids=["all up", "all down", "one prompt"],
)
def test_what_cannot_work_is_refused(tmp_path, counts, changes, message):
    overrides = thumbs(tmp_path / "thumbs.jsonl", **counts)
    with pytest.raises(DataError, match=message):
        train(job(tmp_path, *overrides, *changes, small=False), tmp_path / "run")


def test_apo_zero_takes_what_needs_no_pairs(tmp_path):
    """One prompt alone, and steps of one record."""
    overrides = thumbs(tmp_path / "thumbs.jsonl", up=20, down=20, prompts=1)
    changes = ("method.z0=zero", "data.batch_size=1", "data.micro_batch_size=1", "data.validation_size=0")
    rows = metrics(train(job(tmp_path, *overrides, *changes, small=False), tmp_path / "run"))
    assert len(rows) == 4


def test_a_reference_that_follows_the_policy(tmp_path):
    """After a hard refresh every log-ratio, z0 included, is 0 again."""
    tester = MethodTester(overrides=("method=kto", "reference.refresh_every_n_steps=3"), uses_reference=True)
    rows = metrics(train(job(tmp_path, *tester.overrides), tmp_path / "run"))
    for step, row in rows.items():
        assert (row["train/kl/z0_nats"] == 0.0) == (step in (1, 4)), step
