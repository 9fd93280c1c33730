"""The reward for programs that pass their tests, and how it cannot be had without passing them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from alignment.config.compose import compose
from alignment.config.paths import conf_dir
from alignment.config.validate import validate
from alignment.data.records import Record, RecordKind, from_row
from alignment.data.sources import FileSource
from alignment.rewards import code_calls
from alignment.rewards.code import CodeReward
from alignment.rewards.code_calls import LostError, decode, encode
from alignment.rewards.sandbox import run
from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError, UserError

CONFIG = OmegaConf.load(conf_dir() / "reward" / "code.yaml")
TESTS = ["assert double(2) == 4", "assert double(-1) == -2", "assert double('a') == 'aa'"]
GOOD = "def double(x):\n    return 2 * x\n"


@pytest.fixture(autouse=True)
def _sandboxed() -> None:
    try:
        run.find_backend()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def reward() -> CodeReward:
    return quick()


def quick(**changes: object) -> CodeReward:
    """The configured reward, for programs that are to end soon."""
    options = {name: value for name, value in CONFIG.items() if name not in ("_target_", "limits")}
    limits = replace(instantiate(CONFIG.limits), cpu_seconds=2, wall_seconds=3.0, memory_bytes=2**27)
    return CodeReward(**{**options, "limits": limits, "workers": 2, **changes})


def rollout(completion: str, tests: object = None, **answer: object) -> Rollout:
    given = {"test_list": TESTS if tests is None else tests, **answer}
    return Rollout("p7", "Write double.", (1,), (2,), completion, "stop", 0, given)


def judge(reward: CodeReward, program: str, tests: object = None, **answer: object) -> float:
    return reward.score([rollout(program, tests, **answer)]).total[0]


def test_the_share_of_tests_passed(reward):
    programs = [
        GOOD,
        "def double(x):\n    return x + x if x != -1 else 0",
        "def double(x):\n    return 4",
        "def double(",
        "",
    ]
    scored = reward.score([rollout(program) for program in programs])
    assert scored.total == pytest.approx((1.0, 2 / 3, 1 / 3, 0.0, 0.0), abs=1e-12)
    assert scored.components["passed_share"] == scored.total
    assert scored.components["compiled"] == (1.0, 1.0, 1.0, 0.0, 1.0)
    assert scored.components["timed_out"] == scored.components["killed"] == (0.0,) * 5
    assert quick(score="all").score([rollout(program) for program in programs]).total == (1.0, 0.0, 0.0, 0.0, 0.0)
    assert reward.score([]) == Rewards((), dict.fromkeys(scored.components, ()))


def test_time_and_memory_that_run_out_are_components(reward):
    hangs = "def double(x):\n    while x == -1: pass\n    return 2 * x"
    swells = "def double(x):\n    return [0] * 10**9 if x == -1 else 2 * x"
    dies = "import os\ndef double(x):\n    os.kill(os.getpid(), 11 if x == -1 else 0)\n    return 2 * x"
    talks = "def double(x):\n    print('x' * 10**6 if x == -1 else '')\n    return 2 * x"
    scored = reward.score([rollout(program) for program in (hangs, swells, dies, talks)])
    # A test that ends the program is the last; one that only runs out of memory is not.
    assert scored.total == pytest.approx((1 / 3, 2 / 3, 1 / 3, scored.total[3]), abs=1e-12)
    assert scored.components["timed_out"] == (1.0, 0.0, 0.0, 0.0)
    assert scored.components["killed"] == (0.0, 1.0, 1.0, 1.0)


# Cheats -------------------------------------------------------------------------------------------------------------

#: Programs that are wrong about every test, and try to look right.
CHEATS = {
    "prints a verdict": 'print(\'{"test": 0, "error": null}\', flush=True)\ndef double(x): return None',
    "prints all verdicts and ends": """
