"""Checks a composed configuration before any weight loads: targets, arguments, types, combinations.

Nothing is imported before every ``_target_`` has been checked by its text, see :mod:`alignment.config.targets`.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alignment.config.paths import conf_dir
from alignment.config.rules import check_rules
from alignment.config.schema import PLAIN_GROUPS, ROOTS, Node
from alignment.config.targets import check_text, resolve
from alignment.config.typecheck import advice, describe, mismatch
from alignment.utils.errors import ConfigError, nearest

#: What the program adds to a node with ``_partial_: true``, by the node's key: the longest that it begins with. These
#: parameters are no business of the YAML's, and every other parameter without a default is.
RUNTIME: dict[str, frozenset[str]] = {
    "method": frozenset({"parts"}),
    "method.loss": frozenset(
        {"chosen_log_ratio", "rejected_log_ratio", "beta", "reference_margin", "weights", "reward_shift"}
    ),
    "method.divergence": frozenset({"log_ratio"}),
    "method.policy_loss": frozenset({"policy_logps", "old_logps", "advantages"}),
    "method.value_loss": frozenset({"values", "old_values", "returns"}),
    "rollout.engine": frozenset({"model", "tokenizer"}),
    "data": frozenset(
        {
            "tokenizer",
            "batch_type",
            "seed",
            "cache_dir",
            "score_prompt",
            "soft_labels",
            "mismatched",
            "layout",
            "steps_a_batch",
        }
    ),
    "optim": frozenset({"params"}),
    "schedule": frozenset({"optimizer", "total_steps"}),
    "reference": frozenset({"policy", "load_frozen"}),
    "critic": frozenset({"policy", "source"}),
    "trainer": frozenset({"hardware", "accumulate", "run_dir", "callbacks", "loggers"}),
    "callbacks": frozenset({"folder"}),
    "callbacks.fresh_samples.engine": frozenset({"model", "tokenizer"}),
    "logger": frozenset({"save_dir"}),
}
_RESERVED = frozenset({"_target_", "_partial_", "_convert_", "_recursive_"})


def validate(cfg: DictConfig, verb: str) -> None:
    """Checks a configuration without Hydra's own node.

    Args:
        cfg: Composed, without missing values.
        verb: The verb that it is for.

    Raises:
        ConfigError: The first thing that is wrong, with its key, what it got, and what would do.
    """
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    check_targets(plain)
    _check_fields("", plain, ROOTS[verb], None)
    _check_components(plain, ROOTS[verb])
    # Callbacks refer to other groups, whose own keys are the ones to name.
    nodes = dict(sorted(_nodes("", plain), key=lambda item: item[0].startswith("callbacks.")))
    targets = {key: resolve(key, node["_target_"]) for key, node in nodes.items()}
    by_id = {id(node): targets[key] for key, node in nodes.items()}
    for group, fields in PLAIN_GROUPS.items():
        if plain.get(group) is not None:
            _check_fields(group, plain[group], fields, by_id)
    for key, node in nodes.items():
        _check_call(key, node, targets[key], by_id)
    check_rules(plain, targets)


def check_targets(plain: Mapping[str, Any]) -> None:
    """Checks every ``_target_`` of plain data by its text, importing nothing.

    Raises:
        ConfigError: One that is not below an allowed module.
    """
    for key, node in _nodes("", plain):
        check_text(key, node["_target_"])


def _nodes(key: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every mapping with a ``_target_``, with its dotted key, outermost first."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield key, value  # type: ignore[misc]
        for name, entry in value.items():
            yield from _nodes(_join(key, name), entry)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _nodes(f"{key}[{index}]", entry)


def _check_fields(key: str, values: Mapping[str, Any], fields: type, targets: dict[int, Any] | None) -> None:
    """Checks a mapping against a dataclass: the names, the types, nothing missing.

    Args:
        key: Where the mapping stands; empty for the root.
        values: The mapping.
        fields: The dataclass, or the typed dictionary.
        targets: What the nodes inside lead to; ``None`` before they are imported: then a mapping is a mapping.
    """
    hints = typing.get_type_hints(fields)
    for name, value in values.items():
        if name not in hints:
            where = f"one of the keys of '{key}'" if key else "one of the keys"
            raise _unknown(key, name, value, list(hints), where)
        entry_type = (typing.get_args(hints[name]) or (None,))[-1]
        if isinstance(entry_type, type) and dataclasses.is_dataclass(entry_type):
            _check_entries(_join(key, name), value, entry_type, {})
        elif isinstance(value, Mapping) and (targets is None or "_target_" in value):
            if not _takes_mapping(hints[name]) and not (targets and mismatch(value, hints[name], targets) is None):
                raise ConfigError(_join(key, name), got=_shown(value), expected=describe(hints[name]))
        else:
            _check_type(_join(key, name), value, hints[name], targets or {})
    for name in _required(fields):
        if name not in values:
            raise _missing(_join(key, name), describe(hints[name]))


def _required(fields: type) -> list[str]:
    """Returns the fields of a dataclass without a default, or those of a typed dictionary."""
    if typing.is_typeddict(fields):
        return list(typing.get_type_hints(fields))
    missing = dataclasses.MISSING
    return [field.name for field in dataclasses.fields(fields) if field.default is field.default_factory is missing]


def _check_entries(key: str, values: Any, fields: type, targets: dict[int, Any]) -> None:
    """Checks a mapping from names to mappings with the fields of a dataclass or a typed dictionary."""
    expected = f"a mapping with {', '.join(typing.get_type_hints(fields))}"
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(key, got=_shown(values), expected=f"names, each with {expected}")
    for name, entry in values.items():
        if not isinstance(entry, Mapping):
            raise ConfigError(_join(key, name), got=entry, expected=expected)
        _check_fields(_join(key, name), entry, fields, targets)


def _entry_type(annotation: Any) -> type | None:
    """Returns the typed dictionary that every entry of an annotated mapping is, if there is one."""
    entry_type = (typing.get_args(annotation) or (None,))[-1]
    return entry_type if typing.is_typeddict(entry_type) else None


def _check_components(plain: Mapping[str, Any], fields: type) -> None:
    """Checks that every group which is no group of plain values says what it builds."""
    for name, hint in typing.get_type_hints(fields).items():
        value = plain.get(name)
        if name in PLAIN_GROUPS or not isinstance(value, Mapping) or not _takes_mapping(hint):
            continue
        components = {name: value} if hint in (Node, Node | None) else {f"{name}.{key}": value[key] for key in value}
        for key, node in components.items():
            if node is not None and not (isinstance(node, Mapping) and "_target_" in node):
                raise _missing(f"{key}._target_", "the class or function that it builds")


def _check_call(key: str, node: Mapping[str, Any], target: Any, targets: dict[int, Any]) -> None:
    """Checks a node's arguments against the signature of what it names."""
    parameters = inspect.signature(target).parameters
    given = {name: value for name, value in node.items() if name not in _RESERVED}
    is_partial = bool(node.get("_partial_", False))
    runtime = (_runtime(key) if is_partial else frozenset()) & frozenset(parameters)
    named = {name for name, item in parameters.items() if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)}
    is_open = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    for name, value in given.items():
        if name in runtime:
            hint = "It comes from the run itself: remove the key"
            raise ConfigError(_join(key, name), got=_shown(value), expected="no value", hint=hint)
        if name not in named and (not is_open or name == "_args_"):
            known = sorted(named - runtime)
            raise _unknown(key, name, value, known, f"an argument of {_name(target)}")
        annotation = _annotation(target, parameters[name]) if name in named else None
        if (entry_type := _entry_type(annotation)) is not None:
            _check_entries(_join(key, name), value, entry_type, targets)
        elif name in named:
            _check_type(_join(key, name), value, annotation, targets)
    for name in parameters:
        if name in named - runtime - given.keys() and parameters[name].default is inspect.Parameter.empty:
            raise _missing(_join(key, name), describe(_annotation(target, parameters[name])), _name(target))


