"""A run's folder: its manifest, log and configuration, kept from a verb's start to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from alignment.pipeline.graph import resolve_artifacts
from alignment.pipeline.manifest import Manifest, recorded, resumed_values, start_values
from alignment.utils.logs import log_to
from alignment.utils.redact import save_config


@contextmanager
def run_folder(
    verb: str,
    cfg: DictConfig,
    run_dir: Path,
    overrides: list[str],
    *,
    goes_on: bool = False,
    is_writer: bool = True,
) -> Iterator[tuple[DictConfig, Manifest]]:
    """Makes the folder of a verb's run, and records in it how the run ends, whatever happens inside.

    Args:
        verb: Names the log.
        cfg: The composed and validated configuration.
        run_dir: The folder; it may be there already.
        overrides: What the user typed, for the manifest.
        goes_on: Whether the run began in an earlier process, whose manifest is gone on with.
        is_writer: False on all ranks but the first: they write nothing.

    Yields:
        The configuration with the paths of other runs' artefacts in it, which is also saved; and the manifest.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    values = start_values(verb=verb, cfg=cfg, overrides=overrides)
    manifest = Manifest(run_dir, resumed_values(run_dir, values) if goes_on else values, is_writer=is_writer)
    with recorded(manifest), log_to(run_dir / f"{verb}.log", active=is_writer):
        cfg = resolve_artifacts(cfg)
        if is_writer:
            save_config(cfg, run_dir / "config.yaml")
        yield cfg, manifest
