"""Help texts, made from the YAML files alone: nothing heavy is imported to print them."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from typing import Any

import yaml

from alignment.config.paths import conf_dir, sweeps_dir

#: Each verb with the line that says what it does.
VERBS = {
    "train": "train a model: a method, a model, data and hardware become a run",
    "evaluate": "measure a finished model on fresh samples",
    "generate": "complete prompts; with a reward, make preference pairs",
    "label": "label the steps of solutions by where continuations from them lead",
    "pipeline": "run a graph of stages, skipping what is finished",
    "report": "write one HTML page about runs or a sweep",
    "cache": "list what earlier runs left for later ones, and remove what is not needed",
}

_EXAMPLES = {
    "train": """\
align train                                      DPO on the embedded world, on the CPU
align train method=sft data=world_demonstrations model=world_init
align train model=pretrained model.path=HuggingFaceTB/SmolLM2-135M-Instruct \\
            data=jsonl data.train.path=my.jsonl adapter=lora reference=adapter_off
align train trainer.max_steps=20                 bounds any run
align train -m method.beta=.05,.1,.5             a sweep: one run a value
align train -m +sweep=dpo_beta                   a named sweep
align train --cfg job                            show the configuration, run nothing
align train resume=auto                          go on with the newest run of this configuration""",
    "evaluate": """\
align evaluate model.path=runs/dpo/.../model start.path=runs/sft/.../model
align evaluate model.path=runs/dpo/.../model num_prompts=512 rollout.sampling.temperature=0.7""",
    "generate": """\
align generate model.path=runs/sft/.../model prompt="Once upon a time"
align generate model.path=runs/sft/.../model rollout.sampling.num_samples=8 reward=vader pairing=best_worst""",
    "label": """\
align label model.path=runs/sft/.../model data.train.path=solutions.jsonl reward=answer
align label model.path=runs/sft/.../model data.train.path=solutions.jsonl reward=answer \\
            labels=hard rollout.sampling.num_samples=16""",
    "pipeline": """\
align pipeline quickstart                        the same as pipeline=quickstart
align pipeline quickstart until=sft              this stage and those that it needs
align pipeline quickstart only=report            this stage alone
align pipeline quickstart 'common=["seed=2"]'    overrides of every stage""",
    "report": """\
align report runs/dpo/2026-11-21_10-00-00        one run
align report runs/multirun/dpo_beta_...          a sweep's folder: its frontier of reward against KL
align report RUN RUN RUN -o comparison.html""",
    "cache": """\
align cache                                      what is there, how large, last used when
align cache prune --older-than 30d               what would go; with --yes it goes
align cache prune --kind reference --older-than 2w --yes
align cache prune --unfinished --yes             what killed processes have left
align cache prune 3fa9c2d1 --yes                 an entry, by the beginning of its key
align cache prune --all --cache DIR --yes        another folder than paths.cache""",
}

#: Of the verbs that compose no configuration: usage, and what the arguments mean.
_PLAIN = {
    "report": ("RUN... [-o FILE.html]", "RUN is a run's folder, or a sweep's folder with all its runs."),
    "cache": (
        "[list | prune [KEY...] [--kind KIND] [--older-than TIME] [--unfinished] [--all] [--yes]] [--cache DIR]",
        """\
KIND is records (parsed), tokens, reference (log-probs of reference=precomputed) or labels (counts of align label).
TIME is a number of minutes, hours, days or weeks since the last use: 90m, 12h, 30d, 2w.
Of several conditions all must hold; several keys name several entries. Without --yes nothing is removed.
What a running process builds or has opened stays.
DIR is $ALIGNMENT_CACHE, or ~/.cache/alignment, unless given.""",
    ),
}

_FLAGS = """\
-m, --multirun            sweep: KEY=A,B,C runs once for each value
-c, --cfg job             print the composed configuration (--resolve: with its values filled in)
-i, --info [WHAT]         where values come from: defaults, defaults-tree, config, plugins, searchpath
-p, --package KEY         with --cfg: this part only
-cd, --config-dir DIR     a folder of your own YAML files, searched first
-cn, --config-name NAME   another primary config
--hydra-help              Hydra's own help"""

_OVERRIDES = """\
GROUP=CHOICE              take another choice of a group: method=sft
KEY=VALUE                 change a value: method.beta=0.2
+KEY=VALUE                add a key that is not there; ~KEY removes one"""


