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

_SAME = {
    "clone3": 435,
    "fsconfig": 431,
    "fsmount": 432,
    "fsopen": 430,
    "fspick": 433,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "io_uring_setup": 425,
    "memfd_secret": 447,
    "mount_setattr": 442,
    "move_mount": 429,
    "open_tree": 428,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "quotactl_fd": 443,
    "set_mempolicy_home_node": 450,
}
_NAMES = [
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "chroot",
    "clock_adjtime",
    "clock_settime",
    "clone",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "init_module",
    "ioctl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "memfd_create",
    "migrate_pages",
    "mount",
    "move_pages",
    "mq_open",
    "msgget",
    "name_to_handle_at",
    "open_by_handle_at",
    "perf_event_open",
    "personality",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "reboot",
    "request_key",
    "semget",
    "set_mempolicy",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "shmget",
    "socket",
    "socketpair",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
]
_X86_64 = [
    "163",
    "248",
    "159",
    "321",
    "161",
    "305",
    "227",
    "56",
    "176",
    "300",
    "313",
    "175",
    "16",
    "312",
    "320",
    "246",
    "250",
    "212",
    "237",
    "319",
    "256",
    "165",
    "279",
    "240",
    "68",
    "303",
    "304",
    "298",
    "135",
    "155",
    "310",
    "311",
    "101",
    "179",
    "169",
    "249",
    "64",
    "238",
    "171",
    "170",
    "308",
    "164",
    "29",
    "41",
    "53",
    "168",
    "167",
    "103",
    "166",
    "272",
    "323",
    "153",
]
_AARCH64 = [
    "89",
    "217",
    "171",
    "280",
    "51",
    "266",
    "112",
    "220",
    "106",
    "262",
    "273",
    "105",
    "29",
    "272",
    "294",
    "104",
    "219",
    "18",
    "235",
    "279",
    "238",
    "40",
    "239",
    "180",
    "186",
    "264",
    "265",
    "241",
    "92",
    "41",
    "270",
    "271",
    "117",
    "60",
    "142",
    "218",
    "190",
    "237",
    "162",
    "161",
    "268",
    "170",
    "194",
    "198",
    "199",
    "225",
    "224",
    "116",
    "39",
    "97",
    "282",
    "58",
]

#: Machine -> its audit architecture and its numbers of the system calls that are refused, wholly or for some arguments.
MACHINES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {**_SAME, **dict(zip(_NAMES, map(int, _X86_64), strict=True)), "ioperm": 173, "iopl": 172, "modify_ldt": 154},
    ),
    "aarch64": (0xC00000B7, {**_SAME, **dict(zip(_NAMES, map(int, _AARCH64), strict=True))}),
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
