"""The shape of the project: layers, the four files of a method, names that agree."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "alignment"
#: Files of methods/ that are shared by all methods.
SHARED = {
    *("__init__", "base", "calibration", "offline", "metrics", "nll", "pairwise", "optimizers", "schedules"),
    *("preference_metrics", "terms", "online", "online_pairs", "policy_gradient", "rollout_plan", "rollout_log"),
    *("writer", "experience_loader", "kl"),
}
METHODS = sorted(path.stem for path in (PACKAGE / "methods").glob("*.py") if path.stem not in SHARED)


def test_imports_go_down_only():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_four_files_and_a_page(name):
    files = [
        mathematics(name),
        PACKAGE / "methods" / f"{name}.py",
        ROOT / "conf" / "method" / f"{name}.yaml",
        ROOT / "tests" / "methods" / f"test_{name}.py",
        ROOT / "docs" / "methods" / f"{name}.md",
    ]
    assert [str(file.relative_to(ROOT)) for file in files if not file.exists()] == []
    lines = sum(len(file.read_text().splitlines()) for file in files[:4])
    assert lines <= 250, f"{name} takes {lines} lines in its four files"


def mathematics(name: str) -> Path:
    """A method's loss, or its advantages where the loss is any policy gradient's, or the offline method's objective."""
    offline = name.removeprefix("online_")
    places = [PACKAGE / folder / f"{stem}.py" for folder in ("losses", "advantages") for stem in (name, offline)]
    return next((path for path in places if path.exists()), places[0])


@pytest.mark.parametrize("name", METHODS)
def test_nothing_else_names_a_method(name):
    """Adding a method edits nothing: no registry, enum or export list knows it."""
    own = {PACKAGE / folder / f"{stem}.py" for folder in ("losses", "methods") for stem in (name, f"online_{name}")}
    importers = [
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*.py")
        if path not in own and any(module.endswith((f"methods.{name}", f"losses.{name}")) for module in imports(path))
    ]
    assert importers == []


def test_every_choice_of_method_has_a_class_of_its_own_name():
    choices = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")}
    assert choices == set(METHODS)


def test_help_and_config_import_no_torch():
    code = (
        "import sys, alignment.cli.main, alignment.config.validate, alignment.config.compose, alignment.report.main\n"
        "heavy = {'torch', 'transformers', 'lightning', 'datasets', 'peft', 'wandb'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_losses_have_no_defaults_for_their_mathematics():
    """Hyperparameters have one source, the YAML."""
    for path in [*(PACKAGE / "losses").glob("*.py"), *(PACKAGE / "methods" / f"{name}.py" for name in METHODS)]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                defaults = [value for value in (*node.args.defaults, *node.args.kw_defaults) if value is not None]
                assert not defaults, f"{path.name}:{node.lineno} {node.name} has a default"


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found
