"""Every number of a method has a range, and what lies outside is refused before anything is loaded."""

from __future__ import annotations

import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from omegaconf import DictConfig, OmegaConf

import alignment.pipeline.train as training
from alignment.cli.main import main
from alignment.config.compose import compose, task_config
from alignment.config.paths import conf_dir
from alignment.config.targets import resolve
from alignment.config.validate import validate
from alignment.utils.errors import ConfigError

#: A run of every method, and of every function that a method may be given.
RUNS = [
    *([f"method={path.stem}"] for path in sorted((conf_dir() / "method").glob("*.yaml"))),
    *(
        [f"method={method}", f"method/{group}={path.stem}"]
        for method, group in (("dpo", "loss"), ("dpo", "divergence"), ("grpo", "policy_loss"))
        for path in sorted((conf_dir() / "method" / group).glob("*.yaml"))
    ),
]


@functools.cache
def composed(*overrides: str) -> DictConfig:
    """Composes a run as ``align train`` does, once."""
    return task_config(compose("train", list(overrides)))


def numbers(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Every number below ``method``, with its interval, or nothing in the interval's place."""
    nodes: list[tuple[str, Any]] = [("method", OmegaConf.to_container(cfg.method, resolve=True))]
    for key, node in nodes:
        nodes += [(f"{key}.{name}", value) for name, value in node.items() if isinstance(value, dict)]
        if "_target_" in node:
            target = resolve(key, node["_target_"])
            function = target.__init__ if inspect.isclass(target) else target
            hints = typing.get_type_hints(function, include_extras=True)
            yield from (
                (f"{key}.{name}", interval) for name in node if name in hints for interval in intervals(hints[name])
            )


def intervals(annotation: Any) -> list[str]:
    """The interval of an annotation that is a number, or a number and nothing."""
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    found: list[str] = []
    for member in typing.get_args(annotation) if is_union else [annotation]:
        bare, *notes = typing.get_args(member) if typing.get_origin(member) is Annotated else [member]
        if bare in (float, int):
            found.append(notes[0] if notes else "")
    return found


def just_below(interval: str) -> float:
    """The largest integer, or end of the interval, that is too low."""
    left, low = re.match(r"([\[(])(\w+),", interval).groups()  # type: ignore[union-attr]
    return int(low) if left == "(" else int(low) - 1


@pytest.mark.parametrize("overrides", RUNS, ids=lambda overrides: overrides[-1])
def test_what_lies_outside_is_refused(overrides: list[str]) -> None:
    cfg = composed(*overrides)
    for key, interval in numbers(cfg):
        assert interval, f"{key} has no range"
        for wrong in (just_below(interval), math.nan, math.inf):
            bad = cfg.copy()
            OmegaConf.update(bad, key, wrong)
            with pytest.raises(ConfigError) as caught:
                validate(bad, "train")
            assert str(caught.value).startswith(f"{key}: got {wrong}, expected "), (key, wrong)


def test_the_numbers_of_methods_are_found() -> None:
    found = {key for overrides in RUNS for key, _ in numbers(composed(*overrides))}
    assert found > {
        "method.tau",
        "method.beta",
        "method.gamma",
        "method.gamma_beta_ratio",
        "method.nll_coefficient",
        "method.label_smoothing",
        "method.odds_ratio_coefficient",
        "method.desirable_weight",
        "method.undesirable_weight",
        "method.centering_coefficient",
        "method.min_margin",
        "method.kl.coefficient",
        "method.shaping.missing_eos_penalty",
        "method.rollouts.group_size",
        "method.policy_loss.clip_high",
        "method.value_loss.clip",
        "method.loss.penalty",
        "method.loss.losses.sigmoid.label_smoothing",
        "method.divergence.alpha",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=ipo", "method.tau=0"], "method.tau: got 0, expected a number in (0, inf)"),
        (["method=ipo", "method.tau=-1"], "method.tau: got -1, expected a number in (0, inf)"),
        (
            ["method=cpo", "method.label_smoothing=0.5"],
            "method.label_smoothing: got 0.5, expected a number in [0, 0.5)",
        ),
        (
            ["method=simpo", "method.gamma_beta_ratio=-0.5"],
            "method.gamma_beta_ratio: got -0.5, expected a number in [0, inf) or null",
        ),
        (
            ["method=orpo", "method.odds_ratio_coefficient=0"],
            (
                "method.odds_ratio_coefficient: got 0, expected a number in (0, inf). "
                "Without the odds ratio it is method=sft"
            ),
        ),
        (
            ["method=grpo", "method.kl.coefficient=0"],
            (
                "method.kl.coefficient: got 0, expected a number in (0, inf). "
                "Without a penalty there is nothing to load a reference for: method/kl=none reference=none"
            ),
        ),
        (["schedule.warmup=1"], "schedule.warmup: got 1, expected a number in [0, 1)"),
        (["schedule.final_fraction=2"], "schedule.final_fraction: got 2, expected a number in [0, 1]"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_the_error_says_what_would_do(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(task_config(compose("train", overrides)), "train")
    assert str(caught.value) == message


def test_the_command_refuses_before_it_trains_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an empty folder the starting model would have to be trained first: nothing of that begins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "run", lambda *_: pytest.fail("a run began"))
    monkeypatch.setattr("sys.argv", ["align", "train", "method=ipo", "method.tau=-1"])
    assert main() == 2
    assert "method.tau: got -1, expected a number in (0, inf)" in capsys.readouterr().err
    assert not list(tmp_path.rglob("model*"))
