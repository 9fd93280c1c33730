"""The stages of a pipeline as data: in which order they run, what they refer to, and whether one is finished.

A stage's arguments name another stage's artefact as ``stage://STAGE/ARTEFACT`` and its run folder as
``stage://STAGE``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import alignment
from alignment.utils.errors import ConfigError, nearest
from alignment.utils.files import hash_file

STATE = "stage.json"
_REFERENCE = re.compile(r"stage://(?P<stage>[\w-]+)(?:/(?P<artefact>[\w-]+))?")
#: Keys that change where results go and how a run is watched, and nothing about its results.
_NOT_IDENTITY = ("paths", "resume", "logger")


@dataclass(frozen=True)
class Stage:
    """One node of the graph.

    Attributes:
        name: Its name.
        verb: The verb that it runs.
        arguments: Overrides, or the run folders of ``report``, with references to other stages.
        needs: Stages that must have finished.
        run_dir: Its run folder.
    """

    name: str
    verb: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...]
    run_dir: Path

    @property
    def references(self) -> list[tuple[str, str | None]]:
        """The stages and artefacts that the arguments name."""
        return [(found["stage"], found["artefact"]) for text in self.arguments for found in _REFERENCE.finditer(text)]

    def state(self) -> dict[str, Any]:
        """Returns what is known of its last run; empty before the first."""
        path = self.run_dir / STATE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def artefact(self, name: str) -> Path:
        """Returns the path of something that it made.

        Raises:
            ConfigError: It made nothing of this name.
        """
        made: dict[str, Any] = self.state().get("artefacts", {})
        if name not in made:
            known = ", ".join(made) or "nothing"
            raise ConfigError(f"stage://{self.name}/{name}", got=name, expected=f"an artefact of this stage: {known}")
        return self.run_dir / made[name]["path"]


def read_stages(cfg: DictConfig, run_dir: Path) -> dict[str, Stage]:
    """Reads the stages of a pipeline, in an order in which they can run.

    Raises:
        ConfigError: A stage needs one that is not there, or itself.
    """
    nodes: dict[str, Any] = OmegaConf.to_container(cfg.pipeline.stages, resolve=True)  # type: ignore[assignment]
    stages: dict[str, Stage] = {}
    for name, node in nodes.items():
        arguments = [*node.get("overrides", []), *(cfg.common if node["verb"] != "report" else [])]
        referred = [found["stage"] for text in arguments for found in _REFERENCE.finditer(text)]
        needs = tuple(dict.fromkeys([*node.get("needs", []), *referred]))
        for other in needs:
            if other not in nodes:
                key = f"pipeline.stages.{name}"
                raise ConfigError(key, got=other, expected=f"one of {', '.join(nodes)}", hint=nearest(other, nodes))
        stages[name] = Stage(name, node["verb"], tuple(arguments), needs, run_dir / name)
    try:
        order = list(TopologicalSorter({name: stage.needs for name, stage in stages.items()}).static_order())
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise ConfigError("pipeline.stages", got=circle, expected="stages that do not need one another") from error
    return {name: stages[name] for name in order}


def select(stages: Mapping[str, Stage], *, only: str | None, until: str | None) -> list[Stage]:
    """Chooses what to run, in order.

    Args:
        stages: All stages, in order.
        only: A single stage; what it needs must be finished.
        until: A stage, and all that it needs; it comes last.

    Raises:
        ConfigError: There is no such stage, or what it needs is missing.
    """
    for key, name in (("only", only), ("until", until)):
        if name is not None and name not in stages:
            raise ConfigError(key, got=name, expected=f"one of {', '.join(stages)}", hint=nearest(name, stages))
    if only is not None and until is not None:
        raise ConfigError("only", got=only, expected=f"null with until={until}", hint="Give one of the two")
    if only is not None:
        for name in stages[only].needs:
            if stages[name].state().get("status") != "finished":
                hint = f"Use until={only}"
                raise ConfigError("only", got=only, expected=f"stage '{name}', which it needs, finished", hint=hint)
        return [stages[only]]
    if until is None:
        return list(stages.values())
    wanted: set[str] = set()
    queue = [until]
    while queue:
        name = queue.pop()
        queue += stages[name].needs if name not in wanted else ()
        wanted.add(name)
    return [stage for name, stage in stages.items() if name in wanted and name != until] + [stages[until]]


def stage_hash(stage: Stage, stages: Mapping[str, Stage], config: DictConfig | None) -> str:
    """Names what a stage would do: its configuration, its inputs by content, and the version of this package.

    Args:
        stage: The stage.
        stages: All stages, by name.
        config: What its overrides compose to; ``None`` for ``report``.
    """
    inputs: dict[str, Any] = {name: stages[name].state().get("hash") for name in stage.needs}
    for other, artefact in stage.references:
        if artefact is not None:
            # By content: a stage that ran again and made the same thing changes nothing behind it.
            inputs.pop(other, None)
            made = stages[other].state().get("artefacts", {})
            inputs[f"{other}/{artefact}"] = made.get(artefact, {}).get("sha256")
    plain = {} if config is None else OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    identity = {
        "verb": stage.verb,
        "config": {key: value for key, value in plain.items() if key not in _NOT_IDENTITY},
        "arguments": stage.arguments if config is None else [],
        "inputs": inputs,
        "version": alignment.__version__,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_finished(stage: Stage, stages: Mapping[str, Stage], config: DictConfig | None) -> bool:
    """Whether a stage's last run made what it would make now, and all of that is still there."""
    state = stage.state()
    if state.get("status") != "finished" or state.get("hash") != stage_hash(stage, stages, config):
        return False
    return all((stage.run_dir / made["path"]).exists() for made in state["artefacts"].values())


def with_references(text: str, replace: Callable[[str, str | None], str]) -> str:
    """Replaces every reference in a text.

    Args:
        text: One argument of a stage.
        replace: Returns what stands for a stage's artefact, or for its run folder where there is no artefact's name.
    """
    return _REFERENCE.sub(lambda found: replace(found["stage"], found["artefact"]), text)


def locate(stages: Mapping[str, Stage], stage: str, artefact: str | None) -> Path:
    """Returns the path that a reference stands for.

    Raises:
        ConfigError: The stage made nothing of this name.
    """
    return stages[stage].run_dir if artefact is None else stages[stage].artefact(artefact)


def fingerprint(run_dir: Path, relative: str) -> dict[str, str]:
    """Returns an artefact's path below its run folder, and the hash of its content."""
    path = run_dir / relative
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for item in files:
        digest.update(f"{item.relative_to(run_dir)} {hash_file(item)}\n".encode())
    return {"path": relative, "sha256": digest.hexdigest()}
