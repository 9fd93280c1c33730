"""Programs that use up the machine: processes, memory, files, output, time."""

# ruff: noqa: PTH123, SIM105


def fork_bomb():
    import os

    while True:
        try:
            os.fork()
        except OSError:
            pass


def fork_chain():
    """Each process is replaced by its child, so that no number is ever the right one to kill."""
    import os

    while True:
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            pass


def fork_count():
    import os
    import time

    started = 0
    for _ in range(50):
        try:
            if os.fork() == 0:
                time.sleep(60)
        except OSError:
            break
        started += 1
    print("started", started, flush=True)
    os._exit(0)


def spawn_bomb():
    import os
    import sys

    for _ in range(1000):
        try:
            os.posix_spawn(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"], {})
        except OSError:
            pass


def thread_bomb():
    import threading
    import time

    for number in range(1000):
        try:
            threading.Thread(target=time.sleep, args=(60,)).start()
        except RuntimeError:
            print("started", number, flush=True)
            break


def zombie_flood():
    import os

    for _ in range(1000):
        try:
            if os.fork() == 0:
                os._exit(0)
        except OSError:
            pass


def memory():
    blocks = []
    while True:
        blocks.append(bytearray(2**20))


def memory_in_one_go():
    bytearray(2**34)


def memory_of_many():
    import os

    for _ in range(8):
        try:
            os.fork()
        except OSError:
            pass
    blocks = []
    while True:
        try:
            blocks.append(bytearray(2**20))
        except MemoryError:
            pass


def memory_mapped():
    import mmap

    maps = []
    while True:
        maps.append(mmap.mmap(-1, 2**24))
        maps[-1].write(b"x" * 2**24)


def memory_of_a_nameless_file():
    import os

    number = os.memfd_create("x")
    print("ESCAPED", number)


def tmp_filled():
    written = 0
    with open("/tmp/x", "wb", buffering=0) as file:
        try:
            while True:
                written += file.write(bytes(2**16))
        except OSError:
            print("wrote", written)


def tmp_filled_by_many_files():
    written = 0
    try:
        for number in range(10_000):
            with open(f"/tmp/{number}", "wb", buffering=0) as file:
                written += file.write(bytes(2**16))
    except OSError:
        print("wrote", written)


def tmp_of_empty_files():
    for number in range(10**7):
        open(f"/tmp/{number}", "w").close()


def sparse_file():
    with open("/tmp/x", "wb") as file:
        file.truncate(2**40)
    print("ESCAPED")


def stdout_flood():
    import os

    for _ in range(2**14):
        os.write(1, b"x" * 2**16)


def stderr_flood():
    import os

    for _ in range(2**14):
        os.write(2, b"x" * 2**16)


def flood_of_children():
    import os

    os.fork()
    while True:
        os.write(1, b"x" * 2**16)


def busy():
    while True:
        pass


def asleep():
    import time

    time.sleep(3600)


def deaf():
    """Ignores every signal that can be."""
    import signal

    for number in signal.valid_signals():
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while True:
        pass


def silent():
    """Closes everything, so that a reader would think it has ended."""
    import os
    import time

    os.closerange(0, 64)
    time.sleep(3600)


def babbling():
    """Writes a little all the time, so that a reader is never without something to read."""
    import time

    while True:
        print(".", end="", flush=True)
        time.sleep(0.001)


def waiting_at_the_end():
    import atexit
    import time

    atexit.register(time.sleep, 3600)


def deep_recursion():
    import sys

    sys.setrecursionlimit(10**9)

    def down(n):
        return down(n + 1)

    down(0)


def huge_number():
    return 9**9**9


def huge_text():
    return "x" * 2**40


def slow_pattern():
    import re

    re.match(r"(a+)+$", "a" * 64 + "b")


def all_descriptors():
    import os

    count = 0
    try:
        while True:
            os.dup(0)
            count += 1
    except OSError:
        print("opened", count)


def full_pipes():
    import os

    while True:
        _, write = os.pipe()
        os.set_blocking(write, False)
        try:
            while True:
                os.write(write, bytes(2**16))
        except BlockingIOError:
            pass


def core_dump():
    import ctypes

    ctypes.string_at(0)


def watches_of_files():
    import ctypes

    libc = ctypes.CDLL(None)
    while libc.inotify_init() >= 0:
        pass
