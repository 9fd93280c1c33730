"""Values of a configuration that name what a pipeline's stage made."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

PREFIX = "pipeline:"


def resolve_artifacts(cfg: DictConfig) -> DictConfig:
    """Replaces every value ``pipeline:NAME/STAGE`` by the folder of that stage's artefact, running the stage if need be.

    Args:
        cfg: A run's configuration; it is not changed.
    """
    from alignment.pipeline.graph import resolve_artifact

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: resolved(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [resolved(inner) for inner in value]
        if isinstance(value, str) and value.startswith(PREFIX):
            return str(resolve_artifact(value, runs=cfg.paths.runs, cache=cfg.paths.cache))
        return value

    return OmegaConf.create(resolved(OmegaConf.to_container(cfg, resolve=True)))
