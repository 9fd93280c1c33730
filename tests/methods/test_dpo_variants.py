"""Every choice of DPO's loss and divergence, and every field, through the YAML: each has an effect or is refused."""

import itertools
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from alignment.config.validate import validate
from alignment.losses.aot import aot_unpaired_loss
from alignment.losses.bco import bco_loss
from alignment.losses.dpo import dpo_loss
from alignment.losses.exo import exo_loss
from alignment.losses.ipo import ipo_loss
from alignment.methods.pairwise import Mixture, PairInputs, PairwiseLoss, RewardShift
from alignment.utils.errors import ConfigError

from method_tester import TWO_PROCESSES, MethodTester
from runs import job, metrics, train, train_forked

LN2 = math.log(2)
#: What each choice costs at step 0, where both log-ratios are 0, with beta 0.5 and the YAML's values.
AT_START = {
    "sigmoid": LN2,
    "robust": LN2,
    "hinge": 1.0,
    "exo": (math.log(0.5 / 0.999) + math.log(0.5 / 0.001)) / 2,
    "nca": 2 * LN2,
    "bco": 2 * LN2,
    "sppo": 2.0,
    "aot": LN2,
    "aot_unpaired": LN2,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (LN2 + 1) / 2,
    "dpop": LN2,
    "mpo": (0.8 + 0.2 * 2) * LN2,
}
SHORT = (
    "method=dpo",
    "method.beta=0.5",
    "trainer.max_steps=3",
    # Far enough for margins to change their order: until then paired AOT is the sigmoid.
    "optim.lr=1e-2",
    "trainer.limit_val_batches=0",
    "export=null",
    "callbacks.checkpoint.every_n_steps=100",
    "data.micro_batch_size=8",
)
#: Hyperparameters and fields, each away from where it stands.
CHANGES = [
    ("method.loss.label_smoothing=0.2",),
    ("method.length_normalised=true",),
    ("method.nll_coefficient=0.5",),
    ("method.nll_coefficient=0.5", "method.nll_normaliser=token"),
    ("method.weighting=wpo",),
    ("method/divergence=forward_kl",),
    ("method/divergence=js",),
    ("method/divergence=alpha",),
    ("method/divergence=alpha", "method.divergence.alpha=0.9"),
    ("method/loss=robust",),
    ("method/loss=robust", "method.loss.label_smoothing=0.3"),
    ("method/loss=hinge",),
    ("method/loss=hinge", "method.loss.margin=2"),
    ("method/loss=exo",),
    ("method/loss=exo", "method.loss.label_smoothing=0.1"),
    ("method/loss=nca",),
    ("method/loss=bco",),
    ("method/loss=sppo",),
    ("method/loss=aot",),
    ("method/loss=aot", "method.loss.label_smoothing=0.3"),
    ("method/loss=aot_unpaired",),
    ("method/loss=aot_unpaired", "method.loss.label_smoothing=0.3"),
    ("method/loss=apo_zero",),
    ("method/loss=apo_down",),
    ("method/loss=discopop",),
    ("method/loss=discopop", "method.loss.tau=0.5"),
    ("method/loss=dpop",),
    ("method/loss=dpop", "method.loss.penalty=5"),
    ("method/loss=mpo",),
    ("method/loss=mpo", "method.nll_coefficient=0"),
    ("method/loss=mpo", "method.loss.weights.bco=0.9"),
    ("method/loss=mpo", "method.loss.losses.sigmoid.label_smoothing=0.2"),
    ("method/loss=mpo", "method/loss@method.loss.losses.sigmoid=hinge"),
    ("method/loss=hinge", "method/divergence=js"),
    ("method/loss=hinge", "method.weighting=wpo"),
    ("method/loss=bco", "method.weighting=wpo"),
    ("method/loss=bco", "method.length_normalised=true"),
    ("method/loss=aot", "method.length_normalised=true"),
]
_SEEN: dict[tuple[str, ...], dict[int, dict[str, float]]] = {}


def rows(tmp_path: Path, *overrides: str) -> dict[int, dict[str, float]]:
    if overrides not in _SEEN:
        _SEEN[overrides] = metrics(train(job(tmp_path, *SHORT, *overrides), tmp_path / "run"))
    return _SEEN[overrides]


