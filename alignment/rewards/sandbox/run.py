"""Starts programs in sandboxes, watches them, and kills whatever is left."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from alignment.rewards.sandbox import backend as backends
from alignment.rewards.sandbox import confine
from alignment.rewards.sandbox.backend import BACKENDS, Backend, Fds
from alignment.rewards.sandbox.limits import Limits, Outcome, SandboxError, Status

START_SECONDS = 20
"""To build a sandbox; it takes some hundredths of a second where the machine is not overloaded."""

# What the interpreter inside runs: the text of a file that has no name.
_BOOT = "import sys; exec(open(int(sys.argv[1]), encoding='utf-8').read())"
_BY_SIGNAL = 128

_PROBE_LIMITS = Limits(
    cpu_seconds=5, wall_seconds=20.0, memory_bytes=512 * 2**20, processes=4, output_bytes=4096, tmp_bytes=2**20
)
# A sandbox that can be had but does not hold is none: each line is something that must be as it says.
_PROBE = """
import os, socket
assert os.getpid() < 5 and os.geteuid() != 0, "the process ids or the user are those outside"
assert os.listdir("/tmp") == [] and not os.path.exists("/proc/self"), "the folders are those outside"
children = []
try:
    for _ in range(8):
        children.append(os.fork())
        if children[-1] == 0:
            os.read(os.pipe()[0], 1)
except BlockingIOError:
    pass
assert 1 <= len(children) <= 4, f"{len(children)} processes could be started, where 4 are allowed"
try:
    socket.socket(socket.AF_INET)
    raise AssertionError("there are network sockets")
except PermissionError:
    print("contained", flush=True)
