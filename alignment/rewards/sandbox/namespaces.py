"""A sandbox out of Linux namespaces: what bubblewrap does, for machines without it.

Run as a program of its own, so it needs the standard library alone: ``python namespaces.py SETTINGS``. It builds the
namespaces, writes the process id of the one that owns them all, waits to be let go on, and hands its exit code back.
Needs Linux 5.12 (detached mounts with attributes).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

_CLONE_NEWNS, _CLONE_NEWCGROUP, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_NEW = _CLONE_NEWNS | _CLONE_NEWCGROUP | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET

# Numbers that all machines share.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_HERE = -100
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC, _RECURSIVE, _EMPTY_PATH = 1, 0o2000000, 0x8000, 0x1000
_MOVE_FROM_EMPTY_PATH = 4
_ATTR_READ_ONLY, _ATTR_NO_SUID, _ATTR_NO_DEV = 1, 2, 4

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND = 1, 2, 4, 8, 32, 4096
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4

_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
NOBODY = 65534
ROOT_BYTES = 64 * 1024
"""The root folder itself: a few empty folders, read-only once they are made."""

libc = ctypes.CDLL(None, use_errno=True)


def main(settings: dict) -> int:
    """Builds the sandbox and runs the command in it.

    Args:
        settings: ``command`` (its program and arguments inside), ``environment``, ``read_only`` (folders: outside ->
            inside), ``links`` (name -> target), ``devices``, ``tmp_bytes``, ``new_user`` (whether a user namespace is
            needed, because this is not root), ``info_fd`` and ``block_fd``.

    Returns:
        The command's exit code, or 128 and the signal that ended it.
    """
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    _unshare(new_user=settings["new_user"])
    _build_root(settings)
    init = os.fork()
    if init == 0:
        os.close(settings["info_fd"])
        os._exit(_be_init(settings))
    os.close(settings["block_fd"])
    os.write(settings["info_fd"], json.dumps({"child-pid": init}).encode())
    os.close(settings["info_fd"])
    _close_all_but_errors()
    return _exit_code(os.waitpid(init, 0)[1])


def _unshare(*, new_user: bool) -> None:
    user, group = os.geteuid(), os.getegid()
    _check(libc.unshare(_NEW | (_CLONE_NEWUSER if new_user else 0)), "unshare")
    if new_user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{NOBODY} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{NOBODY} {group} 1")
    _check(libc.sethostname(b"sandbox", 7), "sethostname")


def _build_root(settings: dict) -> None:
    """Makes a root folder out of nothing but what the interpreter needs, and moves into it."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    trees = [(_detached(source, _ATTR_READ_ONLY | _ATTR_NO_DEV), to) for source, to in settings["read_only"].items()]
    devices = [(_detached(device, 0), device) for device in settings["devices"]]
    # The new root hides the old /tmp for this process alone, and nothing outside is touched.
    flags = _MS_NOSUID | _MS_NODEV
    _mount("tmpfs", "/tmp", "tmpfs", flags, f"size={ROOT_BYTES},mode=755")  # noqa: S108
    os.chdir("/tmp")  # noqa: S108
    for tree, to in trees:
        Path(to.lstrip("/")).mkdir(parents=True)
        _attach(tree, to.lstrip("/"))
    for name, target in settings["links"].items():
        Path(name.lstrip("/")).symlink_to(target)
    Path("dev").mkdir()
    for device, to in devices:
        Path(to.lstrip("/")).touch()
        _attach(device, to.lstrip("/"))
    Path("tmp").mkdir()
    size = settings["tmp_bytes"]
    _mount("tmpfs", "tmp", "tmpfs", flags | _MS_NOEXEC, f"size={size},nr_inodes={size // 4096},mode=1777")
    _check(libc.syscall(_PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _check(libc.umount2(b".", _MNT_DETACH), "umount")
    _mount(None, "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | flags)
    os.chdir("/tmp")  # noqa: S108


def _be_init(settings: dict) -> int:
    """Is process 1 inside: when it ends, the kernel kills whatever is left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _check(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
    _check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    # Nothing to read means that the one who watches has gone.
    if not os.read(settings["block_fd"], 1):
        return 1
    os.close(settings["block_fd"])
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.execve(settings["command"][0], settings["command"], settings["environment"])  # noqa: S606
    _close_all_but_errors()
    while True:
        ended, status = os.wait()
        if ended == child:
            return _exit_code(status)


def _close_all_but_errors() -> None:
    """A reader of the program's output must see its end, whoever else still lives."""
    os.closerange(3, 1024)
    os.close(0)
    os.close(1)


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _detached(path: str, attributes: int) -> int:
    """A copy of a mount that is attached nowhere yet, with attributes of its own."""
    tree = libc.syscall(_OPEN_TREE, _HERE, os.fsencode(path), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _RECURSIVE)
    _check(min(tree, 0), f"open_tree {path}")
    wanted = (ctypes.c_uint64 * 4)(attributes | _ATTR_NO_SUID, 0, 0, 0)
    result = libc.syscall(_MOUNT_SETATTR, tree, b"", _EMPTY_PATH | _RECURSIVE, wanted, ctypes.sizeof(wanted))
    _check(result, f"mount_setattr {path}")
    return tree


def _attach(tree: int, path: str) -> None:
    result = libc.syscall(_MOVE_MOUNT, tree, b"", _HERE, os.fsencode(path), _MOVE_FROM_EMPTY_PATH)
    _check(result, f"move_mount {path}")
    os.close(tree)


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    result = libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3])
    _check(result, f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
