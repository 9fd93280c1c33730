"""What a sandboxed program may use, what became of it, and that there is no sandbox for it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from alignment.utils.errors import BrokenJudgeError, ConfigError

SMALLEST = {"memory_bytes": 64 * 2**20, "output_bytes": 1024, "tmp_bytes": 64 * 1024}
"""Below this the interpreter itself does not start, or has nowhere to write."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Caps of one sandbox.

    Attributes:
        cpu_seconds: Processor time of each process.
        wall_seconds: From the start until everything in the sandbox is killed.
        memory_bytes: Address space of each process; all together have at most ``processes`` times as much.
        processes: Processes and threads at a time, the program's own included.
        output_bytes: Standard output and standard error together; the program is killed at the first byte more.
        tmp_bytes: The private temporary folder, which is memory too, and the size of any file.
    """

    cpu_seconds: int
    wall_seconds: float
    memory_bytes: int
    processes: int
    output_bytes: int
    tmp_bytes: int

    def __post_init__(self) -> None:
        for field in fields(self):
            least = SMALLEST.get(field.name, 1 if field.name != "wall_seconds" else 0)
            value = getattr(self, field.name)
            if value < least or value == 0:
                expected = f"at least {least}" if least else "above 0"
                raise ConfigError(f"reward.limits.{field.name}", got=value, expected=expected)


class SandboxError(BrokenJudgeError):
    """There is no sandbox, or it could not be built."""


Status = Literal["ok", "error", "timeout", "memory", "output", "killed"]


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    The program has a say in its own exit code and output, so this is no proof that it did anything.

    Attributes:
        status: ``ok``: exit code 0. ``error``: any other. ``timeout``: wall or processor time. ``memory``: an
            uncaught ``MemoryError``. ``output``: it wrote too much. ``killed``: by any other signal.
        stdout: What it wrote, at most ``output_bytes``; bytes that are no UTF-8 are replaced.
        stderr: Likewise.
    """

    status: Status
    stdout: str
    stderr: str
