"""What the composer says about a command line that is wrong: the key, what it got, what would do, the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from alignment.config.compose import compose, config_loader, quote, task_config
from alignment.utils.errors import ConfigError, UserError


def message(*overrides: str, verb: str = "train", config_dir: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        task_config(compose(verb, list(overrides), config_dir=config_dir))
    return str(caught.value)


def test_wrong_choice_names_the_choices_and_the_nearest() -> None:
    text = message("method=dpoo")
    assert text.startswith("method: got 'dpoo', expected one of cpo, dpo, ")
    assert text.endswith("did you mean 'dpo'?")


def test_wrong_key_names_its_neighbours_and_the_nearest() -> None:
    assert message("method.bta=0.2") == (
        "method.bta: got '0.2', expected one of the keys of 'method': beta, length_normalised, nll_coefficient, "
        "nll_normaliser, weighting, loss, divergence. "
        "did you mean 'method.beta'?"
    )


def test_wrong_group_names_the_nearest() -> None:
    text = message("methd=dpo")
    assert text.startswith("methd: got 'dpo', expected one of the keys: ")
    assert text.endswith("did you mean 'method'?")


def test_wrong_key_below_a_choice_that_the_command_changes() -> None:
    text = message("method=sft", "reference=none", "method.normalizer=token")
    assert (
        "expected one of the keys of 'method': normaliser, train_on_prompt. did you mean 'method.normaliser'?" in text
    )


def test_wrong_key_is_worded_even_if_a_choice_is_wrong_as_well() -> None:
    assert "dpoo" in message("method.bta=1", "method=dpoo")


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("dpo", "did you mean 'method=dpo'?"),
        ("method", ""),
        ("method=[1", "Hydra says:"),
    ],
)
def test_what_is_no_override_is_said_to_be_none(override: str, hint: str) -> None:
    text = message(override)
    assert override.split("=")[0] in text
    assert hint in text


def test_missing_equal_sign() -> None:
    assert message("dpo") == "dpo: got 'dpo', expected an override KEY=VALUE. did you mean 'method=dpo'?"


def test_group_that_has_a_choice_takes_no_plus() -> None:
    assert message("+method=dpo") == "+method=...: 'method' has a choice already. Write method=... without '+'"


def test_group_outside_the_defaults_takes_a_plus() -> None:
    assert message("sweep=dpo_beta").endswith("write +sweep=dpo_beta")


def test_missing_mandatory_value() -> None:
    text = message("model=pretrained")
    assert text == "model.path: got '???', expected a value. Add model.path=VALUE"


def test_missing_mandatory_choice_names_the_choices() -> None:
    text = message(verb="pipeline")
    assert text.startswith("pipeline: got '???', expected one of ")
    assert "quickstart" in text


def test_choice_that_is_no_name() -> None:
    assert message("adapter=null") == "adapter: got None, expected one of lora, none. Use adapter=none"
    assert message("hardware=5").startswith("hardware: got 5, expected one of cpu, ")


def test_list_without_multirun() -> None:
    assert "Ambiguous value for argument 'method.beta=1,2'" in message("method.beta=1,2")


def test_interpolation_that_leads_nowhere_is_named_by_key() -> None:
    text = message("method.beta=${nowhere.at_all}")
    assert text.startswith("method.beta: got '${nowhere.at_all}', expected an interpolation that resolves. ")
    assert "nowhere" in text


def test_environment_variable_that_is_not_set_is_named_by_key() -> None:
    text = message("name=${oc.env:NO_SUCH_VARIABLE_HERE}")
    assert text.startswith("name: got '${oc.env:NO_SUCH_VARIABLE_HERE}'")


def test_config_dir_is_searched_first(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text("_target_: torch.optim.SGD\n_partial_: true\nmomentum: 0.5\n")
    cfg = compose("train", ["optim=mine"], config_dir=tmp_path)
    assert cfg.optim.momentum == 0.5


def test_config_dir_that_is_not_there(tmp_path: Path) -> None:
    assert "no folder" in message(config_dir=tmp_path / "nowhere")


def test_unreadable_yaml_is_named_by_file(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "broken.yaml").write_text("lr: [1\n")
    text = message("optim=broken", config_dir=tmp_path)
    assert "broken.yaml" in text


def test_unreadable_interpolation_is_named_by_file(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "broken.yaml").write_text("lr: ${oc.env:A,~/b}\n")
    text = message("optim=broken", config_dir=tmp_path)
    assert text.startswith(f"{tmp_path / 'optim' / 'broken.yaml'}: an interpolation cannot be read: ")


def test_named_sweep_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = compose("train", ["+sweep=dpo_beta"], run_mode=RunMode.MULTIRUN)
    assert cfg.hydra.mode is RunMode.MULTIRUN
    assert "method.beta" in cfg.hydra.sweeper.params


def test_two_compositions_do_not_disturb_each_other() -> None:
    first = task_config(compose("train", ["method=sft", "reference=none"]))
    second = task_config(compose("train", []))
    assert (first.name, second.name) == ("sft", "dpo")


def test_config_error_carries_its_parts() -> None:
    with pytest.raises(ConfigError) as caught:
        compose("train", ["method=dpoo"])
    assert (caught.value.key, caught.value.got) == ("method", "dpoo")


def test_hydra_node_is_not_part_of_the_task() -> None:
    cfg = compose("train", [])
    assert "hydra" in cfg
    assert "hydra" not in task_config(cfg)
    assert OmegaConf.select(cfg, "hydra.output_subdir") is None


@settings(max_examples=80, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20))
def test_quoted_text_reads_as_itself(text: str) -> None:
    parser = OverridesParser.create(config_loader())
    assert parser.parse_override(f"key={quote(text)}").value() == text