def refusal(tmp_path: Path, *overrides: str) -> str:
    """What a run says, when it is validated or before it reads any weight."""
    cfg = job(tmp_path, *SHORT, *overrides)
    with pytest.raises(ConfigError) as caught:
        _validated_run(cfg, tmp_path / "run")
    assert not list(tmp_path.glob("run/checkpoints/*"))
    return str(caught.value)


def _validated_run(cfg: DictConfig, run_dir: Path) -> None:
    validate(cfg, "train")
    train(cfg, run_dir)


def test_every_choice_is_here():
    folder = Path(__file__).parents[2] / "conf" / "method" / "loss"
    assert {path.stem for path in folder.glob("*.yaml")} == set(AT_START)


@pytest.mark.parametrize("choice", AT_START)
def test_loss_at_the_start(tmp_path, choice):
    overrides = () if choice == "sigmoid" else (f"method/loss={choice}",)
    assert rows(tmp_path, *overrides)[1]["train/loss/dpo"] == pytest.approx(AT_START[choice], rel=2e-5)


@pytest.mark.parametrize("change", CHANGES, ids=" ".join)
def test_every_choice_and_field_changes_the_training(tmp_path, change):
    """T13: by itself, and not in the way of another one."""
    got = rows(tmp_path, *change)[3]["train/loss/total"]
    assert math.isfinite(got)
    others = {(), *(other for other in CHANGES if set(other) < set(change)), *_SEEN} - {change}
    for other in others:
        assert rows(tmp_path / "other", *other)[3]["train/loss/total"] != got, other


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("method.nll_normaliser=token",), r"method.nll_normaliser: got 'token'.*set method.nll_coefficient"),
        *(
            ((f"method/loss={loss}", "method/divergence=js"), r"method.divergence: got .*method/divergence=reverse_kl")
            for loss in ("nca", "bco", "sppo", "aot", "aot_unpaired", "apo_zero", "apo_down", "dpop", "mpo")
        ),
        *(
            ((f"method/loss={loss}", "method.weighting=wpo"), r"method.weighting: got 'wpo', expected none")
            for loss in ("aot", "aot_unpaired")
        ),
        (("method/loss=aot", "data.micro_batch_size=4"), r"data.micro_batch_size: got 'a step in 2 forward passes'"),
        (("method/loss=mpo", "method.loss.weights.bco=0"), r"method.loss.weights: got .*above 0 for each"),
        (("method/loss=mpo", "+method.loss.weights.hinge=1"), r"method.loss.weights: .* for each of sigmoid, bco"),
        (
            ("method/loss=mpo", "+method/loss@method.loss.losses.hinge=hinge"),
            r"method.loss.weights: .*\+method.loss.weights.NAME=VALUE",
        ),
        (("method/loss=mpo", "method.loss.losses.sigmoid.label_smoothing=0.5"), r"sigmoid.label_smoothing: got 0.5"),
        (("method.nll_coefficient=-1",), r"method.nll_coefficient: got -1, expected a number in \[0, inf\)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_could_have_no_effect_or_no_meaning_is_refused(tmp_path, overrides, message):
    assert re.match(rf".*{message}", refusal(tmp_path, *overrides))


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "hinge", "exo", "discopop"])
def test_divergences_go_with_losses_of_the_difference(tmp_path, loss):
    job_rows = rows(tmp_path, f"method/loss={loss}", "method/divergence=forward_kl")
    assert math.isfinite(job_rows[3]["train/loss/total"])


def test_sorted_losses_are_refused_over_ranks(tmp_path):
    with pytest.raises(AssertionError, match=r"data.micro_batch_size: got 'a step in 2 forward passes'"):
        train_forked(job(tmp_path, *SHORT, "method/loss=aot", "hardware=cpu_ddp2"), tmp_path / "run")


#: Together they have all that spreads over micro-batches, ranks and a resume: the shift, the weights, the second term.
STATEFUL = MethodTester(overrides=("method=dpo", "method/loss=mpo", "method.beta=0.5"), uses_reference=True)
WEIGHTED = MethodTester(
    overrides=(
        "method=dpo",
        "method/loss=bco",
        "method.beta=0.5",
        "method.weighting=wpo",
        "method.nll_coefficient=0.3",
        "method.nll_normaliser=token",
        "method.length_normalised=true",
    ),
    uses_reference=True,
)


