"""The verbs that Hydra composes: everything is checked first, then Hydra's own entry point takes over.

Hydra brings composing, ``--cfg``, ``--info``, multirun, launchers, sweepers and shell completion. What it does not
bring is a word about a typo before the jobs start: that is the check here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from alignment.cli.job import DONE, FAILED, Job
from alignment.cli.sweep import sweep_table
from alignment.config.compose import VERSION_BASE, compose, hydra_config, parse_overrides, quote, task_config
from alignment.config.paths import conf_dir
from alignment.config.searchpath import register_search_path
from alignment.config.validate import check_targets, validate
from alignment.utils.errors import UserError


@dataclass(frozen=True)
class Request:
    """A command line, taken apart.

    Attributes:
        verb: The verb.
        arguments: Everything behind it, as Hydra will read it.
        config_name: The primary config.
        config_dir: What ``--config-dir`` names.
        overrides: The overrides alone.
        multirun: Whether ``-m`` was given.
        shows: Whether the configuration is only shown, or a shell asks for completions.
    """

    verb: str
    arguments: tuple[str, ...]
    config_name: str
    config_dir: Path | None
    overrides: tuple[str, ...]
    multirun: bool
    shows: bool


def run_app(verb: str, arguments: Sequence[str]) -> int:
    """Runs ``align VERB ARGUMENTS``.

    Returns:
        The exit code.

    Raises:
        UserError: Something is wrong with the command line or the configuration; nothing has started.
    """
    request = parse(verb, arguments)
    register_search_path()
    if request.shows:
        return _show(request)
    cfg = _compose(request, RunMode.MULTIRUN, request.overrides)
    if request.multirun or cfg.hydra.mode is RunMode.MULTIRUN:
        return _sweep(request, cfg)
    check(request, request.overrides)
    job = Job(verb, tuple(sys.argv))
    _hydra_main(request, job, request.arguments)
    return job.exit_code


def parse(verb: str, arguments: Sequence[str]) -> Request:
    """Takes a command line apart with Hydra's own parser, which ends the process with code 2 at an unknown flag.

    Raises:
        UserError: Flags that exclude one another.
    """
    parser = get_args_parser()
    parser.prog = f"align {verb}"
    args: argparse.Namespace = parser.parse_args(list(arguments))
    chosen = [flag for flag in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(args, flag)]
    if len(chosen) > 1:
        raise UserError(f"only one of {' and '.join('--' + flag for flag in chosen)} at a time")
    if args.resolve and not args.cfg:
        raise UserError("--resolve goes with --cfg only: align " + verb + " --cfg job --resolve")
    if args.experimental_rerun or args.config_path:
        raise UserError("--experimental-rerun and --config-path are not offered: use --config-dir, or resume=RUN")
    return Request(
        verb=verb,
        arguments=tuple(arguments),
        config_name=args.config_name or verb,
        config_dir=Path(args.config_dir) if args.config_dir else None,
        overrides=tuple(args.overrides),
        multirun=args.multirun,
        shows=bool(args.cfg or args.info or args.shell_completion or args.hydra_help),
    )


def check(request: Request, overrides: Sequence[str]) -> DictConfig:
    """Composes and validates one job.

    Returns:
        The configuration as the job would see it.

    Raises:
        UserError: It cannot run.
    """
    task = task_config(_compose(request, RunMode.RUN, overrides))
    validate(task, request.verb)
    return task


def sweep_jobs(cfg: DictConfig, overrides: Sequence[str], config_dir: Path | None) -> list[list[str]]:
    """Returns the overrides of each job that Hydra's basic sweeper will launch, in its order.

    For another sweeper, whose jobs are not known beforehand, a single job without the overrides that it sweeps over.
    """
    sweeper = cfg.hydra.sweeper
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    if str(sweeper._target_).endswith(".BasicSweeper"):
        parsed = parse_overrides([*params, *overrides], config_dir)
        return [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
    parsed = parse_overrides(overrides, config_dir)
    return [[item.input_line for item in parsed if item.input_line and not item.is_sweep_override()]]


def _compose(request: Request, mode: RunMode, overrides: Sequence[str]) -> DictConfig:
    cfg = compose(request.config_name, overrides, config_dir=request.config_dir, run_mode=mode)
    # Hydra builds these itself, before any job: they are held to the same list.
    check_targets({"hydra": {"callbacks": OmegaConf.to_container(cfg.hydra.callbacks)}})
    return cfg


def _show(request: Request) -> int:
    """Lets Hydra show the configuration; a shell that asks for completions gets them for half-typed words too."""
    is_query = any(argument.startswith(("-sc", "--shell-completion")) for argument in request.arguments)
    if not is_query:
        compose(request.config_name, request.overrides, config_dir=request.config_dir)
    _hydra_main(request, Job(request.verb, tuple(sys.argv)), request.arguments)
    return DONE


def _sweep(request: Request, cfg: DictConfig) -> int:
    jobs = sweep_jobs(cfg, _task_overrides(cfg), request.config_dir)
    hydra_overrides = list(cfg.hydra.overrides.hydra)
    for job in jobs:
        check(request, [*hydra_overrides, "hydra.mode=RUN", *job])
    folder = Path(_resolve_sweep_dir(cfg))
    # Hydra would name the folder by the clock once more; the table at the end must know it.
    arguments = (*request.arguments, f"hydra.sweep.dir={quote(str(folder))}")
    failure: int | str | None = DONE
    try:
        _hydra_main(request, Job(request.verb, tuple(sys.argv)), arguments)
    except SystemExit as stop:
        # A launcher gave up: the jobs that ran are shown all the same.
        if stop.code not in (DONE, FAILED):
            raise
        failure = stop.code
    num_failed = sweep_table(folder, jobs)
    return FAILED if num_failed or failure else DONE


def _task_overrides(cfg: DictConfig) -> list[str]:
    return list(cfg.hydra.overrides.task)


def _resolve_sweep_dir(cfg: DictConfig) -> str:
    with hydra_config(cfg):
        return str(cfg.hydra.sweep.dir)


def _hydra_main(request: Request, job: Job, arguments: Sequence[str]) -> None:
    main = hydra.main(config_path=str(conf_dir()), config_name=request.config_name, version_base=VERSION_BASE)
    with _as_argv(arguments):
        main(job)()


@contextmanager
def _as_argv(arguments: Sequence[str]) -> Iterator[None]:
    """Hydra reads the process's own arguments, and knows nothing of verbs."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before
