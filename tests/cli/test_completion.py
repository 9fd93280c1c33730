"""What a shell is told while a user types."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable

import pytest

Align = Callable[..., int]


@pytest.fixture
def candidates(
    align: Align, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], list[str]]:
    def ask(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        assert align("-sc", "query=bash") == 0
        return capsys.readouterr().out.split()

    return ask


def test_verbs(candidates: Callable[[str], list[str]]) -> None:
    assert candidates("align ") == ["train", "evaluate", "generate", "label", "pipeline", "report", "cache"]
    assert candidates("align tr") == ["train"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("align train ref", "reference="),
        # It has choices and groups inside: "=" and "/" may follow.
        ("align train meth", "method"),
        ("align train method/l", "method/loss="),
        ("align train method/loss=h", "method/loss=hinge"),
        ("align train method/loss=hinge method.loss.m", "method.loss.margin="),
        ("align train method=", "method=dpo"),
        ("align train method=s", "method=sft"),
        ("align train method=dpo method.b", "method.beta="),
        ("align train +sweep=", "+sweep=dpo_beta"),
        ("align train -m reference=p", "reference=precomputed"),
        ("align evaluate rew", "reward="),
        ("align pipeline pipeline=q", "pipeline=quickstart"),
    ],
)
def test_groups_choices_and_keys(candidates: Callable[[str], list[str]], line: str, expected: str) -> None:
    assert expected in candidates(line)


def test_hydras_own_form_behind_a_verb(
    align: Align, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", "align method=")
    assert align("train", "-sc", "query=bash") == 0
    assert "method=dpo" in capsys.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script_that_it_can_read(
    align: Align, capsys: pytest.CaptureFixture[str], shell: str
) -> None:
    assert align("--completion", shell) == 0
    script = capsys.readouterr().out
    assert "align -sc query=" in script
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_bash_completes(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    """The script in a real bash, with a function in the place of the command."""
    align("--completion", "bash")
    script = capsys.readouterr().out
    script += """
align() { echo "line:$COMP_LINE" >&2; echo method=dpo method=sft; }
exec 2>&1
COMP_WORDS=(align train method=s); COMP_CWORD=2; COMP_LINE='align train method=s'; COMP_POINT=20
_align_complete
printf '%s\\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["method=sft"]


def test_unknown_shell(align: Align, capsys: pytest.CaptureFixture[str]) -> None:
    assert align("--completion", "bsh") == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err