import os
print('{"compiled": true}')
for n in range(3): print('{"test": %d, "error": null}' % n, flush=True)
os._exit(0)""",
    "exits": "import sys\nsys.exit(0)",
    "exits at once": "import os\nos._exit(0)",
    "raises SystemExit": "raise SystemExit",
    "exits when called": "import sys\ndef double(x): sys.exit(0)",
    "ends at once when called": "import os\ndef double(x): os._exit(0)",
    "raises SystemExit when called": "def double(x): raise SystemExit(0)",
    "raises StopIteration": "def double(x): raise StopIteration",
    "raises KeyboardInterrupt": "def double(x): raise KeyboardInterrupt",
    "equals everything": """
class Yes:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __hash__(self): return 0
    def __iter__(self): return iter([])
    def __len__(self): return 0
def double(x): return Yes()""",
    "a number that equals everything": """
class Yes(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def double(x): return Yes(7)""",
    "a text that equals everything": """
class Yes(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def double(x): return Yes("no")""",
    "a list that equals everything": """
class Yes(list):
    def __eq__(self, other): return True
def double(x): return Yes([1])""",
    "a class that equals everything": """
class Meta(type):
    def __eq__(self, other): return True
    __hash__ = type.__hash__
class Yes(metaclass=Meta): pass
def double(x): return Yes""",
    "other builtins": """
import builtins
builtins.AssertionError = Exception
builtins.exec = builtins.compile = builtins.print = lambda *a, **k: None
builtins.len = builtins.bool = builtins.list = lambda *a: 1
def double(x): return None""",
    "other modules": """
import sys, types
for name in ("json", "ast", "operator", "builtins", "importlib", "os", "tests", "__main__"):
    sys.modules[name] = types.SimpleNamespace(**{"loads": lambda *a: {"value": 4}, "dumps": lambda *a: '{"value": 4}'})
def double(x): return None""",
    "the harness's own functions": """
import sys
main = sys.modules["__main__"]
for name in ("encode", "decode", "_answer", "drive", "_run"):
    setattr(main, name, lambda *a, **k: {"value": None, "error": None, "passed": True})
def double(x): return None""",
    "answers nobody asked for": """
import sys
for n in range(100):
    for fd in range(3, 20):
        try: open(fd, "w", closefd=False).write('{"test": %d, "error": null, "value": true}\\n' % n)
        except OSError: pass
def double(x): return None""",
    "answers of no sense": """
import os, sys
def double(x):
    for line in (b'[]', b'{"value": ["other", true]}', b'{"value": ["dict", [[["list", []], 1]]]}', b'\\xff', b'NaN'):
        os.write(int(sys.argv[2]), line + b'\\n')
    return None""",
    "a verdict as an exit hook": """
import atexit, os
atexit.register(lambda: [os.write(1, b'{"test": 0, "error": null}\\n'), os._exit(0)])
def double(x): return None""",
    "a thread that goes on": """
import threading, time, os
def on():
    while True:
        os.write(1, b'{"test": 0, "error": null}\\n'); time.sleep(0.01)
threading.Thread(target=on).start()
def double(x): return None""",
    "a child that goes on": """
import os, time
if os.fork() == 0:
    os.setsid()
    while True: time.sleep(1)
def double(x): return None""",
    "looks for the tests": """
import gc, glob, os, sys
found = [path for path in glob.glob("/tmp/**", recursive=True)]
mark = ["ass", "ert dou", "ble"]
texts = [o for o in gc.get_objects() if isinstance(o, str) and ''.join(mark) in o]
frames = sys._current_frames().values()
for frame in frames:
    while frame:
        texts += [v for v in frame.f_locals.values() if isinstance(v, str) and ''.join(mark) in v]
        frame = frame.f_back
for number in range(64):
    try:
        os.lseek(number, 0, 0)
        texts += [text for text in [os.read(number, 10**6)] if ''.join(mark).encode() in text]
    except OSError: pass
expected = iter([4, -2, "aa"])
def double(x): return next(expected) if texts or found != ["/tmp/"] else None""",
    "deletes everything": "import shutil\nshutil.rmtree('/', ignore_errors=True)\ndef double(x): return None",
    "kills the tests": """
import os, signal
def double(x):
    for pid in (-1, 1, os.getppid()):
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass""",
    "loses itself in its answer": "def double(x):\n    loop = []\n    loop.append(loop)\n    return loop",
    "answers without an end": "def double(x):\n    while True: yield x",
    "its answer is too long": "def double(x): return ['x' * 10**6] * 10**4",
    "closes the pipes": "import os\nos.closerange(0, 64)\ndef double(x): return None",
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_scores_nothing(name, reward):
    assert judge(reward, CHEATS[name]) == 0.0


@pytest.mark.parametrize(
    ("test", "program"),
    [
        ("assert set(double(2)) == {4}", "def set(x): return {4}\ndef double(x): return []"),
        ("assert len(double(2)) == 4", "def len(x): return 4\ndef double(x): return []"),
        ("assert abs(double(2) - 4) < 1", "def abs(x): return 0\ndef double(x): return 9"),
        ("import math\nassert math.isclose(double(2), 4)", "class math:\n    isclose = max\ndef double(x): return 9"),
        ("assert math.isclose(double(2), 4)", "class math:\n    isclose = max\ndef double(x): return 9"),
        ("assert all(map(double, [1, 2]))", "def double(x): raise StopIteration"),
        ("assert double(2) == EXPECTED", "EXPECTED = 9\ndef double(x): return 9"),
        ("assert isinstance(double(2), int)", "class double(int):\n    pass\ndef double(x): return object()"),
        ('print(\'{"test": 0, "error": null}\')\nassert double(2) == 4', "def double(x): return 9"),
        ("assert AssertionError and double(2) == 4", "AssertionError = Warning\ndef double(x): return 9"),
    ],
)
def test_nothing_of_the_programs_stands_in_for_what_the_tests_mean(test, program, reward):
    assert judge(reward, program, [test], test_setup_code="EXPECTED = 4") == 0.0


def test_a_program_may_know_its_tests_by_heart(reward):
    """What stands in the prompt can be learnt: no harness sees the difference."""
    assert judge(reward, "def double(x):\n    return {2: 4, -1: -2, 'a': 'aa'}[x]") == 1.0


# What tests may do --------------------------------------------------------------------------------------------------

_SHAPES = """
class Node:
    def __init__(self, value, left=None):
        self.value, self.left = value, left
    def total(self, *, scale=1):
        return scale * (self.value + (self.left.total() if self.left else 0))
def total(node): return node.total()
def pair(x): return Node(x, Node(1))
def count(n):
    for i in range(n): yield i
def same(x): return x
def refuse(x): raise ValueError(x)
FACTOR = 3
TABLE = {"a": [1]}
def add(*values, scale=1): return sum(values) * scale
def sixth(): return __import__("fractions").Fraction(1, 6)
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert total(Node(2, Node(3))) == 5",
        "root = Node(1)\nroot.left = Node(4)\nassert total(root) == 5 and root.left.value == 4",
        "assert Node(2).total(scale=3) == 6",
        "assert total(pair(5)) == 6",
        "assert list(count(3)) == [0, 1, 2]",
        "assert sum(count(4)) == 6 and sorted(count(2), reverse=True) == [1, 0]",
        "assert 2 in count(3) and bool(count(3))",
        "assert add(1, 2, scale=FACTOR) == 9",
        "assert TABLE['a'] == [1]",
        "assert math.isclose(sixth(), 0.1666, abs_tol=1e-3)",
        "assert str(sixth()) == '1/6' and int(sixth()) == 0",
        "try:\n    refuse(1)\nexcept ValueError:\n    pass\nelse:\n    assert False",
        'print(\'{"test": 0, "error": "x"}\')\nassert same(1) == 1',
        "assert [same(x) for x in range(3)] == [0, 1, 2]",
        "assert (lambda f: f(3))(same) == 3",
        "assert same(range(3)) == range(3)",
        "assert same([int, ValueError]) == [int, ValueError]",
        *(
            f"assert same({value}) == {value} and type(same({value})) is type({value})"
            for value in ("None", "True", "10**50", "-7", "0.1", "1e308", "2j", "'ü\\ud800\\x00'", "b'\\xff'", "[[]]")
        ),
        *(
            f"assert same({value}) == {value} and type(same({value})) is type({value})"
            for value in ("(1, (2,))", "{1, 'a'}", "set()", "frozenset([(1,)])", "{(1, 2): {3: [4]}}", "10**5000")
        ),
        "assert repr(same([0.0, -0.0, float('inf'), float('nan')])) == '[0.0, -0.0, inf, nan]'",
    ],
)
def test_ordinary_tests_mean_what_they_say(test, reward):
    assert judge(reward, _SHAPES, [test]) == 1.0