@pytest.mark.parametrize("tester", [STATEFUL, WEIGHTED])
def test_accumulation_agrees(tmp_path, tester):
    tester.check_accumulation_agrees(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("tester", [STATEFUL, WEIGHTED])
def test_two_processes_agree_with_one(tmp_path, hardware, tester):
    tester.check_processes_agree(tmp_path, hardware, ("reference=frozen_copy",))


@pytest.mark.parametrize("at", [2, 4])
def test_resume_is_bitwise(tmp_path, at):
    """The shift too: without it in the checkpoint the first steps behind a resume would be others."""
    STATEFUL.check_resume_is_bitwise(tmp_path, at=at)


def test_the_shift_is_the_mean_reward_of_the_steps_before(tmp_path):
    """Validation in between leaves it alone."""
    overrides = ("method=dpo", "method/loss=bco", "method.beta=0.5", "trainer.val_every_n_steps=2", "export=null")
    got = metrics(train(job(tmp_path, *overrides), tmp_path / "run"))
    means = [(got[step]["train/reward/chosen"] + got[step]["train/reward/rejected"]) / 2 for step in sorted(got)]
    expected = [0.0, *(sum(means[:step]) / step for step in range(1, len(means)))]
    assert [got[step]["train/reward/shift"] for step in sorted(got)] == pytest.approx(expected, abs=1e-6)
    assert expected[-1] != 0
    assert got[2]["val/reward/shift"] == pytest.approx(sum(means[:2]) / 2, abs=1e-6)


def test_a_filler_does_not_move_the_shift():
    shift = RewardShift()
    shift.add(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([1.0, 1.0, 0.0]))
    assert shift.value == 0
    shift.end_step()
    assert shift.value == 2
    other = RewardShift()
    other.load_state_dict(shift.state_dict())
    assert other.value == 2


def pair_inputs(shift: float = 0.0) -> PairInputs:
    generator = torch.Generator().manual_seed(1)
    chosen, rejected, margin = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return PairInputs(chosen, rejected, 0.7, margin, torch.ones(5, dtype=torch.float64), shift)


def test_a_mixture_is_the_weighted_sum_of_its_parts():
    """Each part gets what it takes and no more."""
    parts = {"sigmoid": partial(dpo_loss, label_smoothing=0.1), "bco": partial(bco_loss)}
    inputs = pair_inputs(shift=0.4)
    mixed, logged = PairwiseLoss(Mixture(losses=parts, weights={"sigmoid": 0.8, "bco": 0.2}))(inputs)
    sides = {"chosen_log_ratio": inputs.chosen_log_ratio, "rejected_log_ratio": inputs.rejected_log_ratio, "beta": 0.7}
    sigmoid, bco = dpo_loss(**sides, label_smoothing=0.1), bco_loss(**sides, reward_shift=0.4)
    torch.testing.assert_close(mixed, 0.8 * sigmoid + 0.2 * bco, rtol=0, atol=1e-15)
    assert set(logged) == {"loss/mixture_sigmoid", "loss/mixture_bco"}
    torch.testing.assert_close(logged["loss/mixture_bco"][0], bco)


def test_a_mixture_needs_what_any_of_its_parts_needs():
    parts = {"sigmoid": partial(dpo_loss, label_smoothing=0.1), "aot": partial(aot_unpaired_loss, label_smoothing=0.0)}
    loss = PairwiseLoss(Mixture(losses=parts, weights={"sigmoid": 1.0, "aot": 1.0}))
    assert loss.compares_pairs
    assert not loss.reads_differences_only()
    assert PairwiseLoss(parts["sigmoid"]).reads_differences_only()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            partial(ipo_loss, tau=0.1),
            r"method.loss: got 'a function of policy_chosen_logps.*expected a function of some",
        ),
        (partial(dpo_loss), r"method.loss: got 'a function of label_smoothing'"),
        (partial(exo_loss, label_smoothing=0.0), r"method.loss.label_smoothing: got 0.0, expected .* \(0, 0.5\)"),
        (partial(dpo_loss, label_smoothing="a"), r"method.loss.label_smoothing: got 'a', expected a number"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(loss, message):
    with pytest.raises(ConfigError, match=message):
        PairwiseLoss(loss)


def test_all_changes_are_different():
    assert len(set(CHANGES)) == len(CHANGES)
    assert not [pair for pair in itertools.combinations(CHANGES, 2) if set(pair[0]) == set(pair[1])]
