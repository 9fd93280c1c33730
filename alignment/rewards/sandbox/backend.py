"""What can isolate a program on this machine: bubblewrap, else namespaces made by ourselves."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from alignment.rewards.sandbox import namespaces

ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "/usr/bin"}  # noqa: S108
"""All that a program in the sandbox finds in its environment, but for where shared libraries are."""

_INSIDE = "/python"
_DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")
_LIBRARIES = ("/lib", "/lib64")
_SHARED_USERS = 65536
"""A range of user ids that is no longer than this one holds accounts of people and services."""


class Fds(NamedTuple):
    """Numbers of the pipes through which a sandbox says which process owns it, and waits to be let go on."""

    info: int
    block: int


@dataclass(frozen=True)
class Backend:
    """A way to isolate.

    Attributes:
        name: How messages call it.
        command: From the arguments of the interpreter inside, the bytes of the temporary folder and the pipes to the
            command that runs the interpreter in a sandbox.
        own_processes: How many it needs itself in a user namespace, which counts them with the program's.
    """

    name: str
    command: Callable[[list[str], int, Fds], list[str]]
    own_processes: int


@dataclass(frozen=True)
class View:
    """What of the machine a program in the sandbox sees, all of it read-only.

    Attributes:
        folders: Outside -> inside.
        links: Inside -> target.
        python: The interpreter, inside.
        libraries: Where shared libraries are, inside.
    """

    folders: dict[str, str]
    links: dict[str, str]
    python: str
    libraries: str


@cache
def view() -> View:
    """The interpreter that runs this, without its site packages' environment, and the system's libraries."""
    folders, links = {"/usr": "/usr"}, {}
    for path in map(Path, _LIBRARIES):
        if path.is_symlink():
            links[str(path)] = str(path.readlink())
        elif path.is_dir():
            folders[str(path)] = str(path)
    prefix = Path(sys.base_prefix).resolve()
    executable = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    if prefix.is_relative_to("/usr"):
        return View(folders, links, str(executable), f"{prefix}/lib")
    folders[str(prefix)] = _INSIDE
    return View(folders, links, f"{_INSIDE}/{executable.relative_to(prefix)}", f"{_INSIDE}/lib")


def environment() -> dict[str, str]:
    """The whole environment of a program in the sandbox."""
    return {**ENVIRONMENT, "LD_LIBRARY_PATH": view().libraries}


@cache
def _highest_user() -> int:
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return max(first + count for first, _, count in ranges)


def is_root() -> bool:
    """Whether this process may become any user: then a sandbox gets one of its own, else a user namespace."""
    return os.geteuid() == 0 and _highest_user() >= _SHARED_USERS


def own_user() -> int | None:
    """A user id for one sandbox, that hardly anything else has; ``None`` where a user namespace gives it.

    A user's processes are counted together, so that sandboxes that run side by side do not use up each other's.
    """
    if not is_root():
        return None
    highest = min(_highest_user(), 2**31)
    return random.SystemRandom().randrange(highest // 2, highest - 2)


def _bubblewrap(arguments: list[str], tmp_bytes: int, fds: Fds) -> list[str]:
    seen = view()
    users = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID", "--cap-add", "CAP_SETPCAP"]
    if not is_root():
        users = ["--unshare-user", "--uid", str(namespaces.NOBODY), "--gid", str(namespaces.NOBODY)]
    folders = [word for outside, inside in seen.folders.items() for word in ("--ro-bind", outside, inside)]
    links = [word for name, target in seen.links.items() for word in ("--symlink", target, name)]
    devices = ["--perms", "0755", "--dir", "/dev"]
    devices += [word for device in _DEVICES for word in ("--dev-bind", device, device)]
    return [
        shutil.which("bwrap") or "bwrap",
        *("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        *("--hostname", "sandbox", "--die-with-parent", *users),
        *(*folders, *links, *devices),
        *("--perms", "1777", "--size", str(tmp_bytes), "--tmpfs", "/tmp"),  # noqa: S108
        *("--remount-ro", "/", "--chdir", "/tmp"),  # noqa: S108
        *("--info-fd", str(fds.info), "--block-fd", str(fds.block)),
        *("--", seen.python, *arguments),
    ]


def _namespaces(arguments: list[str], tmp_bytes: int, fds: Fds) -> list[str]:
    seen = view()
    settings = {
        "command": [seen.python, *arguments],
        "environment": environment(),
        "read_only": seen.folders,
        "links": seen.links,
        "devices": _DEVICES,
        "tmp_bytes": tmp_bytes,
        "new_user": not is_root(),
        "info_fd": fds.info,
        "block_fd": fds.block,
    }
    return [sys.executable, "-I", "-S", "-B", str(namespaces.__file__), json.dumps(settings)]


BACKENDS = (Backend("bubblewrap", _bubblewrap, 1), Backend("namespaces", _namespaces, 2))
"""In the order in which they are tried."""