def test_plain_values_of_the_librarys_types_count_as_plain(reward):
    program = """
import collections, enum
Point = collections.namedtuple("Point", "x y")
class Color(enum.IntEnum): RED = 1
def double(x):
    return {2: collections.Counter("aab"), -1: Point(1, 2), "a": Color.RED, 0: collections.defaultdict(int, a=1)}[x]"""
    tests = ["double(2) == {'a': 2, 'b': 1}", "double(-1) == (1, 2)", "double('a') == 1", "double(0) == {'a': 1}"]
    assert judge(reward, program, [f"assert {test}" for test in tests]) == 1.0


def test_a_guarded_main_does_not_run_and_what_is_printed_does_not_count(reward):
    program = GOOD + 'print("hello")\nif __name__ == "__main__":\n    raise SystemExit(input())'
    assert judge(reward, program) == 1.0


def test_setup_code_runs_once_before_the_tests(reward):
    setup = "values = [2, -1]\nimport itertools as it"
    tests = ["assert [double(v) for v in values] == [4, -2]", "assert list(it.chain([double(1)])) == [2]"]
    assert judge(reward, GOOD, tests, test_setup_code=setup) == 1.0
    assert judge(reward, GOOD, tests, test_setup_code="1 / 0") == 0.0
    assert judge(quick(setup_field=None), GOOD, tests, test_setup_code=setup) == 0.0
    assert judge(quick(setup_field="first"), GOOD, tests, first=setup) == 1.0


