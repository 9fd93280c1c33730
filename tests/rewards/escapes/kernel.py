"""Programs that ask the kernel for what no answer to an exercise needs."""


def new_namespaces():
    import ctypes

    libc = ctypes.CDLL(None)
    for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x10020000):
        if libc.unshare(flag) == 0:
            print("ESCAPED", hex(flag))


def a_child_in_a_new_namespace():
    import ctypes
    import os

    libc = ctypes.CDLL(None)
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    for flag in (0x10000000, 0x20000000):
        pid = libc.syscall(number, flag | 17, 0, 0, 0, 0)
        if pid >= 0:
            print("ESCAPED", pid, flush=True)
            if pid == 0:
                os._exit(0)


def a_child_by_the_newer_call():
    import ctypes
    import os
    import struct

    arguments = struct.pack("QQQQQQQQ", 0x10000000, 0, 0, 0, 17, 0, 0, 0)
    pid = ctypes.CDLL(None).syscall(435, arguments, len(arguments))
    if pid >= 0:
        print("ESCAPED", pid, flush=True)
        if pid == 0:
            os._exit(0)


def another_namespace():
    import ctypes
    import os

    if ctypes.CDLL(None).setns(os.pidfd_open(1), 0x20000) == 0:
        print("ESCAPED")


def refused_calls():
    """Everything here must be refused by the filter: EPERM, whatever the arguments."""
    import ctypes
    import os

    x86 = {"bpf": 321, "perf_event_open": 298, "keyctl": 250, "add_key": 248, "request_key": 249, "userfaultfd": 323}
    x86 |= {"init_module": 175, "kexec_load": 246, "reboot": 169, "syslog": 103, "shmget": 29, "mq_open": 240}
    x86 |= {"personality": 135, "acct": 163, "swapon": 167, "settimeofday": 164, "sethostname": 170, "iopl": 172}
    arm = {"bpf": 280, "perf_event_open": 241, "keyctl": 219, "add_key": 217, "request_key": 218, "userfaultfd": 282}
    arm |= {"init_module": 105, "kexec_load": 104, "reboot": 142, "syslog": 116, "shmget": 194, "mq_open": 180}
    both = {"io_uring_setup": 425, "io_uring_enter": 426, "open_tree": 428, "fsopen": 430, "mount_setattr": 442}
    numbers = {**both, **(x86 if os.uname().machine == "x86_64" else arm)}
    libc = ctypes.CDLL(None, use_errno=True)
    for name, number in numbers.items():
        ctypes.set_errno(0)
        if libc.syscall(number, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
            print("ESCAPED", name, ctypes.get_errno())


def calls_of_the_future():
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    for number in (451, 463, 500, 2**20):
        if libc.syscall(number, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 38:
            print("ESCAPED", number)


def calls_by_other_numbers():
    """The same processor's other table of numbers (x32)."""
    import ctypes
    import os

    if os.uname().machine == "x86_64" and ctypes.CDLL(None).syscall(0x40000000 + 101, 0, 0, 0, 0) == 0:
        print("ESCAPED")


def calls_of_the_older_processor():
    """32-bit system calls from 64-bit code (int 0x80: getpid is 20)."""
    import ctypes
    import mmap
    import os

    if os.uname().machine != "x86_64":
        return
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    if function() == os.getpid():
        print("ESCAPED")


def without_the_filter():
    """The filter and the bit that keeps it cannot be taken back."""
    import ctypes

    libc = ctypes.CDLL(None)
    if libc.prctl(22, 0, 0, 0, 0) == 0 or libc.prctl(38, 0, 0, 0, 0) == 0 or libc.prctl(39, 0, 0, 0, 0) != 1:
        print("ESCAPED")


def capabilities():
    import ctypes
    import struct

    libc = ctypes.CDLL(None)
    header, held = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    if libc.capget(header, held) != 0 or any(held.raw[:24]):
        print("ESCAPED", held.raw.hex())
    if libc.capset(header, b"\xff" * 24) == 0:
        print("ESCAPED")


def own_library():
    """Machine code of its own is as confined as Python is."""
    import ctypes
    import shutil

    shutil.copy("/usr/lib/x86_64-linux-gnu/libc.so.6", "/tmp/own.so")
    own = ctypes.CDLL("/tmp/own.so")
    if own.unshare(0x10000000) == 0 or own.setuid(0) == 0:
        print("ESCAPED")