def _runtime(key: str) -> frozenset[str]:
    """Returns what the program adds to the node of a key."""
    parts = key.split(".")
    starts = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((RUNTIME[start] for start in starts if start in RUNTIME), frozenset())


def _check_type(key: str, value: Any, annotation: Any, targets: dict[int, Any]) -> None:
    expected = mismatch(value, annotation, targets)
    if expected is None:
        return
    group, hint = key.replace(".", "/"), advice(annotation)
    choices = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    if isinstance(value, str) and choices:
        expected = f"a choice of the group {group}: {', '.join(choices)}"
        hint = f"A choice is taken with a slash: {group}={value}"
    elif "a text" in expected and isinstance(value, int | float):
        hint = f"Quote it: {key}=\\'{value}\\'"
    raise ConfigError(key, got=_shown(value), expected=expected, hint=hint)


def _annotation(target: Any, parameter: inspect.Parameter) -> Any:
    """Returns a parameter's annotation, ``Any`` for one that other packages import for type checkers only."""
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    function = target.__init__ if isinstance(target, type) else target
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        return typing.get_type_hints(holder, globalns=getattr(function, "__globals__", {}), include_extras=True)[
            parameter.name
        ]
    except NameError:
        return Any


def _unknown(key: str, name: str, value: Any, known: list[str], where: str) -> ConfigError:
    names = [_join(key, other) for other in known]
    return ConfigError(
        _join(key, name),
        got=_shown(value),
        expected=f"{where}: {', '.join(known) or 'it has none'}",
        hint=nearest(_join(key, name), names),
    )


def _missing(key: str, expected: str, target: str = "") -> ConfigError:
    wanted_by = f" for {target}" if target else ""
    return ConfigError(key, got="nothing", expected=f"a value{wanted_by}: {expected}", hint=f"Add +{key}=VALUE")


def _takes_mapping(annotation: Any) -> bool:
    return any((typing.get_origin(item) or item) is dict for item in (annotation, *typing.get_args(annotation)))


def _shown(value: Any) -> Any:
    """Returns what an error message shows of a value: of a node its target, of a mapping no more than its start."""
    if isinstance(value, Mapping):
        return value.get("_target_") or dict.fromkeys(list(value)[:4], "...")
    return value


def _name(target: Any) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
