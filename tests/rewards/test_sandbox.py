"""The sandbox holds: each program of ``escapes/`` tries to get out, to use up the machine, or to live on."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from alignment.rewards.sandbox import backend as backends
from alignment.rewards.sandbox import confine, run
from alignment.rewards.sandbox.backend import BACKENDS, Backend
from alignment.rewards.sandbox.limits import Limits
from alignment.utils.errors import ConfigError, UserError

ROOT = Path(__file__).parents[2]
LIMITS = Limits(
    cpu_seconds=1,
    wall_seconds=1.2,
    memory_bytes=96 * 2**20,
    processes=6,
    output_bytes=20_000,
    tmp_bytes=2**20,
)
#: Of this process alone: several run these tests at a time.
CANARY = f"canary-7f3a91-{os.getpid()}"
#: More than the kernel needs to end a hundred processes, and the machine may be busy.
GRACE_SECONDS = 10.0


def programs() -> dict[str, Callable[[], None]]:
    """Every function of the files beside this one; none is ever called here."""
    found: dict[str, Callable[[], None]] = {}
    for path in sorted((Path(__file__).parent / "escapes").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"escapes_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found |= {f"{path.stem}-{name}": f for name, f in vars(module).items() if isinstance(f, types.FunctionType)}
    return found


PROGRAMS = programs()


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request) -> Backend:
    if reason := run.why_not(request.param):
        pytest.skip(f"{request.param.name} does not work here: {reason}")
    return request.param


@dataclass(frozen=True)
class Host:
    """What a program could find outside, and how to see that it did not."""

    secret: Path
    victim: subprocess.Popen[bytes]
    received: list[bytes]
    names: dict[str, object]

    def program(self, function: Callable[[], None]) -> str:
        values = "".join(f"{name} = {value!r}\n" for name, value in self.names.items())
        return f"{values}{textwrap.dedent(inspect.getsource(function))}\n{function.__name__}()\n"


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("host")
    folder.chmod(0o777)
    secret = folder / "secret.txt"
    secret.write_text(CANARY, encoding="utf-8")
    secret.chmod(0o666)
    received: list[bytes] = []
    with contextlib.ExitStack() as stack:
        kinds = [(socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET, socket.SOCK_DGRAM)]
        kinds += [(socket.AF_UNIX, socket.SOCK_STREAM)] * 2
        tcp, udp, local, abstract = (stack.enter_context(socket.socket(*kind)) for kind in kinds)
        tcp.bind(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        udp.bind(("127.0.0.1", port))
        local.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        abstract.bind(f"\0{CANARY}-socket")
        for listener in (tcp, local, abstract):
            listener.listen()
            threading.Thread(target=accept, args=(listener, received), daemon=True).start()
        threading.Thread(target=take, args=(udp, received), daemon=True).start()
        victim = stack.enter_context(subprocess.Popen(["/bin/sleep", "600"], start_new_session=True))
        stack.callback(victim.kill)
        names = {"SECRET": str(secret), "HOST_PID": victim.pid, "REPOSITORY": str(ROOT), "PORT": port}
        yield Host(
            secret, victim, received, {**names, "SOCKET": str(folder / "socket"), "ABSTRACT": f"{CANARY}-socket"}
        )


def accept(listener: socket.socket, received: list[bytes]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        received.append(b"connected")
        connection.close()


def take(receiver: socket.socket, received: list[bytes]) -> None:
    while True:
        try:
            received.append(receiver.recv(100))
        except OSError:
            return


@pytest.fixture
def namespaces(monkeypatch) -> list[str]:
    """Process-id namespaces of the sandboxes that a test starts."""
    seen: list[str] = []
    opened = run._open_init

    def watch(launcher: subprocess.Popen[bytes], info: int) -> int:
        descriptor = opened(launcher, info)
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines()
        pid = next(line.split()[1] for line in lines if line.startswith("Pid:"))
        seen.append(namespace_of(pid))
        return descriptor

    monkeypatch.setattr(run, "_open_init", watch)
    return seen


def namespace_of(pid: str) -> str:
    return str(Path(f"/proc/{pid}/ns/pid").readlink())


def members(namespace: str) -> list[str]:
    """Command lines of the processes that live in a process-id namespace; zombies do not."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if namespace_of(folder.name) == namespace and "State:\tZ" not in (folder / "status").read_text():
                found.append((folder / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return found


def test_there_are_enough_programs():
    assert len(PROGRAMS) >= 90


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_does_not_get_out(name, backend, host, namespaces, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", CANARY)
    before = sorted(host.secret.parent.iterdir())
    started = time.monotonic()
    outcome = run.run_in(backend, host.program(PROGRAMS[name]), limits=LIMITS)
    seconds = time.monotonic() - started
    assert seconds < LIMITS.wall_seconds + GRACE_SECONDS
    assert len(namespaces) == 1
    assert namespaces[0] != namespace_of("self")
    assert members(namespaces[0]) == []
    said = outcome.stdout + outcome.stderr
    assert CANARY not in outcome.stdout
    assert "ESCAPED" not in outcome.stdout
    assert len(said.encode()) <= LIMITS.output_bytes
    assert host.secret.read_text(encoding="utf-8") == CANARY
    assert sorted(host.secret.parent.iterdir()) == before
    assert host.victim.poll() is None
    assert host.received == []


EXPECTED = {
    "bombs-asleep": "timeout",
    "bombs-babbling": "timeout",
    "bombs-busy": "timeout",
    "bombs-deaf": "timeout",
    "bombs-silent": "timeout",
    "bombs-slow_pattern": "timeout",
    "bombs-waiting_at_the_end": "timeout",
    "bombs-memory": "memory",
    "bombs-memory_in_one_go": "memory",
    "bombs-huge_text": "memory",
    "bombs-stdout_flood": "output",
    "bombs-stderr_flood": "output",
    "bombs-core_dump": "killed",
    "processes-kill_the_group": "killed",
    "processes-daemon": "ok",
    "network-tcp": "error",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_outcome_says_what_ended_it(name, backend, host):
    assert run.run_in(backend, host.program(PROGRAMS[name]), limits=LIMITS).status == EXPECTED[name]


@pytest.mark.parametrize(
    "name", ["files-read_the_secret", "files-read_the_environment", "network-tcp", "files-upwards"]
)
def test_the_same_programs_get_out_where_there_is_no_sandbox(name, host, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", CANARY)
    command = [sys.executable, "-c", host.program(PROGRAMS[name])]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert CANARY in result.stdout or "ESCAPED" in result.stdout
    host.received.clear()


def test_the_view_of_the_machine_is_read_only_whoever_owns_it(backend):
    program = """
import os, sys
for path in (sys.executable, "/usr", "/"):
    try:
        os.utime(path)
    except OSError as error:
        print(error.errno)
"""
    assert run.run_in(backend, program, limits=LIMITS).stdout == f"{errno.EROFS}\n" * 3


def test_where_namespaces_can_be_made_something_isolates():
    """So that a fault of ours is no skipped test."""
    command = ["unshare", "--pid", "--net", "--mount", "--ipc", "--fork"]
    users = [] if backends.is_root() else ["--user", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*command, *users, "true"], check=False).returncode != 0:
        pytest.skip("this machine lets this user make no namespaces")
    assert run.why_not(BACKENDS[1]) is None


def test_processes_are_counted_sandbox_by_sandbox(backend, host):
    """Six at a time in each of two that run side by side, the first process among them."""
    program = host.program(PROGRAMS["bombs-fork_count"]) + "import time; time.sleep(0.5)\n"
    program = program.replace("os._exit(0)", "time.sleep(0.5); os._exit(0)")
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda _: run.run_in(backend, program, limits=LIMITS), range(2)))
    assert [outcome.stdout for outcome in outcomes] == ["started 5\n"] * 2


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("bombs-tmp_filled", 2**19, 2**20), ("bombs-tmp_filled_by_many_files", 2**19, 2**20)],
)
def test_the_temporary_folder_is_as_large_as_it_may_be(name, least, most, backend, host):
    outcome = run.run_in(backend, host.program(PROGRAMS[name]), limits=LIMITS)
    assert least <= int(outcome.stdout.split()[1]) <= most


