"""One step off policy: the next completions are written while the policy learns from the present ones."""

from __future__ import annotations

import math
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra.errors import InstantiationException
from online_tester import ONLINE, SEVERAL, OnlineTester
from pyarrow import parquet

from alignment.config.validate import validate
from alignment.losses.policy_gradient import clipped_ratio_loss
from alignment.methods.experience_loader import Peekable
from alignment.methods.grpo import GRPO
from alignment.methods.kl import KLPenalty
from alignment.rollout.ahead import Ahead
from alignment.types import TokenLogps
from alignment.utils.errors import ConfigError

from runs import job, metrics, train, train_forked

AHEAD = ("method.rollouts.one_step_off=true",)
WEIGHED = ("method.rollouts.importance_cap=2", *AHEAD)
GRPO_RUN = ("method=grpo", "method.rollouts.group_size=4")
TESTER = OnlineTester(GRPO_RUN)
STEPS = ("trainer.max_steps=3", "schedule=constant", "export=null")


def written(run_dir: Path, number: int) -> list[tuple]:
    table = parquet.read_table(run_dir / "rollouts" / f"{number:06d}.parquet").to_pylist()
    return [(row["prompt_id"], row["sample"], row["completion_ids"], row["token_logps"]) for row in table]


def test_each_experience_is_written_by_the_policy_of_one_update_before(tmp_path):
    def run(name: str, *overrides: str) -> Path:
        return train(job(tmp_path, *ONLINE, *GRPO_RUN, *STEPS, *overrides), tmp_path / name)

    off, on = run("off", *WEIGHED, "optim.lr=1e-2"), run("on", "optim.lr=1e-2")
    # Too little to change a bit of any weight: whatever it writes, the starting policy writes.
    still = run("still", *WEIGHED, "optim.lr=1e-30")
    assert written(off, 0) == written(on, 0) == written(still, 0)
    assert written(off, 1) == written(still, 1) != written(on, 1)
    assert written(off, 2) != written(still, 2)
    rows = metrics(off)
    assert rows[1]["train/policy/importance_mean"] == pytest.approx(1.0, abs=1e-5)
    assert abs(rows[2]["train/policy/importance_mean"] - 1.0) > 1e-3
    assert rows[2]["train/policy/importance_mean"] <= 2.0
    # What has been learnt in between is no fault of the engine.
    assert "train/policy/sampler_mismatch" not in rows[2]
    assert metrics(on)[2]["train/policy/sampler_mismatch"] == pytest.approx(1.0, abs=1e-4)


def test_learns(tmp_path):
    OnlineTester((*GRPO_RUN, *WEIGHED)).check_learns(tmp_path)


def test_pairs_learn_from_older_completions_too(tmp_path):
    rows = metrics(train(job(tmp_path, *ONLINE, *STEPS, *AHEAD, "method=online_dpo"), tmp_path / "run"))
    assert rows[3]["train/reward/total"] > 0


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("steps", [(), SEVERAL], ids=["one_step", "several_steps"])
def test_resume_is_bitwise(tmp_path, steps, at):
    """What was being written when the checkpoint was saved is in it: the weights that wrote it are gone."""
    TESTER.check_resume_is_bitwise(tmp_path, *WEIGHED, *steps, at=at)


def test_resume_is_bitwise_with_dynamic_sampling(tmp_path):
    TESTER.check_resume_is_bitwise(tmp_path, *WEIGHED, "method.rollouts.dynamic_sampling=2", at=2)


@pytest.mark.parametrize("steps", [(), SEVERAL], ids=["one_step", "several_steps"])
def test_two_processes_agree_with_one(tmp_path, steps):
    TESTER.check_processes_agree(tmp_path, "cpu_ddp2", *WEIGHED, *steps)


class Slow:
    """An engine that writes when it is told to."""

    def __init__(self) -> None:
        self.may_write = threading.Event()
        self.wrote_in = ""

    def generate(self, prompts, sampling):
        assert self.may_write.wait(timeout=60)
        assert not torch.is_grad_enabled()
        self.wrote_in = threading.current_thread().name
        return []


def test_training_does_not_wait_for_what_is_written_meanwhile():
    engine, policy = Slow(), torch.nn.Linear(2, 2)
    made = []
    ahead = Ahead(
        policy,  # type: ignore[arg-type]
        engine=lambda *, model, tokenizer: made.append(model) or engine,  # type: ignore[arg-type, func-returns-value]
        tokenizer=SimpleNamespace(),  # type: ignore[arg-type]
        precision=lambda: torch.autocast("cpu", enabled=False),
    )
    assert ahead.take([]) is None
    with torch.no_grad():
        policy.weight.fill_(3.0)
    ahead.start([], SimpleNamespace())  # type: ignore[arg-type]
    with torch.no_grad():
        policy.weight.fill_(4.0)
    # The copy is of the moment of asking, and it is the copy that writes.
    assert made[0] is not policy
    assert made[0].weight.eq(3.0).all()
    engine.may_write.set()
    assert ahead.take([]) == []
    assert engine.wrote_in.startswith("rollouts")
    assert ahead.take([]) is None