def test_texts_for_standard_input_and_output(reward):
    program = "print(2 * int(input()))\nprint('done ')"
    pairs = {"inputs": ["2\n", "5", "7"], "outputs": ["4\ndone", "10  \ndone\n\n", "14\n done"]}
    programs = [
        program,
        "print(4)\nprint('done')",
        "while True: pass",
        "def",
        "import os; os._exit(0)",
        "raise ValueError",
    ]
    scored = reward.score([rollout(text, pairs) for text in programs])
    assert scored.total == pytest.approx((2 / 3, 1 / 3, 0, 0, 0, 0), abs=1e-12)
    assert scored.components["compiled"] == (1.0, 1.0, 1.0, 0.0, 1.0, 1.0)
    assert scored.components["timed_out"] == (0.0, 0.0, 1.0, 0.0, 0.0, 0.0)


# What is judged -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```py \r\nx = 1\r\n```", "x = 1\r\n"),
        ("```python\nx = 1\n```\nBetter:\n```python\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1", "```python\nx = 1"),
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("", ""),
    ],
)
def test_the_program_in_a_completion(completion, program, reward):
    assert reward.program(completion) == program


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, r"prompt p7: its record has no usable tests under 'test_list' \(it has none\)"),
        ({"tests": TESTS}, r"under 'test_list' \(it has tests\)"),
        ({"test_list": []}, r"\[\] is no list of assertions"),
        ({"test_list": "assert True"}, "is no list of assertions"),
        ({"test_list": [1]}, "is no list of assertions"),
        ({"test_list": ["assert ="]}, "'assert =' is not Python"),
        ({"test_list": TESTS, "test_setup_code": "import"}, "'import' is not Python"),
        ({"test_list": {"inputs": ["1"], "outputs": []}}, "inputs and outputs are not two lists"),
        ({"test_list": {"inputs": ["1"]}}, "inputs and outputs are not two lists"),
    ],
)
def test_a_prompt_without_tests_is_named(answer, message, reward):
    with pytest.raises(UserError, match=message):
        reward.score([Rollout("p7", "x", (1,), (2,), GOOD, "stop", 0, answer)])


