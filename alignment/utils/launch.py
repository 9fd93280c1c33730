"""How the processes of a distributed run find the job that they belong to."""

from __future__ import annotations

import importlib.util
import os
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


def agreed_run_dir(run_dir: Path) -> Path:
    """Returns the folder that rank 0 has chosen; under torchrun every rank composes by itself, a second apart perhaps.

    Under SLURM there is nobody to ask before training starts: there ``paths.run_dir`` is given on the command line.

    Args:
        run_dir: This rank's own choice.
    """
    environment = os.environ
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or environment.get("WORLD_SIZE", "1") == "1":
        return run_dir
    from torch.distributed import TCPStore

    store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False)
    key = f"alignment/run_dir/{environment.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if environment["RANK"] == "0":
        store.set(key, str(run_dir))
    return Path(store.get(key).decode())