def test_output_is_kept_up_to_the_cap_and_no_further(backend):
    program = "import sys; sys.stdout.write('x' * {}); sys.stderr.write('y' * {})"
    whole = run.run_in(backend, program.format(15_000, 5_000), limits=LIMITS)
    assert (whole.status, len(whole.stdout), len(whole.stderr)) == ("ok", 15_000, 5_000)
    cut = run.run_in(backend, program.format(15_000, 5_001), limits=LIMITS)
    assert (cut.status, len(cut.stdout) + len(cut.stderr)) == ("output", 20_000)


def test_an_ordinary_program_has_what_it_needs(backend):
    program = """
import collections, decimal, fractions, functools, heapq, itertools, json, math, os, re, sqlite3, sys, tempfile
with tempfile.TemporaryFile("w+") as file:
    file.write(sys.stdin.read())
    file.seek(0)
    print(file.read().upper(), math.sqrt(16), os.getcwd(), len(os.listdir("/")), os.getuid() != 0)
print(sys.argv, sorted(os.environ), "ß", file=sys.stderr)
"""
    outcome = run.run_in(backend, program, stdin="größer?", limits=LIMITS)
    assert outcome.status == "ok", outcome.stderr
    seen = backends.view()
    folders = {Path(path).parts[1] for path in [*seen.folders.values(), *seen.links, "/tmp", "/dev"]}
    assert outcome.stdout == f"GRÖSSER? 4.0 /tmp {len(folders)} True\n"
    assert outcome.stderr.startswith("['program'] ['HOME', 'LANG', 'LD_LIBRARY_PATH', 'PATH'")
    assert outcome.stderr.endswith(" ß\n")


