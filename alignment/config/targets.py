"""Which classes and functions a configuration may name, checked before and after they are imported.

A ``_target_`` runs code. The text is checked first, so that a module that is not allowed is never imported;
then what the text led to is checked by where it was defined, so that nothing is reached through a module that
is allowed (``alignment.methods.dpo.os.system``).
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from types import FunctionType, ModuleType
from typing import Any

from alignment.utils.errors import ConfigError, nearest

#: Where components are defined. The layers that steer (cli, config, report, ...) hold none.
ALLOWED = (
    "alignment.types",
    "alignment.advantages",
    "alignment.data",
    "alignment.diagnostics",
    "alignment.evaluation",
    "alignment.feedback",
    "alignment.losses",
    "alignment.methods",
    "alignment.models",
    "alignment.ops",
    "alignment.pipeline.trainer",
    "alignment.rewards",
    "alignment.rollout",
    "lightning.pytorch",
    "peft",
    "torch.optim",
)
#: Names further packages, separated by commas. The environment is the user's; a configuration may come from anywhere.
EXTRA = "ALIGNMENT_ALLOW_TARGETS"
_DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+")


def allowed_modules() -> tuple[str, ...]:
    """Returns the modules below which components may be defined."""
    extra = [name.strip() for name in os.environ.get(EXTRA, "").split(",")]
    return ALLOWED + tuple(name for name in extra if name)


def check_text(key: str, target: object) -> None:
    """Checks a ``_target_`` as it is written, importing nothing.

    Args:
        key: The node that holds it.
        target: Its value.

    Raises:
        ConfigError: It is no dotted name, or not below an allowed module.
    """
    if isinstance(target, str) and _DOTTED.fullmatch(target) and _is_allowed(target):
        return
    hint = f"For a package of your own set {EXTRA}=PACKAGE in the environment"
    raise ConfigError(f"{key}._target_", got=target, expected=_expected(), hint=hint)


def resolve(key: str, target: str) -> Any:
    """Imports what a checked ``_target_`` names.

    Returns:
        A class, or a function of a module of this project.

    Raises:
        ConfigError: It does not exist, or it was defined elsewhere.
    """
    found = _locate(key, target)
    is_own = target.split(".")[0] not in ("lightning", "peft", "torch")
    is_function = isinstance(found, FunctionType) and "." not in found.__qualname__
    if isinstance(found, type) or (is_own and is_function):
        origins = [f"{item.__module__}.{item.__qualname__}" for item in (found, inspect.unwrap(found))]
        if all(_DOTTED.fullmatch(origin) and _is_allowed(origin) for origin in origins):
            return found
        raise ConfigError(f"{key}._target_", got=target, expected=_expected(), hint=f"it is {origins[-1]}")
    raise ConfigError(f"{key}._target_", got=target, expected=_expected(), hint=f"it is a {type(found).__name__}")


def _locate(key: str, target: str) -> Any:
    parts = target.split(".")
    found: Any = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=1):
        parent = ".".join(parts[:depth])
        if isinstance(found, ModuleType) and found.__name__ != parent:
            raise ConfigError(
                f"{key}._target_", got=target, expected=_expected(), hint=f"'{parent}' is the module {found.__name__}"
            )
        if not hasattr(found, part) and isinstance(found, ModuleType):
            _import_submodule(f"{parent}.{part}")
        if not hasattr(found, part):
            hint = nearest(part, [name for name in vars(found) if not name.startswith("_")])
            raise ConfigError(f"{key}._target_", got=target, expected=f"a name in {parent}", hint=hint)
        found = getattr(found, part)
    return found


def _import_submodule(name: str) -> None:
    """Imports a module if there is one; an error inside it is the caller's to see."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not (error.name and name.startswith(error.name + ".")):
            raise


def _is_allowed(name: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in allowed_modules())


def _expected() -> str:
    return f"a class or function defined below one of {', '.join(allowed_modules())}"
