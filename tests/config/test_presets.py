"""Presets, ``method/preset``: each is what it says, the default one changes nothing, and a foreign one is refused.

That those of TRL are TRL's is measured in ``tests/parity/test_trl_offline_presets.py``.
"""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from alignment.config.compose import compose, task_config
from alignment.config.paths import conf_dir
from alignment.config.validate import validate
from alignment.utils.errors import UserError

#: What a preset sets; for each method the default is the first.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "dpo": {
        "dpo_paper": {"nll_coefficient": 0.0},
        "dpo_rpo_paper": {"nll_coefficient": 1.0, "nll_normaliser": "sequence"},
        "dpo_rpo_trl": {"nll_coefficient": 1.0, "nll_normaliser": "token"},
    },
    "ipo": {"ipo_authors": {"reduction": "mean"}, "ipo_paper": {"reduction": "sum"}},
    "orpo": {
        "orpo_paper": {"nll_over": "completion", "nll_normaliser": "token"},
        "orpo_trl": {"nll_over": "prompt_and_completion", "nll_normaliser": "token"},
    },
    "simpo": {
        "simpo_paper": {"nll_coefficient": 0.0, "beta": 2.0, "gamma": None, "gamma_beta_ratio": 0.5},
        "simpo_trl": {"nll_coefficient": 1.0, "beta": 0.1, "gamma": 0.5, "gamma_beta_ratio": None},
    },
}
ALL = [(method, preset) for method, presets in PRESETS.items() for preset in presets]
WITH = "dpo, grpo, ipo, online_dpo, online_ipo, orpo, simpo"


def method(*overrides: str) -> dict[str, Any]:
    """Composes and validates a run; returns its method as plain data."""
    cfg = task_config(compose("train", list(overrides)))
    validate(cfg, "train")
    plain: Any = OmegaConf.to_container(cfg)
    return plain["method"]


def test_every_preset_is_held_here_or_is_one_of_grpos():
    files = {path.stem for path in (conf_dir() / "method" / "preset").glob("*.yaml")}
    assert files == {preset for _, preset in ALL} | {"grpo", "dr_grpo", "dapo", "gspo", "cispo", "trl"}


@pytest.mark.parametrize(("name", "preset"), ALL)
def test_a_preset_sets_its_fields_and_no_others(name, preset):
    bare, got = method(f"method={name}", "~method/preset"), method(f"method={name}", f"method/preset={preset}")
    fields = PRESETS[name][preset]
    assert {key: got[key] for key in fields} == fields
    assert {key for key in got if got[key] != bare[key]} <= fields.keys()
    assert got.keys() == bare.keys()


@pytest.mark.parametrize("name", PRESETS)
def test_the_default_is_the_first_and_is_what_the_methods_file_says(name):
    default, *others = PRESETS[name]
    assert compose("train", [f"method={name}"]).hydra.runtime.choices["method/preset"] == default
    bare = method(f"method={name}", "~method/preset")
    assert method(f"method={name}") == bare
    assert all(method(f"method={name}", f"method/preset={other}") != bare for other in others)


def test_a_field_on_the_command_line_wins_wherever_it_stands():
    field = "method.nll_over=completion"
    assert method("method=orpo", field, "method/preset=orpo_trl")["nll_over"] == "completion"
    assert method("method=orpo", "method/preset=orpo_trl", field)["nll_over"] == "completion"


def test_mpo_keeps_its_likelihood_and_takes_trls_normaliser():
    """The default preset comes behind the loss, and must not undo what the loss sets."""
    paper, trl = (method("method/loss=mpo", *more) for more in ([], ["method/preset=dpo_rpo_trl"]))
    assert (paper["nll_coefficient"], paper["nll_normaliser"]) == (1.0, "sequence")
    assert (trl["nll_coefficient"], trl["nll_normaliser"]) == (1.0, "token")


def test_an_online_method_has_the_presets_of_the_one_that_it_builds_on():
    assert method("method=online_ipo", "method/preset=ipo_paper")["reduction"] == "sum"
    assert method("method=online_dpo", "method/preset=dpo_rpo_trl")["nll_normaliser"] == "token"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("method=sft", "+method/preset=trl"),
            f"got 'trl', expected none, because method=sft has no presets. Methods with presets: {WITH}",
        ),
        (
            ("method=sft", "method/preset=trl"),
            f"got 'trl', expected none, because method=sft has no presets. Methods with presets: {WITH}",
        ),
        # One that composes, for it sets nothing, is refused as well.
        (
            ("method=cpo", "+method/preset=grpo"),
            f"got 'grpo', expected none, because method=cpo has no presets. Methods with presets: {WITH}",
        ),
        (
            ("method=orpo", "method/preset=trl", "method.bta=1"),
            "got 'trl', expected a preset of method=orpo: orpo_paper, orpo_trl. did you mean 'orpo_trl'?",
        ),
        (
            ("method/preset=dapo",),
            (
                "got 'dapo', expected a preset of method=dpo: dpo_paper, dpo_rpo_paper, dpo_rpo_trl. "
                "did you mean 'dpo_paper'?"
            ),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_preset_of_another_method_is_refused(overrides, message):
    with pytest.raises(UserError) as caught:
        method(*overrides)
    assert str(caught.value) == f"method/preset: {message}"


@pytest.mark.parametrize(
    ("name", "preset", "key"),
    [("grpo", "orpo_trl", "nll_over"), ("simpo", "ipo_paper", "reduction"), ("ipo", "dpo_rpo_trl", "nll_coefficient")],
)
def test_a_preset_with_fields_that_the_method_lacks_is_refused_by_its_field(name, preset, key):
    with pytest.raises(UserError, match=rf"^method\.{key}: got .* expected an argument of"):
        method(f"method={name}", f"method/preset={preset}")


def test_an_added_preset_where_there_is_one_is_taken_without_the_plus():
    with pytest.raises(UserError, match=r"Write method/preset=\.\.\. without '\+'"):
        method("method=orpo", "+method/preset=orpo_trl")