def test_exit_codes_and_uncaught_errors(backend):
    for program, status in (("", "ok"), ("raise SystemExit", "ok"), ("raise SystemExit(3)", "error"), ("1/0", "error")):
        assert run.run_in(backend, program, limits=LIMITS).status == status
    assert "ZeroDivisionError" in run.run_in(backend, "1/0", limits=LIMITS).stderr
    assert "SyntaxError" in run.run_in(backend, "def", limits=LIMITS).stderr


def test_a_pair_talks_through_its_pipes_and_ends_with_its_lead(backend, namespaces):
    ends = "import sys; read, write = open(int(sys.argv[1])), open(int(sys.argv[2]), 'w')\n"
    lead = ends + "print('ask', file=write, flush=True); print(read.readline(), end='')"
    other = ends + "print(read.readline()[::-1].strip(), file=write, flush=True)\nwhile True: pass"
    first, second = run.run_pair_in(backend, lead, other, stdins=("", ""), limits=LIMITS)
    assert (first.status, first.stdout, second.status) == ("ok", "ksa\n", "ok")
    assert len(set(namespaces)) == 2
    assert [members(namespace) for namespace in namespaces] == [[], []]


def test_a_pair_whose_lead_fails_says_how_the_other_ended(backend):
    ends = "import sys; read, write = open(int(sys.argv[1])), open(int(sys.argv[2]), 'w')\n"
    lead = ends + "sys.exit(read.readline() == '')"
    first, second = run.run_pair_in(
        backend, lead, "x = []\nwhile True: x.append(bytes(2**20))", stdins=("", ""), limits=LIMITS
    )
    assert (first.status, second.status) == ("error", "memory")


def test_descriptors_are_given_back(backend):
    run.run_in(backend, "", limits=LIMITS)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for program in ("", "1/0", "print('x' * 30_000)"):
        run.run_in(backend, program, limits=LIMITS)
    run.run_pair_in(backend, "", "", stdins=("", ""), limits=LIMITS)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_is_in_a_sandbox_dies_with_the_process_that_watches_it(backend, tmp_path):
    """A training run that is killed leaves nothing behind."""
    text = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from alignment.rewards.sandbox import run
from alignment.rewards.sandbox.limits import Limits
backend = next(backend for backend in run.BACKENDS if backend.name == {backend.name!r})
opened = run._open_init
def watch(launcher, info):
    descriptor = opened(launcher, info)
    lines = open(f"/proc/self/fdinfo/{{descriptor}}").read().splitlines()
    print(next(line.split()[1] for line in lines if line.startswith("Pid:")), flush=True)
    return descriptor
