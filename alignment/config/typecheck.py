"""Whether a value of a YAML file fits the annotation of the parameter that receives it."""

from __future__ import annotations

import collections.abc
import json
import re
import types
import typing
from typing import Annotated, Any, Literal, Union

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError


def mismatch(value: Any, annotation: Any, targets: dict[int, Any]) -> str | None:
    """Says what would have been accepted, or returns ``None`` when the value fits.

    Values are checked strictly: a text is no number, ``yes`` is no boolean and 1.5 no integer; an integer is a float,
    a list is a tuple, and a text is a path or the value of an enumeration. ``Annotated[float, "[0, 0.5)"]`` is a number
    in an interval; :func:`advice` is in further notes.

    Args:
        value: Plain data; a mapping with ``_target_`` stands for what it builds.
        annotation: The parameter's annotation; ``Any`` accepts everything.
        targets: The class or function of each node in ``value``, by the node's ``id``.

    >>> mismatch("abc", float, {})
    'a number'
    >>> mismatch(1, float, {}) is None
    True
    >>> mismatch(0.5, typing.Annotated[float, "[0, 0.5)"], {})
    'a number in [0, 0.5)'
    """
    return None if _fits(value, annotation, targets) else describe(annotation)


def describe(annotation: Any) -> str:
    """Words an annotation for an error message.

    >>> describe(typing.Literal["a", "b"] | None)
    "'a', 'b' or null"
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return " in ".join([describe(args[0]), *filter(_is_interval, args[1:])])
    if origin is Literal:
        return _joined(_values(annotation))
    if _is_union(annotation):
        return _joined([word for arg in args for word in ([describe(arg)] if not _is_literal(arg) else _values(arg))])
    if origin is not None and args and issubclass(origin, collections.abc.Collection):
        if issubclass(origin, collections.abc.Mapping):
            return f"a mapping to {describe(args[-1])}" if args[-1] is not Any else "a mapping"
        return f"a list (each {_joined(list(dict.fromkeys(describe(arg) for arg in args if arg is not Ellipsis)))})"
    return _WORDS.get(annotation) or getattr(annotation, "__name__", str(annotation))


def advice(annotation: Any) -> str:
    """Returns what an annotation says to do instead: its text that is no interval, or nothing.

    >>> advice(typing.Annotated[float, "(0, inf)", "Without it use another method"])
    'Without it use another method'
    """
    notes = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is Annotated else ()
    return "".join(note for note in notes if isinstance(note, str) and not _is_interval(note))


_INTERVAL = re.compile(r"(?P<left>[\[(])(?P<low>-?[\w.]+), (?P<high>-?[\w.]+)(?P<right>[\])])")
_WORDS: dict[Any, str] = {
    None: "null",
    type(None): "null",
    str: "a text",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    Any: "anything",
}


def _joined(words: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _is_literal(annotation: Any) -> bool:
    return typing.get_origin(annotation) is Literal


def _values(annotation: Any) -> list[str]:
    return [repr(arg) for arg in typing.get_args(annotation)]


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


def _is_interval(note: Any) -> bool:
    return isinstance(note, str) and _INTERVAL.fullmatch(note) is not None


def _is_in(value: float, interval: str) -> bool:
    found = _INTERVAL.fullmatch(interval)
    assert found is not None
    low, high = float(found["low"]), float(found["high"])
    return low <= value <= high and (value, found["left"]) != (low, "(") and (value, found["right"]) != (high, ")")


def _fits(value: Any, annotation: Any, targets: dict[int, Any]) -> bool:
    if typing.get_origin(annotation) is Annotated:
        bare, *notes = typing.get_args(annotation)
        return _fits(value, bare, targets) and all(_is_in(value, note) for note in filter(_is_interval, notes))
    if isinstance(value, dict) and "_target_" in value:
        return _node_fits(value, annotation, targets)
    args = typing.get_args(annotation)
    if _is_union(annotation):
        return any(_fits(value, arg, targets) for arg in args)
    if not _holds_node(value):
        return _accepts(value, annotation)
    if not args:
        return True
    if isinstance(value, dict):
        return all(_fits(entry, args[-1], targets) for entry in value.values())
    return all(_fits(entry, args[0], targets) for entry in value)


def _holds_node(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_holds_node, value.values()))
    return isinstance(value, list) and any(map(_holds_node, value))


def _node_fits(node: dict[str, Any], annotation: Any, targets: dict[int, Any]) -> bool:
    """Whether what a node builds may be passed; a Protocol, an alias, a factory's result only the code can judge."""
    members = [member for member in _members(annotation) if not _is_plain(member)]
    if Any in members:
        return True
    open_members = [member for member in members if not isinstance(member, type) or _is_open(member)]
    built = targets[id(node)]
    if open_members or node.get("_partial_", False):
        return bool(open_members)
    return bool(members) and (not isinstance(built, type) or issubclass(built, tuple(members)))


def _is_open(annotation: type) -> bool:
    return annotation is collections.abc.Callable or getattr(annotation, "_is_protocol", False)


def _members(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if _is_union(annotation) else (annotation,)


def _is_plain(annotation: Any) -> bool:
    """Whether an annotation has room for scalars and collections only, and for nothing that a node could build."""
    origin = typing.get_origin(annotation) or annotation
    return origin in (str, int, float, bool, list, dict, tuple, set, Literal, None, type(None))


def _accepts(value: Any, annotation: Any) -> bool:
    # Only a node can build what a Protocol describes; pydantic cannot read one.
    members = [member for member in _members(annotation) if not getattr(member, "_is_protocol", False)]
    if not members:
        return False
    adapter = _adapter(Union[tuple(members)])  # noqa: UP007 - made at run time
    if adapter is None:
        return True
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    return True


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """Returns pydantic's reading of an annotation; ``None`` for one that it cannot read."""
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError as error:
        # Dataclasses and typed dictionaries bring their own configuration.
        return TypeAdapter(annotation) if error.code == "type-adapter-config-unused" else None
