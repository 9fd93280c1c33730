"""The root of each verb's configuration: one field for each key that may stand at the top.

A group that is ``None`` is switched off (its ``none`` choice). What stands inside a group is checked
against the signature of its ``_target_``, or, for a group without one, against the dataclass that
:data:`PLAIN_GROUPS` names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Node = dict[str, Any]


@dataclass(frozen=True)
class PathsConfig:
    """Folders: where runs go, where caches are kept, and this run's own folder."""

    runs: str
    cache: str
    run_dir: str


@dataclass(frozen=True)
class HardwareConfig:
    """Where a verb runs; the trainer receives it whole."""

    accelerator: Literal["cpu", "cuda"]
    devices: int | list[int]
    num_nodes: int
    precision: Literal["32-true", "bf16-mixed"]
    strategy: Literal["auto"] | Node
    threads: int | None


@dataclass(frozen=True)
class TrainConfig:
    """Keys of ``align train``."""

    name: str
    seed: int
    resume: str | None
    export: Literal["merged", "separate"] | None
    objective: str | None
    paths: Node
    method: Node
    model: Node
    data: Node
    optim: Node
    schedule: Node | None
    hardware: Node
    trainer: Node
    adapter: Node | None
    reference: Node | None
    critic: Node | None
    reward: Node | None
    rollout: Node | None
    callbacks: dict[str, Node | None]
    logger: dict[str, Node | None]


@dataclass(frozen=True)
class StartConfig:
    """The model that an evaluation compares with; without a path there is none."""

    path: str | None
    revision: str | None


@dataclass(frozen=True)
class EvaluateConfig:
    """Keys of ``align evaluate``."""

    name: str
    seed: int
    start: Node
    num_prompts: int | None
    paths: Node
    model: Node
    data: Node
    hardware: Node
    rollout: Node
    reward: Node | None
    selection: Node | None
    scorer: Node | None


@dataclass(frozen=True)
class GenerateConfig:
    """Keys of ``align generate``."""

    name: str
    seed: int
    prompt: str | None
    split: Literal["train", "held_out"]
    num_prompts: int | None
    paths: Node
    model: Node
    data: Node
    hardware: Node
    rollout: Node
    reward: Node | None
    pairing: Node | None


@dataclass(frozen=True)
class LabelConfig:
    """Keys of ``align label``."""

    name: str
    separator: str
    labels: Literal["soft", "hard"]
    paths: Node
    model: Node
    data: Node
    hardware: Node
    rollout: Node
    reward: Node | None


@dataclass(frozen=True)
class StageConfig:
    """One stage of a pipeline.

    Attributes:
        verb: Which verb it runs.
        overrides: Hydra overrides of the verb (for ``report``: the run folders). A text
            ``stage://STAGE/ARTEFACT`` becomes the path of another stage's artefact, and
            ``stage://STAGE`` that of its run folder.
        needs: Stages that must have finished first, besides those that ``overrides`` refer to.
    """

    verb: Literal["train", "evaluate", "generate", "label", "report"]
    overrides: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class StagesConfig:
    """The contents of a file in ``conf/pipeline``: its stages by name."""

    stages: dict[str, StageConfig]


@dataclass(frozen=True)
class PipelineConfig:
    """Keys of ``align pipeline``.

    Attributes:
        name: The pipeline's name, which is also that of its folder.
        common: Hydra overrides added to every stage but ``report``.
        only: Run this stage alone.
        until: Run this stage and those that it needs.
        paths: As in the other verbs.
        pipeline: The stages.
    """

    name: str
    common: list[str]
    only: str | None
    until: str | None
    paths: Node
    pipeline: Node


ROOTS: dict[str, type] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "generate": GenerateConfig,
    "label": LabelConfig,
    "pipeline": PipelineConfig,
}

#: Groups that are plain values: what may stand in them.
PLAIN_GROUPS: dict[str, type] = {
    "paths": PathsConfig,
    "hardware": HardwareConfig,
    "start": StartConfig,
    "pipeline": StagesConfig,
}
