"""The documentation is true: its commands compose, its links resolve, what it names is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hydra.types import RunMode

from alignment.cli.app import check, parse, sweep_jobs
from alignment.cli.cache import parse as parse_cache
from alignment.cli.help import VERBS
from alignment.cli.main import main
from alignment.config.compose import compose
from alignment.data.records import RecordKind
from alignment.data.sources import FileSource

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
METRICS = [ROOT / "docs" / "reference" / "metrics.md", *sorted((ROOT / "docs" / "methods").glob("*.md"))]
METHODS = sorted(path.stem for path in (ROOT / "conf" / "method").glob("*.yaml"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_PLACE = re.compile(r"(?:alignment|benchmarks|conf|docs|sweeps|tests)/[\w./-]*")
_METRIC = re.compile(
    r"\"(?:train/|val/|fresh/)?"
    r"((?:loss|reward|logps|length|kl|log_ratio|entropy|diversity|win_rate|optim|speed|budget)/[a-z0-9_]+)\""
)
#: Files that stand for the reader's own.
_EXAMPLES = re.compile(r"NAME|hinge")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    return _FENCE.sub("", text(page))


def blocks(page: Path, language: str) -> list[str]:
    return [block for found, block in _FENCE.findall(text(page)) if found == language]


def commands() -> list[tuple[str, str]]:
    """Every line of every bash block, with the page that it stands on."""
    lines = [
        (name(page), line)
        for page in PAGES
        for block in blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    return [(page, line) for page, line in lines if shlex.split(line, comments=True)]


def of_align() -> list[str]:
    """The commands that are ours, behind the program's name; torchrun's call the same entry point."""
    marks = ("align ", "torchrun ")
    found = [line for _, line in commands() if line.startswith(marks)]
    return sorted({re.sub(r"^(align|torchrun .* alignment\.cli\.main) ", "", line) for line in found})


def slugs(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_commands_and_all_are_of_known_programs():
    programs = {shlex.split(line, comments=True)[0] for _, line in commands()}
    assert programs <= {"align", "make", "torchrun", "source", "for"}
    assert len(of_align()) > 25


@pytest.mark.parametrize("command", of_align())
def test_a_command_composes_and_is_valid(command, capsys):
    verb, *arguments = shlex.split(command, comments=True)
    if verb == "--help" or "--help" in arguments:
        assert main([verb, *arguments]) == 0
        return
    assert verb in VERBS
    if verb == "report":
        return
    if verb == "cache":
        parse_cache(arguments)
        return
    if verb == "pipeline" and "=" not in arguments[0]:
        arguments[0] = f"pipeline={arguments[0]}"
    request = parse(verb, arguments)
    if not request.multirun:
        check(request, request.overrides)
        return
    sweep = compose(verb, request.overrides, run_mode=RunMode.MULTIRUN)
    jobs = sweep_jobs(sweep, list(sweep.hydra.overrides.task), None)
    assert len(jobs) > 1
    for job in jobs:
        check(request, ["hydra.mode=RUN", *job])


@pytest.mark.parametrize("target", sorted({shlex.split(line)[1] for _, line in commands() if line.startswith("make ")}))
def test_a_make_target_exists(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["train", "--cfg", "job"]], ids=" ".join)
def test_cheap_commands_run(arguments, tmp_path):
    command = [sys.executable, "-m", "alignment.cli.main", *arguments]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout
    assert not list(tmp_path.iterdir())


def test_the_errors_are_what_the_program_says(capsys):
    examples = [block for block in blocks(README, "text") if block.startswith("$ align")]
    shown = re.findall(r"^\$ align (.+)\n(error: .+)$", "".join(examples), re.MULTILINE)
    assert len(shown) >= 2
    for command, message in shown:
        assert main(shlex.split(command)) == 2
        assert capsys.readouterr().err.strip() == message


def test_the_readmes_own_data_are_read(tmp_path):
    line = next(line for page, line in commands() if page == "README.md" and line.startswith("for "))
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    source = FileSource(path=str(tmp_path / "my.jsonl"), as_chat=True)
    assert source.kind is RecordKind.PREFERENCE
    assert len(source.load()) == 100


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page):
    for link in _LINK.findall(prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_and_tests_that_are_named_exist(page):
    tests = "".join(text(path) for path in (ROOT / "tests").rglob("test_*.py"))
    for code in _CODE.findall(prose(page)):
        place, _, test = code.partition("::")
        if _PLACE.fullmatch(place) and not _EXAMPLES.search(place):
            assert (ROOT / place).exists(), code
            assert not test or f"def {test}(" in text(ROOT / place), code
        elif re.fullmatch(r"test_\w+", code):
            assert f"def {code}(" in tests, code


def test_every_page_is_reached_from_the_index():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(prose(index))}
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs") and page != index}
    # Methods and benchmarks come one by one, and edit no other page: theirs are found by their folders.
    folders = [ROOT / "docs" / folder for folder in ("benchmarks", "methods")]
    assert {page for page in pages if page.parent not in folders} <= linked


def test_every_method_has_a_page():
    assert METHODS
    for method in METHODS:
        assert f"`method={method}`" in text(ROOT / "docs" / "methods" / f"{method}.md")


def documented_metrics() -> set[str]:
    """Names in the first column of tables; a word in capitals stands for many."""
    rows = [row for page in METRICS for row in re.findall(r"^\| (`[^|]+`) \|", text(page), re.MULTILINE)]
    return {found for row in rows for found in _CODE.findall(row) if "/" in found and found == found.lower()}


def test_documented_metrics_are_in_the_code():
    code = "".join(text(path) for path in (ROOT / "alignment").rglob("*.py"))
    assert len(documented_metrics()) > 25
    for metric in documented_metrics():
        group, leaf = metric.split("/")
        parts = {"loss": rf'loss ?= ?\{{[^}}]*"{leaf}":', "budget": f'"{leaf}":'}
        assert f'{metric}"' in code or (group in parts and re.search(parts[group], code)), metric


def test_metrics_of_the_code_are_documented():
    files = [path for layer in ("methods", "evaluation") for path in (ROOT / "alignment" / layer).rglob("*.py")]
    logged = {metric for path in files for metric in _METRIC.findall(text(path))}
    assert len(logged) > 20
    assert logged - documented_metrics() == set()
