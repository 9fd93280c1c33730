"""Whose presets are whose: words the error of a preset (``method/preset``) that the chosen method does not have."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ConfigDefault, GroupDefault
from hydra.core.object_type import ObjectType
from hydra.types import RunMode

from alignment.utils.errors import ConfigError, nearest

GROUP = "method/preset"
_GIVEN = re.compile(rf"(\+?){GROUP}\s*=\s*(.*)")


def is_added(overrides: Sequence[str]) -> bool:
    """Whether a preset is added with ``+``, which a method takes only if it has none to replace."""
    return any((found := _GIVEN.match(item)) and found[1] for item in overrides)


def refused_preset(loader: ConfigLoaderImpl, config_name: str, overrides: Sequence[str]) -> ConfigError:
    """Words the error of a preset that the chosen method cannot take.

    Args:
        loader: Hydra's.
        config_name: The primary config.
        overrides: As typed.
    """
    given = next((found[2] for item in overrides if (found := _GIVEN.match(item))), "")
    # What else is wrong is worded when this is right.
    deciding = [item for item in overrides if re.match(r"\+?(method|experiment)\s*=", item)]
    base = loader.load_configuration(config_name, deciding, RunMode.MULTIRUN, validate_sweep_overrides=False)
    choices = base.hydra.runtime.choices
    method, own = choices.get("method", ""), choices.get(GROUP)
    if own is None:
        methods = [name for name in loader.get_group_options("method", ObjectType.CONFIG) if _has(loader, name)]
        hint = f"Methods with presets: {', '.join(methods)}"
        return ConfigError(GROUP, got=given, expected=f"none, because method={method} has no presets", hint=hint)
    family = own.partition("_")[0]
    presets = [name for name in loader.get_group_options(GROUP, ObjectType.CONFIG) if name.startswith(f"{family}_")]
    hint = nearest(f"{family}_{given}", presets)
    return ConfigError(GROUP, got=given, expected=f"a preset of method={method}: {', '.join(presets)}", hint=hint)


def _has(loader: ConfigLoaderImpl, method: str) -> bool:
    """Whether a method's own defaults, or those of a method that it builds on, have a preset."""
    loaded = loader.repository.load_config(f"method/{method}")
    for entry in (loaded.defaults_list or []) if loaded is not None else []:
        if isinstance(entry, GroupDefault) and entry.group in ("preset", f"/{GROUP}") and not entry.override:
            return True
        if isinstance(entry, ConfigDefault) and entry.path != "_self_" and _has(loader, entry.path or ""):
            return True
    return False
