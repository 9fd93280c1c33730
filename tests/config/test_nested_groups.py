"""A group inside a group: ``method/loss`` and ``method/divergence``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from hydra.types import RunMode

from alignment.cli.app import sweep_jobs
from alignment.cli.help import default_choices, verb_help
from alignment.config.compose import compose, task_config
from alignment.config.typecheck import mismatch
from alignment.config.validate import RUNTIME, validate
from alignment.utils.errors import UserError

LOSSES = "aot, aot_unpaired, apo_down, apo_zero, bco, discopop, dpop, exo, hinge, mpo, nca, robust, sigmoid, sppo"


def test_what_a_loss_gets_from_the_run_is_told_to_the_validator_and_to_the_method_alike() -> None:
    from alignment.methods.pairwise import PAIR_INPUTS

    assert RUNTIME["method.loss"] == set(PAIR_INPUTS)


def check(*overrides: str, config_dir: Path | None = None) -> None:
    validate(task_config(compose("train", list(overrides), config_dir=config_dir)), "train")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("method.loss=hinge",),
            (
                f"method.loss: got 'hinge', expected a choice of the group method/loss: {LOSSES}. "
                "A choice is taken with a slash: method/loss=hinge"
            ),
        ),
        (("method/loss=hing",), f"method/loss: got 'hing', expected one of {LOSSES}. did you mean 'hinge'?"),
        (("method/loss=null",), f"method/loss: got None, expected one of {LOSSES}"),
        (("hinge",), "hinge: got 'hinge', expected an override KEY=VALUE. did you mean 'method/loss=hinge'?"),
        (
            ("+method=dpo",),
            "+method=...: 'method' has a choice already. Write method=... without '+'",
        ),
        (
            ("+method/loss=hinge",),
            "+method/loss=...: 'method/loss' has a choice already. Write method/loss=... without '+'",
        ),
        (
            ("method=ipo", "method/loss=hinge"),
            (
                "method/loss: got 'hinge', expected a group of the chosen 'method'. "
                "Not every choice of 'method' has a group 'loss'"
            ),
        ),
        (
            ("method/loss=hinge", "method.loss.label_smoothing=0.1"),
            (
                "method.loss.label_smoothing: got '0.1', expected one of the keys of 'method.loss': margin. "
                "did you mean 'method.loss.margin'?"
            ),
        ),
        (
            ("+method.loss.smoothing=0.1",),
            (
                "method.loss.smoothing: got 0.1, expected an argument of alignment.losses.dpo.dpo_loss: "
                "label_smoothing. did you mean 'method.loss.label_smoothing'?"
            ),
        ),
        (
            ("+method.loss.beta=1",),
            "method.loss.beta: got 1, expected no value. It comes from the run itself: remove the key",
        ),
        (
            ("method/loss=mpo", "+method.loss.losses.bco.reward_shift=1"),
            (
                "method.loss.losses.bco.reward_shift: got 1, expected no value. "
                "It comes from the run itself: remove the key"
            ),
        ),
        (
            ("method/loss=exo", "method.loss.label_smoothing=0"),
            "method.loss.label_smoothing: got 0, expected a number in (0, 0.5)",
        ),
        (
            ("method/loss=robust", "method.loss.label_smoothing=0.5"),
            "method.loss.label_smoothing: got 0.5, expected a number in [0, 0.5)",
        ),
        (("method/loss=hinge", "method.loss.margin=0"), "method.loss.margin: got 0, expected a number in (0, inf)"),
        (
            ("method/loss=hinge", "method.loss.margin=inf"),
            "method.loss.margin: got inf, expected a number in (0, inf)",
        ),
        (("method/loss=discopop", "method.loss.tau=1.5"), "method.loss.tau: got 1.5, expected a number in (0, 1]"),
        (("method/loss=dpop", "method.loss.penalty=-1"), "method.loss.penalty: got -1, expected a number in (0, inf)"),
        (
            ("method/divergence=alpha", "method.divergence.alpha=1"),
            "method.divergence.alpha: got 1, expected a number in (0, 1)",
        ),
        (
            ("method.loss.label_smoothing=much",),
            "method.loss.label_smoothing: got 'much', expected a number in [0, 0.5)",
        ),
        (("method.loss.label_smoothing=nan",), "method.loss.label_smoothing: got nan, expected a number in [0, 0.5)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_said_by_key(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check(*overrides)
    assert str(caught.value) == message


def test_choices_inside_a_mixture_can_be_changed() -> None:
    check("method/loss=mpo", "method/loss@method.loss.losses.sigmoid=robust", "method.loss.weights.bco=0.5")


def test_a_sweep_over_a_nested_group() -> None:
    overrides = ["method/loss=sigmoid,hinge", "method/divergence=js,alpha"]
    jobs = sweep_jobs(compose("train", overrides, run_mode=RunMode.MULTIRUN), overrides, None)
    assert len(jobs) == 4
    for job in jobs:
        check(*job)


def test_help_lists_a_nested_group_behind_its_outer_one() -> None:
    choices = default_choices("train")
    assert (choices["method/loss"], choices["method/divergence"]) == ("sigmoid", "reverse_kl")
    text = verb_help("train")
    assert text.index("\n  method\n") < text.index("\n  method/loss\n") < text.index("\n  model\n")
    assert "    * sigmoid " in text
    assert "      hinge " in text


def test_a_loss_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "method" / "loss").mkdir(parents=True)
    own = "_target_: alignment.losses.exo.exo_loss\n_partial_: true\nlabel_smoothing: 0.3\n"
    (tmp_path / "method" / "loss" / "mine.yaml").write_text(own)
    check("method/loss=mine", config_dir=tmp_path)


@pytest.mark.parametrize(
    ("value", "interval", "fits"),
    [
        (0, "[0, 0.5)", True),
        (0.5, "[0, 0.5)", False),
        (0.5, "(0, 0.5]", True),
        (0, "(0, 0.5]", False),
        (-0.1, "[0, inf)", False),
        (1e9, "[0, inf)", True),
        (float("inf"), "[0, inf)", False),
        (-3, "[-3, 1]", True),
        (float("nan"), "[0, 1]", False),
        ("0.1", "[0, 1]", False),
        (True, "[0, 1]", False),
    ],
)
def test_intervals(value: object, interval: str, fits: bool) -> None:
    assert (mismatch(value, Annotated[float, interval], {}) is None) is fits
