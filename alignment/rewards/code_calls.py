"""How tests call a program that they must not trust: the program in one sandbox, its tests in another.

The program's side (:func:`serve`) runs what the model wrote and does what it is asked to by name. The tests' side
(:func:`drive`) runs the assertions; what the program defines is there as :class:`Remote` objects, whose uses are sent
over. Only values of Python's own plain types come back, rebuilt from text, so that nothing that the program returns
brings an ``__eq__`` of its own along; expected values and the verdict never enter the program's sandbox. A program that
ends, hangs or lies can therefore only fail its tests.

The text of this file runs in both sandboxes, so it needs the standard library alone.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import operator
import os
import sys
import types
from collections.abc import Callable
from typing import Any

LOST = 3
"""Exit code of the tests' side when the program's side has gone."""

_EXACT = 2**53
"""Whole numbers up to this stand in JSON as they are."""

Pack = Callable[[Any], Any]

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *values, **named: function(*values, **named),
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "contains": operator.contains,
    "len": len,
    "list": list,
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
}


class UnsendableError(TypeError):
    """The tests hand over something that cannot be sent, such as a function of their own."""


class LostError(ConnectionError):
    """The program's process has ended, or speaks no sense."""


def encode(value: Any, other: Pack) -> Any:
    """Turns a value into what JSON can hold.

    Plain values are read with the methods of Python's own types, so that a subclass becomes what it is made of.

    Args:
        value: Anything.
        other: Gives the reference to a value that is not plain.

    >>> encode([1, (2.5, {"a": None})], repr)
    ['list', [1, ['tuple', [['float', '0x1.4000000000000p+1'], ['dict', [['a', None]]]]]]]
    >>> decode(encode({frozenset({1}), 2**100, b"x", True, 1j}, repr), repr) == {frozenset({1}), 2**100, b"x", True, 1j}
    True
    """
    if value is None or type(value) is bool:
        return value
    for kind, write in _SCALARS.items():
        if issubclass(type(value), kind):
            return write(value)
    if issubclass(type(value), dict):
        return ["dict", [[encode(key, other), encode(item, other)] for key, item in dict.items(value)]]
    if type(value) is range:
        return ["range", [encode(part, other) for part in (value.start, value.stop, value.step)]]
    for kind in (list, tuple, set, frozenset):
        if issubclass(type(value), kind):
            return [kind.__name__, [encode(item, other) for item in kind.__iter__(value)]]
    if isinstance(value, type) and vars(builtins).get(value.__name__) is value:
        return ["type", value.__name__]
    return ["other", other(value)]


def _encode_int(value: int) -> Any:
    number = int.__int__(value)
    return number if -_EXACT < number < _EXACT else ["int", hex(number)]


_SCALARS: dict[type, Pack] = {
    int: _encode_int,
    float: lambda value: ["float", float.hex(value)],
    str: str.__str__,
    complex: lambda value: ["complex", [float.hex(value.real), float.hex(value.imag)]],
    bytes: lambda value: ["bytes", bytes.hex(value)],
    bytearray: lambda value: ["bytearray", bytearray.hex(value)],
}


def decode(data: Any, other: Pack) -> Any:
    """Rebuilds what :func:`encode` made.

    Raises:
        LostError: It is nothing that :func:`encode` makes.
    """
    if data is None or type(data) in (bool, int, str):
        return data
    try:
        kind, content = data
        if kind == "other":
            return other(content)
        if kind in ("int", "float", "complex", "bytes", "bytearray"):
            return _decode_scalar(kind, content)
        if kind == "dict":
            return {decode(key, other): decode(item, other) for key, item in content}
        if kind == "range":
            return range(*(decode(part, other) for part in content))
        if kind == "type" and isinstance(vars(builtins)[content], type):
            return vars(builtins)[content]
        plain = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind]
        return plain([decode(item, other) for item in content])
    except (KeyError, TypeError, ValueError) as error:
        raise LostError(f"no value: {error}") from error


def _decode_scalar(kind: str, content: Any) -> Any:
    if kind == "complex":
        return complex(*map(float.fromhex, content))
    if kind == "int":
        return int(content, 16)
    return float.fromhex(content) if kind == "float" else getattr(builtins, kind).fromhex(content)


class Channel:
    """Lines of JSON over a pair of pipes."""

    def __init__(self, read: int, write: int) -> None:
        self.reader = open(read, encoding="ascii")  # noqa: SIM115 (descriptors, open till the end)
        self.writer = open(write, "w", encoding="ascii")  # noqa: SIM115

    def send(self, data: Any) -> None:
        """Sends one value that JSON can hold."""
        self.writer.write(json.dumps(data) + "\n")
        self.writer.flush()

    def receive(self) -> Any:
        """Waits for one value.

        Raises:
            LostError: The other side has gone, or sends no JSON.
        """
        try:
            line = self.reader.readline()
            if line:
                return json.loads(line)
        except (ValueError, OSError) as error:
            raise LostError(str(error)) from error
        raise LostError("the program has ended")


# The program's side -------------------------------------------------------------------------------------------------


