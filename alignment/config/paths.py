"""Where the YAML files lie: in a checkout beside the package, in an installed wheel inside it."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def _shipped_dir(name: str) -> Path:
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def conf_dir() -> Path:
    """Returns the folder of the primary configs and the config groups.

    >>> (conf_dir() / "train.yaml").is_file()
    True
    """
    return _shipped_dir("conf")


def sweeps_dir() -> Path:
    """Returns the folder of the named sweeps, which is on Hydra's search path as well.

    >>> (sweeps_dir() / "sweep").is_dir()
    True
    """
    return _shipped_dir("sweeps")
