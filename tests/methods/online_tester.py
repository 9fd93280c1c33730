"""The same proofs for every method that learns from what the policy writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from method_tester import GOLDEN, MethodTester
from runs import job, metrics, train

#: A model with fresh weights writes a "w" or a "k" in half of its completions: something to learn from at once.
ONLINE = (
    "reward=regex",
    "reward.pattern='w|k'",
    "reward.match=search",
    "rollout.sampling.max_new_tokens=12",
)
#: Two minibatches twice over: a step in the middle of an epoch, and old log-probs that differ from the policy's.
SEVERAL = ("method.rollouts.minibatches=2", "method.rollouts.epochs=2")
#: What a golden curve holds beside: what is written, how far the policy has gone, and where it went.
WRITTEN = (
    "train/reward/total",
    "train/loss/value",
    "train/kl/policy_reference_nats",
    "train/kl/policy_old_token_nats",
    "train/logps/completion_mean_nats",
)


@dataclass
class OnlineTester:
    """Proves a method.

    Attributes:
        overrides: What chooses the method.
    """

    overrides: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Everything that a small run of it needs."""
        return (*ONLINE, *self.overrides)

    def check_step_from_yaml(self, tmp_path: Path) -> dict[int, dict[str, float]]:
        """The method runs as its YAML stands, from the command's own defaults on."""
        rows = metrics(train(job(tmp_path, *self.all, "trainer.max_steps=2"), tmp_path / "run"))
        assert set(rows) == {1, 2}
        assert rows[1]["train/reward/total"] > 0
        assert (
            rows[1].get("train/kl/policy_reference_nats", 0.0) == 0.0
            or abs(rows[1]["train/kl/policy_reference_nats"]) < 1e-4
        )
        return rows

    def check_learns(self, tmp_path: Path, *, steps: int = 40) -> None:
        """The reward rises."""
        overrides = (
            "trainer.max_epochs=null",
            f"trainer.max_steps={steps}",
            "optim.lr=1e-2",
            "schedule=constant",
            "export=null",
            "callbacks.checkpoint.every_n_steps=1000",
        )
        rows = metrics(train(job(tmp_path, *self.all, *overrides), tmp_path / "run"))
        rewards = [row["train/reward/total"] for _, row in sorted(rows.items()) if "train/reward/total" in row]
        early, late = sum(rewards[:4]) / 4, sum(rewards[-4:]) / 4
        assert late > early + 0.25, (early, late)

    def check_resume_is_bitwise(self, tmp_path: Path, *overrides: str, at: int) -> None:
        """A run taken up at any step ends with the same bits and the same log (T39)."""
        steps = ("callbacks.checkpoint.every_n_steps=1", "trainer.max_epochs=null", "trainer.max_steps=8")
        MethodTester((*self.all, *overrides, *steps), uses_reference=False).check_resume_is_bitwise(tmp_path, at=at)

    def check_processes_agree(self, tmp_path: Path, hardware: str, *overrides: str) -> None:
        """Two processes write, log and learn what one does."""
        MethodTester((*self.all, *overrides), uses_reference=False).check_processes_agree(tmp_path, hardware, ())

    def check_accumulation_agrees(self, tmp_path: Path) -> None:
        """One batch of 8 prompts is 8 accumulated batches of 1."""
        MethodTester(self.all, uses_reference=False).check_accumulation_agrees(tmp_path)

    def check_golden(self, tmp_path: Path, name: str, *overrides: str) -> None:
        """The first steps' numbers are on record: two experiences, each with several steps."""
        overrides = (*self.all, *SEVERAL, *overrides, "optim.eps=1e-6")
        MethodTester(overrides, uses_reference=False).check_golden(tmp_path, name, names=GOLDEN + WRITTEN)
