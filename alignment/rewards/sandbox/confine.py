"""What a process in the sandbox does to itself before it runs a program; nothing of it can be undone.

The text of this file is the first thing that runs inside, so it needs the standard library alone.
"""

from __future__ import annotations

import builtins
import ctypes
import os
import platform
import resource
import struct
import sys
import types

#: System calls that are refused, wholly or for some arguments: their numbers on x86_64 and on aarch64, if it has them.
_CALLS: dict[str, tuple[int, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "mq_open": (240, 180),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "shmget": (29, 194),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}

#: Machine -> its audit architecture and its numbers of these system calls.
MACHINES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (0xC000003E, {name: x86 for name, (x86, _) in _CALLS.items()}),
    "aarch64": (0xC00000B7, {name: arm for name, (_, arm) in _CALLS.items() if arm is not None}),
}

LAST_KNOWN = 450
"""Later system calls are answered as an older kernel would: there are none such."""

_NEW_NAMESPACES = 0x7E020000
_AF_UNIX = 1
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

# Classic BPF (linux/bpf_common.h), and what a seccomp filter answers (linux/seccomp.h).
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_KILL, _ALLOW, _NOT_PERMITTED, _NO_SUCH_CALL = 0x80000000, 0x7FFF0000, 0x00050001, 0x00050026
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 22, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522

Step = tuple[int, int, int, int]


def seccomp_filter(machine: str) -> bytes:
    """Builds the filter of system calls, as classic BPF.

    Refused are those that reach into other processes, kernel keys, programs in the kernel, new namespaces, mounts,
    clocks, and memory that no limit counts; sockets other than local ones; and typing into a terminal.

    Raises:
        KeyError: The machine is not known.
    """
    architecture, numbers = MACHINES[machine]
    steps: list[Step] = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL)]
    steps += [(_LOAD, 0, 0, _NUMBER_AT), (_GREATER, 0, 1, LAST_KNOWN), (_RETURN, 0, 0, _NO_SUCH_CALL)]
    # The C library falls back to clone, whose flags a filter can read.
    steps += [(_EQUAL, 0, 1, numbers["clone3"]), (_RETURN, 0, 0, _NO_SUCH_CALL)]
    partly: dict[str, list[Step]] = {
        "clone": [*_argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, _NOT_PERMITTED)],
        "ioctl": [
            *_argument(1),
            (_EQUAL, 1, 0, _TIOCSTI),
            (_EQUAL, 0, 1, _TIOCLINUX),
            (_RETURN, 0, 0, _NOT_PERMITTED),
        ],
        "socket": [*_argument(0), (_EQUAL, 1, 0, _AF_UNIX), (_RETURN, 0, 0, _NOT_PERMITTED)],
        "socketpair": [*_argument(0), (_EQUAL, 1, 0, _AF_UNIX), (_RETURN, 0, 0, _NOT_PERMITTED)],
    }
    for name, body in partly.items():
        steps += [(_EQUAL, 0, len(body) + 1, numbers[name]), *body, (_RETURN, 0, 0, _ALLOW)]
    for name in numbers.keys() - partly.keys() - {"clone3"}:
        steps += [(_EQUAL, 0, 1, numbers[name]), (_RETURN, 0, 0, _NOT_PERMITTED)]
    steps.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *step) for step in steps)


def _argument(index: int) -> list[Step]:
    """Loads the lower half of an argument; both machines are little-endian."""
    return [(_LOAD, 0, 0, _FIRST_ARGUMENT_AT + 8 * index)]


def confine(*, user: int | None, cpu_seconds: int, memory_bytes: int, processes: int, file_bytes: int) -> None:
    """Gives up, for this process and all that it starts, every privilege and whatever is above the limits.

    Args:
        user: The user and group to become, for a process of root's; ``None`` leaves them.
        cpu_seconds: As in ``Limits``.
        memory_bytes: As in ``Limits``.
        processes: As in ``Limits``.
        file_bytes: The size of any file.

    Raises:
        OSError: Something could not be given up.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(64) if user is not None else ():
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
    _set_limits(cpu_seconds, memory_bytes, processes, file_bytes)
    if user is not None:
        os.setresuid(user, user, user)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(libc.capset(header, bytes(24)), "capset")
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    code = ctypes.create_string_buffer(seccomp_filter(platform.machine()))
    program = struct.pack("HxxxxxxP", (len(code) - 1) // 8, ctypes.addressof(code))
    _check(libc.prctl(_PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


def _set_limits(cpu_seconds: int, memory_bytes: int, processes: int, file_bytes: int) -> None:
    caps = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 64,
        resource.RLIMIT_STACK: 8 * 2**20,
    }
    for name, value in caps.items():
        # A second more of processor time: SIGXCPU says why, SIGKILL cannot be ignored.
        hard = value + 1 if name == resource.RLIMIT_CPU else value
        resource.setrlimit(name, (value, hard))


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def run(program: str, arguments: list[str], limits: dict[str, int | None]) -> None:
    """Confines this process and runs a program in it as ``__main__``."""
    confine(**limits)  # type: ignore[arg-type]
    sys.argv[:] = ["program", *arguments]
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    main.__dict__["__builtins__"] = builtins
    exec(compile(program, "<program>", "exec"), main.__dict__)  # noqa: S102 (this is the sandbox)