run._open_init = watch
limits = Limits(cpu_seconds=50, wall_seconds=60.0, memory_bytes=2**27, processes=4, output_bytes=2**10, tmp_bytes=2**20)
run.run_in(backend, "import os, time; os.fork(); time.sleep(60)", limits=limits)
"""
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        pid = watcher.stdout.readline().strip()
        namespace = namespace_of(pid)
        wait_for(lambda: len(members(namespace)) >= 3)
        watcher.send_signal(signal.SIGKILL)
    wait_for(lambda: members(namespace) == [])


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("field", "value"),
    [("cpu_seconds", 0), ("wall_seconds", 0.0), ("memory_bytes", 2**20), ("output_bytes", 0), ("tmp_bytes", 1)],
)
def test_a_limit_that_leaves_nothing_is_named(field, value):
    with pytest.raises(ConfigError, match=rf"reward\.limits\.{field}: got {value}"):
        replace(LIMITS, **{field: value})


# Where there is no sandbox ---------------------------------------------------------------------------------------


@pytest.fixture
def fresh():
    """Forgets what has been found out about this machine, before and after."""
    caches = (run.why_not, backends.view)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_without_a_backend_nothing_runs(fresh, monkeypatch, tmp_path):
    def broken(*_: object) -> list[str]:
        return [sys.executable, "-c", "import sys; sys.exit('no permission to make namespaces')"]

    monkeypatch.setattr(run, "BACKENDS", tuple(replace(backend, command=broken) for backend in BACKENDS))
    with pytest.raises(UserError, match="Install bubblewrap") as error:
        run.run_python(f"open({str(tmp_path / 'x')!r}, 'w')", limits=LIMITS)
    assert "bubblewrap: no permission to make namespaces; namespaces: no permission" in str(error.value)
    with pytest.raises(UserError, match="in a sandbox or not at all"):
        run.run_pair("", "", stdins=("", ""), limits=LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_the_programs_says_so(fresh, monkeypatch):
    monkeypatch.setattr(run, "BACKENDS", (replace(BACKENDS[0], command=lambda *_: ["/nowhere/bwrap"]),))
    with pytest.raises(UserError, match=r"bubblewrap: .*No such file or directory: '/nowhere/bwrap'"):
        run.find_backend()


@pytest.mark.parametrize("machine", ["riscv64", "AMD64"])
def test_an_unknown_machine_is_refused(machine, fresh, monkeypatch):
    monkeypatch.setattr(run.platform, "machine", lambda: machine)
    with pytest.raises(UserError, match="needs Linux on x86_64 or aarch64"):
        run.find_backend()


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("resource.RLIMIT_NPROC: processes,", "8 processes could be started"),
        ("    os.setresuid(user, user, user)\n", "the user are those outside"),
        ("prctl(_PR_SET_SECCOMP, 2", "there are network sockets"),
    ],
)
def test_a_sandbox_with_a_hole_is_none(removed, message, backend, fresh, monkeypatch, tmp_path):
    if "setresuid" in removed and not backends.is_root():
        pytest.skip("a user namespace has no such step")
    text = Path(str(confine.__file__)).read_text(encoding="utf-8")
    assert removed in text
    holed = tmp_path / "confine.py"
    holed.write_text(text.replace(removed, "prctl(3, 0" if "SECCOMP" in removed else ""), encoding="utf-8")
    monkeypatch.setattr(confine, "__file__", str(holed))
    reason = run.why_not(backend)
    assert reason is not None
    assert message in reason


def test_backends_are_tried_once_and_only_up_to_the_one_that_holds(fresh, monkeypatch):
    tried: list[str] = []
    working = [backend for backend in BACKENDS if run.why_not(backend) is None]
    if not working:
        pytest.skip("nothing isolates here")
    run.why_not.cache_clear()
    whole = run.run_in

    def count(backend: Backend, *arguments: object, **named: object):
        tried.append(backend.name)
        return whole(backend, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "run_in", count)
    assert {run.find_backend().name for _ in range(3)} == {working[0].name}
    assert tried == [backend.name for backend in BACKENDS[: BACKENDS.index(working[0]) + 1]]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user, which takes root")
@pytest.mark.parametrize("name", [backend.name for backend in BACKENDS])
def test_an_ordinary_user_gets_a_user_namespace(name):
    """Root makes each sandbox a user of its own; anybody else is nobody in a user namespace."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if python is None:
        pytest.skip("no interpreter that an ordinary user can read")
    program = """
import os, ctypes
print(os.getuid(), os.getgid(), os.listdir("/tmp"), ctypes.CDLL(None).unshare(0x10000000))
"""
    text = f"""
from alignment.rewards.sandbox import run
from alignment.rewards.sandbox.limits import Limits
backend = next(backend for backend in run.BACKENDS if backend.name == {name!r})
print(run.why_not(backend))
limits = Limits(cpu_seconds=5, wall_seconds=20.0, memory_bytes=2**27, processes=4, output_bytes=2**12, tmp_bytes=2**20)
print(run.run_in(backend, {program!r}, limits=limits).stdout, end="")
print(run.run_in(backend, {inspect.getsource(PROGRAMS["bombs-fork_count"])!r} + "fork_count()", limits=limits).stdout)
"""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        for place in ("rewards/sandbox", "utils"):
            shutil.copytree(ROOT / "alignment" / place, Path(folder, "alignment", place))
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755)
        command = [python, "-B", "-c", text]
        result = subprocess.run(
            command, cwd=folder, user=65534, group=65534, extra_groups=[], capture_output=True, text=True, check=False
        )
    if "Permission denied" in result.stdout or "not permitted" in result.stdout.partition("\n")[0]:
        pytest.skip(f"no user namespaces for ordinary users here: {result.stdout}")
    assert result.stdout.splitlines() == ["None", "65534 65534 [] -1", "started 3", ""], result.stderr