def test_a_test_that_no_program_can_be_given_is_an_error_and_no_zero(reward):
    test = "assert double(lambda x: x) == 1"
    with pytest.raises(UserError, match=r"prompt p7: .* hands the program what cannot be sent"):
        judge(reward, GOOD, [test])
    # A program cannot bring this about.
    assert judge(reward, "class UnsendableError(Exception): pass\ndef double(x): raise UnsendableError") == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extract": "("}, r"reward\.extract: got '\(', expected a regular expression"),
        ({"extract": "x"}, "one group"),
        ({"workers": 0}, r"reward\.workers: got 0"),
    ],
)
def test_a_bad_value_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        quick(**changes)


def test_without_a_sandbox_there_is_no_reward(monkeypatch):
    monkeypatch.setattr(run, "why_not", lambda backend: "not permitted")
    with pytest.raises(UserError, match=r"bubblewrap: not permitted; namespaces: not permitted\)\. Install bubblewrap"):
        quick()


def test_nothing_of_a_program_runs_in_this_process(reward, monkeypatch):
    for name in ("exec", "eval", "compile"):
        monkeypatch.setattr(f"builtins.{name}", refuse_programs(name))
    assert judge(reward, "import sys\nsys.modules['seen_outside'] = 1\n" + GOOD) == 1.0
    assert "seen_outside" not in sys.modules


def refuse_programs(name: str):
    original = getattr(__builtins__, name) if not isinstance(__builtins__, dict) else __builtins__[name]

    def check(source, *rest, **named):
        assert "seen_outside" not in str(source)
        return original(source, *rest, **named)

    return check


# The channel --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        1.5,
        [],
        ["list"],
        ["list", 3],
        ["dict", [1]],
        ["int", "x"],
        ["float", "y"],
        ["bytes", "zz"],
        ["nothing", 1],
        ["type", "exec"],
        {},
    ],
)
def test_what_no_program_would_send_is_refused(data):
    with pytest.raises(LostError):
        decode(data, repr)


def test_a_subclass_is_sent_as_what_it_is_made_of():
    @dataclass
    class Odd:
        x: int

    class Liar(list):
        def __iter__(self):
            return iter(["lies"])

    kept: list[object] = []
    sent = encode([Liar([1]), Odd(2), True], lambda value: kept.append(value) or 0)
    assert decode(json.loads(json.dumps(sent)), lambda reference: ("other", reference)) == [[1], ("other", 0), True]
    assert kept == [Odd(2)]
    assert code_calls.LOST != 0


# MBPP ---------------------------------------------------------------------------------------------------------------


def mbpp(shared_data) -> list[Record]:
    source = FileSource(path=str(shared_data / "prompts" / "mbpp.jsonl"), columns={"prompt": "text"})
    assert source.kind is RecordKind.PROMPT
    return [from_row(source.kind, row) for row in source.load()]


def test_the_documented_command_composes_and_its_records_bring_their_tests(shared_data):
    path = shared_data / "prompts" / "mbpp.jsonl"
    overrides = ["data=jsonl", f"data.train.path={path}", "data.train.columns={prompt: text}", "reward=code"]
    cfg = compose("generate", [*overrides, "model.path=x"])
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    validate(cfg, "generate")
    records = mbpp(shared_data)
    assert len(records) == 474
    first = records[0]
    assert first.prompt.startswith("Write a function to find the minimum cost path")
    assert first.answer["test_list"][0] == "assert min_cost([[1, 2, 3], [4, 8, 2], [1, 5, 3]], 2, 2) == 8"
    assert first.answer["test_setup_code"] == ""


def fenced(program: str) -> str:
    return f"Here it is:\n```python\n{program}\n```\n"


@pytest.mark.slow
def test_every_solution_of_mbpp_passes_its_own_tests_and_no_others(shared_data):
    records = mbpp(shared_data)
    reward = instantiate(OmegaConf.merge(CONFIG, {"workers": 2}))
    own = [
        Rollout(
            record.id, record.prompt, (1,), (2,), f"```python\n{record.answer['code']}\n```", "stop", 0, record.answer
        )
        for record in records
    ]
    scored = reward.score(own)
    failed = [one.prompt_id for one, total in zip(own, scored.total, strict=True) if total != 1.0]
    assert failed == []
    others = [
        replace(one, completion=other.completion) for one, other in zip(own[:40], [*own[1:40], own[0]], strict=True)
    ]
    assert set(reward.score(others).total) == {0.0}