os._exit(0)
"""


def run_python(program: str, *, stdin: str = "", limits: Limits) -> Outcome:
    """Runs a Python program in a sandbox.

    Args:
        program: Its text; it runs as ``__main__`` with the standard library alone.
        stdin: What it finds on its standard input.
        limits: What it may use.

    Raises:
        SandboxError: Nothing on this machine isolates; the program has not been run.
    """
    return run_in(find_backend(), program, stdin=stdin, limits=limits)


def run_pair(lead: str, other: str, *, stdins: tuple[str, str], limits: Limits) -> tuple[Outcome, Outcome]:
    """Runs two programs in two sandboxes that share nothing but a pipe in either direction.

    In each, ``sys.argv[1]`` and ``[2]`` are the descriptors to read from and to write to the other one. Both are
    killed when the first has ended with exit code 0 (then the second is ``ok`` too), or both have ended, or either
    exceeds a limit.

    Raises:
        SandboxError: As in :func:`run_python`.
    """
    return run_pair_in(find_backend(), lead, other, stdins=stdins, limits=limits)


def run_in(backend: Backend, program: str, *, stdin: str = "", limits: Limits) -> Outcome:
    """As :func:`run_python`, with a given backend."""
    with _start(backend, program, stdin, limits, ()) as process:
        return _watch([process], limits)[0]


def run_pair_in(
    backend: Backend, lead: str, other: str, *, stdins: tuple[str, str], limits: Limits
) -> tuple[Outcome, Outcome]:
    """As :func:`run_pair`, with a given backend."""
    with contextlib.ExitStack() as stack:
        questions, answers = _pipe(stack), _pipe(stack)
        first = stack.enter_context(_start(backend, lead, stdins[0], limits, (answers[0], questions[1])))
        second = stack.enter_context(_start(backend, other, stdins[1], limits, (questions[0], answers[1])))
        # Then one that waits for the other sees when it has ended.
        for end in (*questions, *answers):
            end.close()
        one, two = _watch([first, second], limits)
        return one, two


def find_backend() -> Backend:
    """The first backend that is seen to hold; each is tried once in a process, and none behind the first that holds.

    Raises:
        SandboxError: There is none.
    """
    reasons: list[str] = []
    for backend in BACKENDS:
        reason = why_not(backend)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise SandboxError(
        "programs that a model wrote run in a sandbox or not at all, and none works here "
        f"({'; '.join(reasons)}). Install bubblewrap (apt install bubblewrap, dnf install bubblewrap), or allow this "
        "user namespaces (sysctl user.max_user_namespaces; in a container: --security-opt seccomp=unconfined, "
        "or --cap-add SYS_ADMIN for root)"
    )


@cache
def why_not(backend: Backend) -> str | None:
    """Runs a small program that looks for holes; ``None`` where there are none, else what is wrong."""
    if sys.platform != "linux" or platform.machine() not in confine.MACHINES:
        return f"needs Linux on {' or '.join(confine.MACHINES)}"
    try:
        outcome = run_in(backend, _PROBE, limits=_PROBE_LIMITS)
    except (OSError, SandboxError) as error:
        return str(error)
    last = (outcome.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return None if (outcome.status, outcome.stdout) == ("ok", "contained\n") else f"{outcome.status}, {last}"


@dataclass
class _Process:
    """One sandbox.

    Attributes:
        launcher: The process outside that built it and ends with it.
        init: Descriptor of process 1 inside; when that is dead everything inside is.
        ended: Descriptor of the launcher, readable when it has ended.
        output: What has been read of standard output and standard error, by descriptor.
        started: When, by the monotonic clock.
        stopped: Why it was not let go on; ``None`` where it ended by itself.
        seconds: How long it took.
    """

    launcher: subprocess.Popen[bytes]
    init: int
    ended: int
    output: dict[int, bytearray]
    started: float = field(default_factory=time.monotonic)
    stopped: Status | None = None
    seconds: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether the program has ended by itself."""
        return self.launcher.returncode is not None

    def stop(self, why: Status) -> None:
        """Decides that a program that has not ended is not to go on."""
        if not self.has_ended and self.stopped is None:
            self.stopped = why
            self.seconds = time.monotonic() - self.started

    def kill(self) -> None:
        """Kills process 1 inside, and with it everything, and waits until all of it is gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.init, signal.SIGKILL)
        self.launcher.wait()
        with selectors.DefaultSelector() as selector:
            selector.register(self.init, selectors.EVENT_READ)
            selector.select()
        # Bubblewrap may leave it to whoever inherits orphans; in a container that may be this process.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.init, os.WEXITED | os.WNOHANG)

    def attend(self, descriptor: int, limit: int) -> bool:
        """Takes note of the end, or reads what is there; whether there may be more."""
        if descriptor == self.ended:
            self.launcher.wait()
            self.seconds = time.monotonic() - self.started
            return False
        left = limit - sum(map(len, self.output.values()))
        chunk = os.read(descriptor, min(65536, left + 1))
        self.output[descriptor] += chunk[:left]
        if len(chunk) > left:
            self.stopped = "output"
        return bool(chunk) and self.stopped is None

    def outcome(self, limits: Limits) -> Outcome:
        stdout, stderr = (text.decode(errors="replace") for text in self.output.values())
        return Outcome(self.stopped or self._status(stderr, limits), stdout, stderr)

    def _status(self, stderr: str, limits: Limits) -> Status:
        code = self.launcher.returncode
        if code == 0:
            return "ok"
        out_of_time = self.seconds >= limits.cpu_seconds and code == _BY_SIGNAL + signal.SIGKILL
        if code == _BY_SIGNAL + signal.SIGXCPU or out_of_time:
            return "timeout"
        if stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
            return "memory"
        return "killed" if code > _BY_SIGNAL or code < 0 else "error"


@contextlib.contextmanager
def _start(
    backend: Backend, program: str, stdin: str, limits: Limits, pipes: Sequence[io.FileIO]
) -> Iterator[_Process]:
    """Builds a sandbox and starts a program in it; on leaving, everything in it is dead.

    Raises:
        SandboxError: It could not be built.
    """
    with contextlib.ExitStack() as stack:
        numbers = [pipe.fileno() for pipe in pipes]
        text = _nameless(stack, _inside(backend, program, limits, numbers))
        given = _nameless(stack, stdin)
        info, block = _pipe(stack), _pipe(stack)
        fds = Fds(info[1].fileno(), block[0].fileno())
        arguments = ["-I", "-S", "-B", "-X", "utf8", "-c", _BOOT, str(text)]
        launcher = stack.enter_context(
            subprocess.Popen(  # noqa: S603
                backend.command(arguments, limits.tmp_bytes, fds),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=backends.environment(),
                cwd="/",
                pass_fds=(text, *fds, *numbers),
                start_new_session=True,
            )
        )
        stack.callback(launcher.kill)
        info[1].close()
        block[0].close()
        init = _open_init(launcher, info[0].fileno())
        stack.callback(os.close, init)
        ended = os.pidfd_open(launcher.pid)
        stack.callback(os.close, ended)
        assert launcher.stdout is not None
        assert launcher.stderr is not None
        output = {stream.fileno(): bytearray() for stream in (launcher.stdout, launcher.stderr)}
        process = _Process(launcher, init, ended, output)
        stack.callback(process.kill)
        block[1].write(b"!")
        yield process


def _inside(backend: Backend, program: str, limits: Limits, pipes: Sequence[int]) -> str:
    """The text that runs inside: what confines the process, then the program."""
    user = backends.own_user()
    caps = {
        "user": user,
        "cpu_seconds": limits.cpu_seconds,
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes + (backend.own_processes if user is None else 0),
        "file_bytes": limits.tmp_bytes,
    }
    confining = Path(str(confine.__file__)).read_text(encoding="utf-8")
    return f"{confining}\nrun({program!r}, {[str(pipe) for pipe in pipes]!r}, {caps!r})\n"


def _open_init(launcher: subprocess.Popen[bytes], info: int) -> int:
    """Opens process 1 inside while it still waits, so that its number cannot have become another's.

    Raises:
        SandboxError: The launcher gave up, or took too long.
    """
    told = b""
    deadline = time.monotonic() + START_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(info, selectors.EVENT_READ)
        while b"}" not in told:
            chunk = os.read(info, 4096) if selector.select(max(0.0, deadline - time.monotonic())) else b""
            if not chunk:
                launcher.kill()
                said = launcher.communicate()[1].decode(errors="replace").strip().splitlines()
                raise SandboxError(said[-1] if said else "the sandbox did not start")
            told += chunk
    number = told.partition(b'"child-pid"')[2].strip(b": \n}").split(b",")[0]
    return os.pidfd_open(int(number))


def _watch(processes: Sequence[_Process], limits: Limits) -> list[Outcome]:
    """Reads until the programs have ended or must be, kills what is left, and says how each ended."""
    deadline = processes[0].started + limits.wall_seconds
    with selectors.DefaultSelector() as selector:
        for process in processes:
            for descriptor in (*process.output, process.ended):
                selector.register(descriptor, selectors.EVENT_READ, process)
        while not _is_over(processes):
            events = selector.select(max(0.0, deadline - time.monotonic()))
            # The end of a program comes after what it wrote.
            for key, _ in sorted(events, key=lambda event: event[0].fd == event[0].data.ended):
                if not key.data.attend(key.fd, limits.output_bytes):
                    selector.unregister(key.fd)
            if time.monotonic() >= deadline:
                for process in processes:
                    process.stop("timeout")
    for process in processes:
        process.stop("ok" if processes[0].launcher.returncode == 0 else "killed")
        process.kill()
        _drain(process, limits)
    return [process.outcome(limits) for process in processes]


def _is_over(processes: Sequence[_Process]) -> bool:
    is_stopped = any(process.stopped is not None for process in processes)
    return is_stopped or processes[0].launcher.returncode == 0 or all(process.has_ended for process in processes)


def _drain(process: _Process, limits: Limits) -> None:
    """Reads what a dead program has left in its pipes."""
    for descriptor in process.output:
        while process.stopped is None and process.attend(descriptor, limits.output_bytes):
            pass


def _pipe(stack: contextlib.ExitStack) -> tuple[io.FileIO, io.FileIO]:
    """A pipe's end to read from and its end to write to, closed with the stack at the latest."""
    read, write = os.pipe()
    return stack.enter_context(io.FileIO(read, "r")), stack.enter_context(io.FileIO(write, "w"))


def _nameless(stack: contextlib.ExitStack, text: str) -> int:
    """A file in memory without a name, at its beginning."""
    file = stack.enter_context(io.FileIO(os.memfd_create("text"), "r+"))
    file.write(text.encode(errors="surrogatepass"))
    file.seek(0)
    return file.fileno()
