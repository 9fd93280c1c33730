"""Whether a value of a YAML file fits the annotation of the parameter that receives it."""

from __future__ import annotations

import json
import types
import typing
from typing import Any, Literal, Union

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError


def mismatch(value: Any, annotation: Any, targets: dict[int, Any]) -> str | None:
    """Says what would have been accepted, or returns ``None`` when the value fits.

    Values are checked strictly: a text is no number, ``yes`` is no boolean and 1.5 no integer; an integer is a float,
    a list is a tuple, and a text is a path or the value of an enumeration.

    Args:
        value: Plain data; a mapping with ``_target_`` stands for what it builds.
        annotation: The parameter's annotation; ``Any`` accepts everything.
        targets: The class or function of each node in ``value``, by the node's ``id``.

    >>> mismatch("abc", float, {})
    'float'
    >>> mismatch(1, float, {}) is None
    True
    """
    return None if _fits(value, annotation, targets) else describe(annotation)


def describe(annotation: Any) -> str:
    """Words an annotation for an error message.

    >>> describe(typing.Literal["a", "b"] | None)
    "'a', 'b' or null"
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(filter(None, [", ".join(map(repr, args[:-1])), repr(args[-1])]))
    if origin in (Union, types.UnionType):
        words = [describe(arg) for arg in args]
        if any(typing.get_origin(arg) is Literal for arg in args):
            words = [word.replace(" or ", ", ") for word in words]
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if origin is not None and args:
        inner = ", ".join(describe(arg) for arg in args if arg is not Ellipsis)
        return f"{getattr(origin, '__name__', origin)} of {inner}"
    return getattr(annotation, "__name__", str(annotation))


def _fits(value: Any, annotation: Any, targets: dict[int, Any]) -> bool:
    if not _holds_node(value):
        return _accepts(value, annotation)
    if isinstance(value, dict) and "_target_" in value:
        return _node_fits(value, annotation, targets)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg, targets) for arg in args)
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
    members = [member for member in _members(annotation) if not _is_plain(member)]
    if not members:
        return False
    built = targets[id(node)]
    classes = tuple(member for member in members if isinstance(member, type))
    if node.get("_partial_", False) or len(classes) < len(members) or not isinstance(built, type):
        # What a partial or a factory gives, and what a Protocol or an alias accepts, only the code itself can tell.
        return any(member not in classes or not node.get("_partial_", False) for member in members)
    return any(getattr(member, "_is_protocol", False) or issubclass(built, member) for member in classes)


def _members(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _is_plain(annotation: Any) -> bool:
    """Whether an annotation has room for scalars and collections only, and for nothing that a node could build."""
    origin = typing.get_origin(annotation) or annotation
    return origin in (str, int, float, bool, list, dict, tuple, set, Literal, None, type(None))


def _accepts(value: Any, annotation: Any) -> bool:
    adapter = _adapter(annotation)
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
