"""A reward for programs that pass their tests. Nothing that a model wrote runs outside a sandbox."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignment.rewards import code_calls
from alignment.rewards.errors import BlamedError
from alignment.rewards.reading import compiled, field_names, record_error
from alignment.rewards.sandbox.limits import Limits, Outcome, SandboxError
from alignment.rewards.sandbox.run import find_backend, run_pair, run_python
from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError

COMPONENTS = ("compiled", "passed_share", "timed_out", "killed")


class CodeReward:
    """How many of its prompt's tests a Python program passes.

    A record brings its tests in one of two forms: a list of assertions, as MBPP does (Austin et al. 2021, arXiv
    2108.07732), or ``{"inputs": [...], "outputs": [...]}``, texts for standard input and what the program should then
    print, of which white space at the ends of lines and of the whole does not count.

    Components: ``compiled``, 1 where the text is Python; ``passed_share``, the share of tests passed; ``timed_out``,
    1 where time ran out; ``killed``, 1 where memory or output did, or a signal ended the program.

    Args:
        field: The field of the record's answer that holds the tests.
        setup_field: The field that holds code which runs before assertions, or ``None``; a record may lack it.
        extract: A regular expression with one group, which holds the program; the last match counts. A completion
            in which it never matches is the program as a whole.
        score: ``fraction``: the total is ``passed_share``. ``all``: 1 where every test is passed, else 0.
        limits: What one sandbox may use. Assertions take two, the program's and their own; the second form
            takes one an input.
        workers: Completions that are judged at a time.

    Raises:
        SandboxError: Nothing on this machine isolates.
    """

    def __init__(
        self,
        *,
        field: str,
        setup_field: str | None,
        extract: str,
        score: Literal["fraction", "all"],
        limits: Limits,
        workers: int,
    ) -> None:
        self.extract = compiled(extract, key="reward.extract", group="the program")
        if workers < 1:
            raise ConfigError("reward.workers", got=workers, expected="at least 1")
        self.field = field
        self.setup_field = setup_field
        self.only_all = score == "all"
        self.limits = limits
        self.workers = workers
        find_backend()

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Runs each completion's program against the tests of its prompt.

        Raises:
            BlamedError: A prompt's record has no tests, or tests that cannot be run.
            SandboxError: A sandbox could not be built.
        """
        tests = [self._tests(rollout) for rollout in rollouts]
        programs = [self.program(rollout.completion) for rollout in rollouts]
        with ThreadPoolExecutor(self.workers) as pool:
            verdicts = list(pool.map(lambda test, program: test.judge(program, self.limits), tests, programs))
        for rollout, verdict in zip(rollouts, verdicts, strict=True):
            if verdict.unsendable is not None:
                raise self._bad(rollout, f"{verdict.unsendable!r} hands the program what cannot be sent to it")
        columns = {name: tuple(float(getattr(verdict, name)) for verdict in verdicts) for name in COMPONENTS}
        shares = columns["passed_share"]
        total = tuple(float(share == 1.0) for share in shares) if self.only_all else shares
        return Rewards(total=total, components=columns)

    def program(self, completion: str) -> str:
        """The program in a completion."""
        found = self.extract.findall(completion)
        return found[-1] if found else completion

    def _tests(self, rollout: Rollout) -> _Assertions | _Inputs:
        value = rollout.answer.get(self.field)
        if value is None:
            raise self._bad(rollout, f"it has {field_names(rollout)}")
        if isinstance(value, Mapping):
            inputs, outputs = _texts(value.get("inputs")), _texts(value.get("outputs"))
            if not inputs or not outputs or len(inputs) != len(outputs):
                raise self._bad(rollout, "inputs and outputs are not two lists of as many texts")
            return _Inputs(tuple(zip(inputs, outputs, strict=True)))
        tests = _texts(value)
        if not tests:
            raise self._bad(rollout, f"{value!r} is no list of assertions, and no inputs and outputs")
        setup = rollout.answer.get(self.setup_field) if self.setup_field else None
        for text in (setup or "", *tests):
            self._check_python(rollout, text)
        return _Assertions(setup or "", tests)

    def _check_python(self, rollout: Rollout, text: str) -> None:
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise self._bad(rollout, f"{text!r} is not Python: {error}") from error

    def _bad(self, rollout: Rollout, why: str) -> BlamedError:
        return record_error(
            rollout,
            reward="code",
            message=f"its record has no usable tests under '{self.field}' ({why}). Use data whose prompts bring tests, "
            "name their field in reward.field, or take another reward",
        )


@dataclass(frozen=True)
class _Verdict:
    """A program's result; ``unsendable`` is a test that no program could have been given."""

    compiled: bool
    passed_share: float
    timed_out: bool
    killed: bool
    unsendable: str | None = None


@dataclass(frozen=True)
class _Assertions:
    """Tests that call what the program defines."""

    setup: str
    tests: tuple[str, ...]

    def judge(self, program: str, limits: Limits) -> _Verdict:
        """Runs the program in one sandbox and the tests in another."""
        text = Path(str(code_calls.__file__)).read_text(encoding="utf-8")
        ends = "int(sys.argv[1]), int(sys.argv[2])"
        given = json.dumps({"setup": self.setup, "tests": self.tests})
        lead, other = run_pair(
            f"{text}\ndrive({ends})\n", f"{text}\nserve({ends})\n", stdins=(given, program), limits=limits
        )
        said = [json.loads(line) for line in lead.stdout.splitlines(keepends=True) if line.endswith("\n")]
        if not said and lead.status == "error":
            raise SandboxError(f"reward=code: the tests did not start: {lead.stderr.strip()[-500:]}")
        errors = [line["error"] for line in said if "test" in line]
        unsendable = [self.tests[number] for number, error in enumerate(errors) if error == "UnsendableError"]
        return _Verdict(
            compiled=any(line.get("compiled", False) for line in said),
            passed_share=errors.count(None) / len(self.tests),
            timed_out=_any_status((lead, other), "timeout"),
            killed=_any_status((lead, other), "memory", "output", "killed") or "MemoryError" in errors,
            unsendable=next(iter(unsendable), None),
        )


@dataclass(frozen=True)
class _Inputs:
    """Tests by standard input and output: (input, expected output)."""

    pairs: tuple[tuple[str, str], ...]

    def judge(self, program: str, limits: Limits) -> _Verdict:
        """Runs the program once for each input; what it should print stays outside."""
        outcomes = [run_python(program, stdin=given, limits=limits) for given, _ in self.pairs]
        passed = [
            outcome.status == "ok" and _plain(outcome.stdout) == _plain(expected)
            for outcome, (_, expected) in zip(outcomes, self.pairs, strict=True)
        ]
        return _Verdict(
            compiled=not any(_is_syntax_error(outcome) for outcome in outcomes),
            passed_share=sum(passed) / len(passed),
            timed_out=_any_status(outcomes, "timeout"),
            killed=_any_status(outcomes, "memory", "output", "killed"),
        )


def _any_status(outcomes: Sequence[Outcome], *statuses: str) -> bool:
    return any(outcome.status in statuses for outcome in outcomes)


def _is_syntax_error(outcome: Outcome) -> bool:
    last = outcome.stderr.rstrip().rpartition("\n")[2]
    return outcome.status == "error" and last.startswith(("SyntaxError", "IndentationError", "TabError"))


def _plain(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def _texts(value: Any) -> tuple[str, ...]:
    """A list of texts as a tuple; empty for anything else."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(value) if is_list and all(isinstance(text, str) for text in value) else ()