def test_an_error_of_the_background_reaches_the_run(tmp_path, monkeypatch):
    from alignment.rollout.hf import HFEngine

    plain = HFEngine.generate

    def broken(self, prompts, sampling):
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("out of ink")
        return plain(self, prompts, sampling)

    monkeypatch.setattr(HFEngine, "generate", broken)
    with pytest.raises(RuntimeError, match="out of ink"):
        train(job(tmp_path, *ONLINE, *GRPO_RUN, *STEPS, *WEIGHED), tmp_path / "run")


def test_a_batch_that_was_looked_at_is_still_taken():
    stream: Peekable = Peekable(iter("abc"))  # type: ignore[arg-type]
    assert (stream.peek(), stream.num_seen, stream.peek(), stream.num_seen) == ("a", 1, "a", 1)
    assert (next(stream), stream.num_seen, next(stream), stream.peek(), list(stream)) == ("a", 0, "b", "c", ["c"])
    assert (stream.peek(), stream.num_seen) == (None, 0)


def weighed(ratio: str, cap: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and KL of completions of 2 and 1 tokens that the old policy finds 1.5, 4 and .5 times as likely."""
    method = object.__new__(GRPO)
    clip = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
    settings = {
        "ratio": ratio,
        "normaliser": "token" if ratio == "token" else "sequence",
        "rollouts": SimpleNamespace(importance_cap=cap, one_step_off=True, max_kl_nats=None),
        "policy_loss": partial(clipped_ratio_loss, **clip),
        "kl": KLPenalty(coefficient=1.0, place="loss", estimator="k2", target_nats=None, horizon=None),
        "clip": None,
    }
    for name, value in settings.items():
        object.__setattr__(method, name, value)
    old = torch.tensor([-1.0, -2.0, -3.0])
    batch = SimpleNamespace(
        old_logps=old,
        sampler_logps=old - torch.tensor([1.5, 4.0, 0.5]).log(),
        reference_logps=old - 0.2,
        advantages=torch.tensor([1.0, 1.0, -1.0]),
        token_weights=torch.ones(3),
        sequence_weights=torch.ones(2),
    )
    policy = TokenLogps(old.clone().requires_grad_(), torch.tensor([0, 0, 1]), 2)
    terms = method.policy_terms(batch, policy)  # type: ignore[arg-type]
    return terms.loss["policy"].values.detach(), terms.loss["kl"].values.detach()


@pytest.mark.parametrize(
    ("ratio", "cap", "weights", "kl"),
    [
        ("token", 2.0, [1.5, 2.0, 0.5], [0.02] * 3),
        ("token", None, [1.0, 1.0, 1.0], [0.02] * 3),
        # Products over a completion, 6 and .5, and the geometric mean.
        ("sequence", 3.0, [3.0, 0.5], [0.04, 0.02]),
        ("sequence_mean", 3.0, [math.sqrt(6.0), 0.5], [0.02, 0.02]),
    ],
)
def test_what_another_policy_wrote_is_weighed(ratio, cap, weights, kl):
    """At a ratio of 1 a loss is -A, and k2 of .2 nats is .02: both times the weight."""
    advantages = [1.0, 1.0, -1.0] if ratio == "token" else [1.0, -1.0]
    losses, penalties = weighed(ratio, cap)
    assert losses.tolist() == pytest.approx([-a * w for a, w in zip(advantages, weights, strict=True)])
    assert penalties.tolist() == pytest.approx([value * w for value, w in zip(kl, weights, strict=True)])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((*GRPO_RUN, *AHEAD), r"method\.rollouts\.importance_cap: got None, expected a number from 1"),
        (("method=online_dpo", *WEIGHED), r"method\.rollouts\.importance_cap: got 2.*, expected null"),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path, overrides, message):
    with pytest.raises((ConfigError, InstantiationException), match=message):
        train(job(tmp_path, *ONLINE, *STEPS, *overrides), tmp_path / "run")


def test_a_cap_below_one_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"method\.rollouts\.importance_cap: got 0\.5"):
        validate(job(tmp_path, *ONLINE, *GRPO_RUN, "method.rollouts.importance_cap=0.5"), "train")


def test_sharded_weights_are_refused(tmp_path):
    overrides = (*ONLINE, *GRPO_RUN, *STEPS, *WEIGHED, "hardware=cpu_fsdp2")
    with pytest.raises(Exception, match=r"one_step_off.*expected false with FSDP2"):
        train_forked(job(tmp_path, *overrides), tmp_path / "run")
