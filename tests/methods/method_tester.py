"""One tester gives every method the same proofs, through its own YAML."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from runs import exported, job, metrics, train, train_forked

#: Strategies of the reference that agree in what they compute, with the adapter that each needs.
FULL = ("reference=frozen_copy",), ("reference=precomputed",)
ADAPTED = tuple(("adapter=lora", f"reference={name}") for name in ("frozen_copy", "adapter_off", "precomputed"))
TWO_PROCESSES = ("cpu_ddp2", "cpu_fsdp2")
#: What a golden curve holds, as far as the method has it.
GOLDEN = ("train/loss/total", "train/reward/margin", "train/logps/chosen_sum_nats", "val/loss/total")


@dataclass
class MethodTester:
    """Proves a method.

    Attributes:
        overrides: What chooses the method and its data.
        uses_reference: Whether its reference strategies are to agree.
        start_loss: The loss at step 0 where theory gives it.
    """

    overrides: tuple[str, ...]
    uses_reference: bool
    start_loss: float | None = None

    def check_step_from_yaml(self, tmp_path: Path) -> None:
        """The method runs as its YAML stands, and its first loss is what theory says."""
        rows = metrics(train(job(tmp_path, *self.overrides, "trainer.max_steps=2"), tmp_path / "run"))
        assert set(rows) == {1, 2}
        if self.start_loss is not None:
            assert abs(rows[1]["train/loss/total"] - self.start_loss) < 1e-5

    def check_overfits(self, tmp_path: Path) -> None:
        """Eight records are learnt by heart."""
        cfg = job(
            tmp_path,
            *self.overrides,
            "data.limit=8",
            "trainer.max_epochs=null",
            "trainer.max_steps=100",
            "optim.lr=2e-2",
            "trainer.limit_val_batches=0",
            "export=null",
            "callbacks.checkpoint.every_n_steps=1000",
        )
        rows = metrics(train(cfg, tmp_path / "run"))
        assert rows[100]["train/loss/total"] < 0.25 * rows[1]["train/loss/total"]

    def check_resume_is_bitwise(self, tmp_path: Path, *, at: int) -> None:
        """A run taken up at a step, in an epoch's middle too, ends with the same bits and the same log (T39)."""
        whole = train(job(tmp_path, *self.overrides), tmp_path / "whole")
        # Checkpoints are made at every second step only: an odd one makes the run go over a step again.
        checkpoint = whole / "checkpoints" / f"step-{at:06d}"
        broken = tmp_path / "broken"
        (broken / "checkpoints").mkdir(parents=True)
        checkpoint.rename(broken / "checkpoints" / checkpoint.name)
        resumed = train(job(tmp_path, *self.overrides, f"resume={broken}"), tmp_path / "unused")
        assert not resumed.exists()
        expected, got = exported(whole), exported(broken)
        assert all(torch.equal(expected[name], got[name]) for name in expected)
        wanted = {step: _timeless(row) for step, row in metrics(whole).items() if step > at}
        assert {step: _timeless(row) for step, row in metrics(broken).items()} == wanted

    def check_processes_agree(self, tmp_path: Path, hardware: str, variant: tuple[str, ...]) -> None:
        """Two processes log and learn what one does; in the last step there is one record, and a rank without."""
        overrides = (*self.overrides, *variant, "data.limit=41", "trainer.max_epochs=1", "trainer.max_steps=-1")
        # A step of the one process is one micro-batch: it has no filler.
        one = train(job(tmp_path, *overrides, "data.micro_batch_size=8"), tmp_path / "one")
        two = train_forked(job(tmp_path, *overrides, f"hardware={hardware}"), tmp_path / "two")
        self._assert_same(one, two)

    def check_accumulation_agrees(self, tmp_path: Path) -> None:
        """One batch of 8 is 8 accumulated batches of 1 (T8); in the last step seven of them have no record."""
        overrides = (*self.overrides, "data.limit=41", "trainer.max_epochs=1", "trainer.max_steps=-1")
        whole = train(job(tmp_path, *overrides, "data.micro_batch_size=8"), tmp_path / "whole")
        pieces = train(job(tmp_path, *overrides, "data.micro_batch_size=1"), tmp_path / "pieces")
        self._assert_same(whole, pieces)

    def check_references_agree(self, tmp_path: Path) -> None:
        """All strategies of the reference give the same losses, with and without an adapter."""
        for group in (FULL, ADAPTED):
            runs = [
                train(job(tmp_path, *self.overrides, *variant), tmp_path / "-".join(variant).replace("=", "_"))
                for variant in group
            ]
            for other in runs[1:]:
                self._assert_same(runs[0], other, ignore=("fresh/",))

    def check_golden(self, tmp_path: Path, name: str, *, names: tuple[str, ...] = GOLDEN) -> None:
        """The first steps' numbers are on record and change only on purpose (REGENERATE_GOLDEN=1 writes them)."""
        rows = metrics(train(job(tmp_path, *self.overrides, "trainer.max_steps=6", "export=null"), tmp_path / "run"))
        got = {str(step): {n: row[n] for n in names if n in row} for step, row in sorted(rows.items())}
        path = Path(__file__).parent / "golden" / f"{name}.json"
        if os.environ.get("REGENERATE_GOLDEN"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(got, indent=1) + "\n", encoding="utf-8")
        expected = json.loads(path.read_text(encoding="utf-8"))
        assert got.keys() == expected.keys()
        for step, row in expected.items():
            assert got[step] == pytest.approx(row, rel=1e-4, abs=1e-5), step

    def check_hardware_options(self, tmp_path: Path, *options: str, tolerance: float) -> None:
        """An option changes speed or memory, and the numbers only by its rounding."""
        short = (*self.overrides, "trainer.max_steps=3", "export=null", "callbacks.checkpoint.every_n_steps=100")
        plain = metrics(train(job(tmp_path, *short), tmp_path / "plain"))
        other = metrics(train(job(tmp_path, *short, *options), tmp_path / "option"))
        assert set(plain) == set(other)
        for step, row in plain.items():
            loss = row["train/loss/total"]
            assert abs(other[step]["train/loss/total"] - loss) <= tolerance * max(1.0, abs(loss)), step

    def _assert_same(self, left: Path, right: Path, ignore: tuple[str, ...] = ()) -> None:
        rows, others = metrics(left), metrics(right)
        assert set(rows) == set(others)
        for step in rows:
            names = {
                n for n in rows[step] if any(part in n for part in ("/loss/", "/reward/", "/logps/", "/grad_norm"))
            }
            assert names
            for name in names:
                if not name.startswith(ignore):
                    difference = abs(rows[step][name] - others[step][name])
                    assert difference <= 2e-4 * max(1.0, abs(rows[step][name])), (step, name, difference)
        expected, got = exported(left), exported(right)
        assert set(expected) == set(got)
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=0, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


def _timeless(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if "second" not in name}