def main_help() -> str:
    """Returns the text of ``align --help``."""
    verbs = "\n".join(f"  {verb:<12}{line}" for verb, line in VERBS.items())
    return f"""\
align VERB [ARGUMENTS]: post-training of language models on Lightning and Hydra

{verbs}

align VERB --help says what a verb takes.

Start with:
  align pipeline quickstart        SFT and DPO on a small embedded world, a report at the end

Shell completion:
  eval "$(align --completion bash)"      or zsh; fish: align --completion fish | source

Exit codes: 0 done, 1 a failure, 2 a usage or configuration error, 143 after SIGTERM.
HYDRA_FULL_ERROR=1 in the environment shows tracebacks."""


def verb_help(verb: str) -> str:
    """Returns the text of ``align VERB --help``: usage, choices of each group, flags, examples."""
    examples = textwrap.indent(_EXAMPLES[verb], "  ")
    if verb in _PLAIN:
        usage, what = _PLAIN[verb]
        return f"align {verb} {usage}: {VERBS[verb]}\n\n{what}\n\nExamples:\n{examples}"
    name = "[NAME] " if verb == "pipeline" else ""
    groups, keys = _group_text(verb), _key_text(verb)
    return f"""\
align {verb} {name}[OVERRIDE...] [FLAG...]: {VERBS[verb]}

Overrides:
{textwrap.indent(_OVERRIDES, "  ")}

Keys:
{keys}

Groups and their choices (* is the default):
{groups}

Flags:
{textwrap.indent(_FLAGS, "  ")}

Examples:
{examples}"""


def choices(folder: Path) -> dict[str, str]:
    """Returns the choices of a group, each with the comment at the head of its file.

    Args:
        folder: The group's folder.
    """
    return {path.stem: head_comment(path) for path in sorted(folder.glob("*.yaml"))}


def head_comment(path: Path) -> str:
    """Returns the first comment line of a YAML file that is no directive of Hydra's, or an empty text."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            return ""
        if not line.startswith("# @package"):
            return line.lstrip("# ").strip().rstrip(":")
    return ""


def default_choices(verb: str) -> dict[str, str | None]:
    """Returns the groups of a verb's defaults list, each with the choice that it starts with.

    Groups inside a group (``method/loss``) follow it, with the choice that goes with the group's own.
    """
    found: dict[str, str | None] = {}
    for group, choice in _defaults(conf_dir() / f"{verb}.yaml").items():
        found[group] = choice
        folder = conf_dir() / group
        inner = _defaults(folder / f"{choice}.yaml") if (folder / f"{choice}.yaml").is_file() else {}
        nested = sorted(path.name for path in folder.glob("*/"))
        found |= {f"{group}/{name}": inner.get(name) for name in nested}
    return found


def _defaults(path: Path) -> dict[str, str | None]:
    """Returns the groups of a file's defaults list with their choices."""
    entries: list[Any] = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("defaults", [])
    found: dict[str, str | None] = {}
    for entry in entries:
        for key, choice in entry.items() if isinstance(entry, dict) else ():
            group = key.removeprefix("override ").removeprefix("optional ").lstrip("/").split("@")[0]
            if not group.startswith("hydra"):
                found[group] = choice
    return found


def _group_text(verb: str) -> str:
    folders = {group: (conf_dir() / group, default) for group, default in default_choices(verb).items()}
    if verb == "train":
        folders["+sweep"] = (sweeps_dir() / "sweep", None)
    lines: list[str] = []
    for group, (folder, default) in sorted(folders.items(), key=lambda item: _rank(item[0])):
        found = choices(folder)
        if found:
            lines.append(f"  {group}")
        lines += [_entry(f"{'*' if name == default else ' '} {name}", line) for name, line in found.items()]
    return "\n".join(lines)


def _rank(group: str) -> int:
    """Puts first what users choose first; the order of a defaults list is another matter."""
    first = ("experiment", "method", "model", "data", "pipeline", "adapter", "reference")
    outer = group.partition("/")[0]
    return first.index(outer) if outer in first else len(first)


def _key_text(verb: str) -> str:
    """Lists the root's own values with the comments above them."""
    lines: list[str] = []
    comments: list[str] = []
    started = False
    for line in (conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8").splitlines():
        started = started or line.startswith("defaults:")
        if not started or not line or line.startswith(("defaults:", " ")):
            comments = []
        elif line.startswith("#"):
            comments.append(line.lstrip("# ").strip())
        else:
            lines.append(_entry(line.partition("  #")[0].rstrip(), " ".join(comments)))
            comments = []
    return "\n".join(lines)


def _entry(name: str, description: str) -> str:
    width = shutil.get_terminal_size((110, 24)).columns
    head = f"    {name:<24} "
    if len(head) > 29:
        head = f"    {name}\n{' ' * 29}"
    indent = " " * 29
    wrapped = textwrap.wrap(description, max(40, width - len(indent))) or [""]
    return (head + f"\n{indent}".join(wrapped)).rstrip()