def serve(read: int, write: int) -> None:
    """Runs the program on standard input as a module, then does what the tests ask until they are done."""
    channel = Channel(read, write)
    source = sys.stdin.read()
    sys.set_int_max_str_digits(0)
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        code = compile(source, "<solution>", "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        return channel.send({"compiled": False, "error": type(error).__name__})
    channel.send({"compiled": True})
    try:
        exec(code, module.__dict__)  # noqa: S102 (in a sandbox of its own)
    except BaseException as error:
        return channel.send({"error": type(error).__name__})
    channel.send({"names": list(vars(module))})
    # Everything that is not plain stays here, under a number.
    kept: list[Any] = []

    def keep(value: Any) -> int:
        kept.append(value)
        return len(kept) - 1

    def find(reference: Any) -> Any:
        return kept[reference] if isinstance(reference, int) else getattr(module, reference)

    while True:
        try:
            asked = channel.receive()
        except LostError:
            return None
        channel.send(_answer(asked, keep, find))


def _answer(asked: dict[str, Any], keep: Pack, find: Pack) -> dict[str, Any]:
    try:
        values, named = decode(asked["values"], find), decode(asked["named"], find)
        return {"value": encode(_OPERATIONS[asked["operation"]](*values, **named), keep)}
    except BaseException as error:
        return {"error": type(error).__name__}


# The tests' side ----------------------------------------------------------------------------------------------------


class Remote:
    """Something that lives in the program's process; whatever is done with it is done there."""

    def __init__(self, channel: Channel, reference: int | str) -> None:
        object.__setattr__(self, "_channel", channel)
        object.__setattr__(self, "_reference", reference)

    def _ask(self, operation: str, *values: Any, **named: Any) -> Any:
        return _ask(self._channel, operation, self, *values, **named)

    def __call__(self, *values: Any, **named: Any) -> Any:
        """Calls it there."""
        return self._ask("call", *values, **named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)

    def __contains__(self, value: Any) -> bool:
        return self._ask("contains", value)

    def __iter__(self) -> Any:
        return iter(_expect(list, self._ask("list")))

    def __len__(self) -> int:
        return _expect(int, self._ask("len"))

    def __bool__(self) -> bool:
        return _expect(bool, self._ask("bool"))

    def __int__(self) -> int:
        return _expect(int, self._ask("int"))

    def __float__(self) -> float:
        return _expect(float, self._ask("float"))

    def __str__(self) -> str:
        return _expect(str, self._ask("str"))


def _expect(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise LostError(f"{kind.__name__} was asked for")
    return value


def _ask(channel: Channel, operation: str, *values: Any, **named: Any) -> Any:
    """Has the program's side do something, and returns or raises what comes of it."""

    def refer(value: Any) -> int | str:
        if type(value) is Remote:
            return object.__getattribute__(value, "_reference")
        raise UnsendableError(f"a {type(value).__name__} cannot be sent to the program")

    question = {"operation": operation, "values": encode(values, refer), "named": encode(named, refer)}
    try:
        channel.send(question)
    except OSError as error:
        raise LostError(str(error)) from error
    answer = channel.receive()
    if not isinstance(answer, dict) or not answer.keys() & {"value", "error"}:
        raise LostError("neither a value nor an error")
    if "value" in answer:
        return decode(answer["value"], lambda reference: Remote(channel, _expect(int, reference)))
    name = str(answer["error"])[:100]
    known = getattr(builtins, name, None)
    # A StopIteration would end the test's own loop early, as if all of it had passed.
    if isinstance(known, type) and issubclass(known, Exception) and not name.startswith("Stop"):
        raise known(f"the program raised {name}")
    raise RuntimeError(f"the program raised {name}")


def drive(read: int, write: int) -> None:
    """Runs the tests on standard input against the program, and prints a line of JSON for each thing learnt.

    The first line says ``{"compiled": bool}``; then there is ``{"test": number, "error": name or null}`` for each
    test until all are run or the program is ``lost``. ``UnsendableError`` means that the test, not the program, is at
    fault.
    """
    given = json.loads(sys.stdin.read())
    sys.set_int_max_str_digits(0)
    channel = Channel(read, write)
    # What tests print is nothing learnt.
    verdicts, sys.stdout = sys.stdout, sys.stderr
    try:
        compiled = _field(channel.receive(), "compiled") is True
        print(json.dumps({"compiled": compiled}), file=verdicts, flush=True)
        names = _field(channel.receive(), "names") if compiled else None
        known = [str(name) for name in names] if isinstance(names, list) else []
        namespace = _namespace(channel, known, [given["setup"], *given["tests"]])
        failed_setup = _run(given["setup"], namespace)
        for number, test in enumerate(given["tests"]):
            error = failed_setup or _run(test, namespace)
            print(json.dumps({"test": number, "error": error}), file=verdicts, flush=True)
    except LostError as error:
        print(json.dumps({"lost": str(error)}), file=verdicts, flush=True)
        # Without the clean-up of an ordinary exit, which would find the pipe broken.
        os._exit(LOST)


def _field(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, dict) else None


def _namespace(channel: Channel, names: list[str], texts: list[str]) -> dict[str, Any]:
    """What tests see: the program's names, but never in the place of Python's own or of the library's modules."""
    library = {name: importlib.import_module(name) for name in _used(texts) & sys.stdlib_module_names}
    own = vars(builtins)
    theirs = {name: Remote(channel, name) for name in names if name not in own and not name.startswith("__")}
    return {**theirs, **library, "__name__": "tests", "__builtins__": builtins}


def _used(texts: list[str]) -> set[str]:
    """Names that tests use without binding them."""
    nodes = [node for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)]
    return {node.id for node in nodes} - {node.id for node in nodes if isinstance(node.ctx, ast.Store)}


def _run(text: str, namespace: dict[str, Any]) -> str | None:
    """Runs a test; the name of its error, or ``None``.

    Raises:
        LostError: The program has gone: there is nothing more to ask it.
    """
    try:
        exec(compile(text, "<test>", "exec"), namespace)  # noqa: S102 (in a sandbox of its own)
    except LostError:
        raise
    except BaseException as error:
        return type(error).__name__
    return None
