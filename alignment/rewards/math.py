"""A reward for the right mathematical answer, compared as mathematics."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.rewards.reading import answer_text, record_error
from alignment.types import Rewards, Rollout
from alignment.utils.errors import BrokenJudgeError, ConfigError, UserError

_WORKER = Path(__file__).with_name("math_worker.py")
#: What a Python process needs to start and to find its packages; nothing else is handed on.
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG")


class MathReward:
    r"""1 where the completion's answer equals the record's in mathematics, 0 where it does not or where there is none.

    Both are read and compared by the package math-verify: LaTeX and plain expressions, sets, intervals, matrices,
    equations. A record's answer without ``$`` or ``\boxed`` is taken as LaTeX as a whole, so that ``\frac{1}{4}`` and
    a whole solution with ``\boxed{}`` both do. What cannot be read as mathematics is compared as text.

    Symbolic mathematics can take for ever (``9^{9^{9^9}}``), also inside C code that no exception can leave. It
    therefore runs in a process of its own, which is killed after ``timeout_seconds`` and started anew: from any
    thread, with any platform's clock, and without a hand on this process's signals.

    Components: ``found``, 1 where the completion has an answer at all; ``timed_out``, 1 where the time was up (or the
    memory), which scores 0.

    Args:
        field: The field of the record's answer that holds it.
        boxed_only: The answer is what stands in the completion's last ``\boxed{}``. Whether a completion without one
            has no answer; else its last expression is it.
        timeout_seconds: The most that one completion may take.

    Raises:
        UserError: The package ``math-verify`` is not installed.
    """

    def __init__(self, *, field: str, boxed_only: bool, timeout_seconds: float) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise UserError(
                "reward=math needs the package math-verify, which is not installed: "
                "pip install 'alignment[math]' (or pip install math-verify)"
            )
        if not 0 < timeout_seconds < float("inf"):
            raise ConfigError("reward.timeout_seconds", got=timeout_seconds, expected="a number above 0")
        self.field = field
        self._worker = _Worker(boxed_only=boxed_only, timeout_seconds=timeout_seconds)

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Compares each completion with its record's answer.

        Raises:
            BlamedError: A record has no answer, or one in which nothing can be read.
        """
        answers = [answer_text(rollout, self.field, reward="math") for rollout in rollouts]
        replies = [
            self._worker.ask(answer, rollout.completion) for answer, rollout in zip(answers, rollouts, strict=True)
        ]
        for reply, answer, rollout in zip(replies, answers, rollouts, strict=True):
            if reply is not None and not reply["readable"]:
                message = f"nothing can be read in its record's answer, {self.field}={answer!r}"
                raise record_error(rollout, reward="math", message=f"{message}. Put it right, or leave the record out")
        return Rewards(
            total=tuple(float(reply is not None and reply["right"]) for reply in replies),
            components={
                "found": tuple(float(reply is not None and reply["found"]) for reply in replies),
                "timed_out": tuple(float(reply is None) for reply in replies),
            },
        )


class _Worker:
    """A process that compares answers, one at a time, and is replaced when it dies."""

    def __init__(self, *, boxed_only: bool, timeout_seconds: float) -> None:
        self._options = json.dumps({"boxed_only": boxed_only, "timeout_seconds": timeout_seconds})
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, answer: str, completion: str) -> dict[str, Any] | None:
        """Returns what the process says, or ``None`` where it ended over the question."""
        question = json.dumps({"answer": answer, "completion": completion})
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(question + "\n")
            process.stdin.flush()
            reply = process.stdout.readline()
            if reply:
                return json.loads(reply)
            process.communicate()
            self._process = None
            return None

    def _start(self) -> subprocess.Popen[str]:
        """Starts a process and waits until it can take questions."""
        process = subprocess.Popen(  # noqa: S603
            # -P: this folder's own names must not hide the standard library's.
            [sys.executable, "-P", str(_WORKER), self._options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise BrokenJudgeError(
                f"reward=math: its process ended with {process.wait()}; try {sys.executable} -m math_verify"
            )
        self._process = process
        return process
