"""How the processes of a distributed run find the job that they belong to."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

CLI_MODULE = "alignment.cli.main"


def job_argv(run_dir: Path) -> list[str]:
    """Returns the arguments of a process that joins the run in ``run_dir``, the program's name first.

    The hidden form ``align train --job RUN_DIR`` reads the run's saved configuration and composes nothing, so that a
    second rank neither makes a folder of its own nor starts a sweep again.
    """
    return [sys.argv[0], "train", "--job", str(run_dir.resolve())]


def children_join(run_dir: Path) -> None:
    """Makes the processes that Lightning starts from now on join the run in ``run_dir``.

    Lightning starts them by repeating this process's own command: ``sys.argv``, run as ``__main__`` was. In a worker
    of a parallel sweep that would be the worker's command, therefore ``__main__`` is named as well.
    """
    sys.argv = job_argv(run_dir)
    sys.modules["__main__"].__spec__ = importlib.util.find_spec(CLI_MODULE)
