"""Help: fast, complete, and from the YAML files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from alignment.cli.help import VERBS, choices, default_choices, verb_help
from alignment.config.paths import conf_dir

Align = Callable[..., int]
HEAVY = ("torch", "transformers", "lightning", "datasets", "peft", "wandb", "hydra", "omegaconf", "numpy", "rich")


@pytest.mark.parametrize("arguments", [["--help"], *([verb, "--help"] for verb in VERBS), ["trian"], []])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    code = f"""
import sys
from alignment.cli.main import main
main({arguments!r})
loaded = sorted(set({HEAVY!r}) & set(sys.modules))
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_configuration_layer_imports_no_torch() -> None:
    code = """
import sys
import alignment.config.compose, alignment.config.validate, alignment.config.rules, alignment.cli.app, alignment.cli.job
import alignment.pipeline.graph, alignment.utils.redact, alignment.utils.launch
assert not {"torch", "transformers", "lightning"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_main_help_names_the_verbs(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("--help") == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)
    assert "align pipeline quickstart" in text


def test_no_verb_at_all_is_a_usage_error(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align() == 2
    assert "align VERB" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["train", "evaluate", "generate", "label", "pipeline"])
def test_verb_help_lists_every_choice_of_every_group(verb: str) -> None:
    text = verb_help(verb)
    for group, default in default_choices(verb).items():
        for choice, line in choices(conf_dir() / group).items():
            assert f"{'*' if choice == default else ' '} {choice}" in text
            assert line.split()[0] in text


def test_verb_help_lists_sweeps_keys_and_examples() -> None:
    text = verb_help("train")
    assert "dpo_beta" in text
    assert "seed: 1" in text
    assert "align train -m method.beta=.05,.1,.5" in text


@pytest.mark.parametrize("arguments", [("train", "-h"), ("train", "method=sft", "--help")])
def test_help_anywhere_behind_a_verb(align: Align, capsys: pytest.CaptureFixture[str], arguments: tuple[str]) -> None:
    assert align(*arguments) == 0
    assert "Groups and their choices" in capsys.readouterr().out


def test_wrong_verb_names_the_nearest(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("trian") == 2
    assert capsys.readouterr().err == "error: align has no verb 'trian': did you mean 'train'?\n"
    assert align("zzz") == 2
    assert "the verbs are train, evaluate, generate, label, pipeline, report" in capsys.readouterr().err


def test_examples_of_the_help_are_valid() -> None:
    """Every example of a composed verb composes and validates."""
    import shlex

    from alignment.cli.app import parse
    from alignment.config.compose import compose, task_config
    from alignment.config.validate import validate

    for verb in ("train", "evaluate", "generate", "label"):
        text = verb_help(verb).partition("Examples:")[2].replace("\\\n", " ")
        for line in filter(None, map(str.strip, text.splitlines())):
            arguments = shlex.split(line.partition("   ")[0] if not line.endswith("]") else line)[2:]
            request = parse(verb, arguments)
            if request.multirun:
                continue
            validate(task_config(compose(verb, request.overrides)), verb)


@pytest.mark.parametrize("arguments", [("--help",), ("train", "--help")])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: tuple[str, ...]) -> None:
    """As in ``align train --help | head``."""
    command = [sys.executable, "-m", "alignment.cli.main", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (0, b"")
