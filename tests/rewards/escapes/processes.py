"""Programs that reach for other processes, or try to live on."""

# ruff: noqa: PTH110


def kill_everything():
    import os
    import signal

    os.kill(-1, signal.SIGKILL)


def kill_the_parent():
    import os
    import signal

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        try:
            os.kill(os.getppid(), number)
        except OSError:
            print("refused")


def stop_the_first():
    import os
    import signal

    os.kill(1, signal.SIGSTOP)
    print("went on")


def kill_the_host():
    import os
    import signal

    os.kill(HOST_PID, signal.SIGKILL)
    print("ESCAPED")


def kill_the_group():
    import os
    import signal

    os.killpg(0, signal.SIGKILL)


def daemon():
    import os
    import time

    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in range(3):
                os.close(number)
            time.sleep(3600)
        os._exit(0)
    time.sleep(0.1)


def daemon_that_is_deaf():
    import os
    import signal
    import time

    if os.fork() == 0:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM, signal.SIGXCPU):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(3600)


def born_at_exit():
    import atexit
    import os
    import time

    def on():
        if os.fork() == 0:
            os.setsid()
            time.sleep(3600)
        os._exit(0)

    atexit.register(on)


def another_program_that_lives_on():
    import subprocess

    subprocess.Popen(["/usr/bin/sleep", "3600"], start_new_session=True, env={})


def trace_the_parent():
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    for pid in (1, os.getppid(), HOST_PID):
        if libc.ptrace(16, pid, 0, 0) == 0:
            print("ESCAPED")


def trace_a_child():
    import ctypes

    if ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0:
        print("ESCAPED")


def read_the_memory_of_the_first():
    import ctypes

    class Part(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    buffer = ctypes.create_string_buffer(64)
    mine = Part(ctypes.addressof(buffer), 64)
    libc = ctypes.CDLL(None, use_errno=True)
    for pid in (1, HOST_PID):
        libc.process_vm_readv(pid, ctypes.byref(mine), 1, ctypes.byref(mine), 1, 0)
        if ctypes.get_errno() != 1:
            print("ESCAPED")


def steal_a_descriptor():
    import ctypes
    import os

    libc = ctypes.CDLL(None)
    for number in range(16):
        if libc.syscall(438, os.pidfd_open(1), number, 0) >= 0:
            print("ESCAPED")


def become_root():
    import os

    for change in (os.setuid, os.setgid, os.seteuid):
        try:
            change(0)
            print("ESCAPED")
        except OSError:
            print("refused")


def a_program_with_the_bit():
    """What is setuid outside gives nothing inside."""
    import os
    import subprocess

    for name in ("su", "mount", "passwd", "sudo", "newgrp"):
        if os.path.exists(f"/usr/bin/{name}"):
            code = "import os; print(os.geteuid())"
            subprocess.run([f"/usr/bin/{name}", "-c", f"/usr/bin/python3 -c '{code}' && echo ESC''APED"], check=False)


def type_into_the_terminal():
    import fcntl
    import termios

    for number in range(3):
        try:
            fcntl.ioctl(number, termios.TIOCSTI, b"x")
            print("ESCAPED")
        except PermissionError:
            print("refused")


def priority():
    import os

    os.nice(-10)
    print("ESCAPED")


def larger_limits():
    import resource

    for name in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
        try:
            resource.setrlimit(name, (-1, -1))
            print("ESCAPED")
        except ValueError:
            print("refused")
