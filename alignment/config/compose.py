"""Composes a verb's configuration with Hydra, and words its errors for the person who typed it.

Hydra's own entry point composes again and runs the job; composing here first means that whatever is
wrong with a command line is found before anything starts, named by key, with the nearest right name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from alignment.config.paths import conf_dir
from alignment.config.presets import GROUP, is_added, refused_preset
from alignment.config.searchpath import register_search_path
from alignment.utils.errors import ConfigError, UserError, nearest

VERSION_BASE = "1.3"


def config_loader(config_dir: Path | None = None) -> ConfigLoaderImpl:
    """Builds Hydra's loader over this project's folders and, searched before them, the user's own.

    Args:
        config_dir: What ``--config-dir`` names.

    Raises:
        UserError: ``config_dir`` is no folder.
    """
    version.setbase(VERSION_BASE)
    setup_globals()
    register_search_path()
    search_path = create_config_search_path(str(conf_dir()))
    if config_dir is not None:
        if not config_dir.is_dir():
            raise UserError(f"--config-dir: no folder '{config_dir}'")
        path = f"file://{config_dir.resolve()}"
        search_path.prepend("command-line", path, SearchPathQuery(provider="schema", path=None))
    return ConfigLoaderImpl(search_path)


def compose(
    config_name: str,
    overrides: Sequence[str],
    *,
    config_dir: Path | None = None,
    run_mode: RunMode = RunMode.RUN,
) -> DictConfig:
    """Composes one configuration, Hydra's own node ``hydra`` included.

    Args:
        config_name: The primary config: a verb, or the name given with ``--config-name``.
        overrides: As typed on the command line.
        config_dir: What ``--config-dir`` names.
        run_mode: ``MULTIRUN`` leaves sweeping overrides out and allows missing choices.

    Raises:
        UserError: Anything wrong with an override or a YAML file.
    """
    loader = config_loader(config_dir)
    try:
        cfg = loader.load_configuration(
            config_name, list(overrides), run_mode, validate_sweep_overrides=run_mode is RunMode.RUN
        )
    except OverrideParseException as error:
        raise _syntax_error(loader, error) from error
    except MissingConfigException as error:
        raise _missing_file(loader, error, overrides) from error
    except yaml.YAMLError as error:
        raise UserError(f"a YAML file cannot be read: {error}") from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise _composition_error(loader, config_name, overrides, error) from error
    if is_added(overrides):
        raise refused_preset(loader, config_name, overrides)
    return cfg


def task_config(cfg: DictConfig) -> DictConfig:
    """Returns the configuration without Hydra's own node, every interpolation resolved.

    Raises:
        ConfigError: An interpolation that leads nowhere, or a mandatory value that is missing.
    """
    task = cfg.copy()
    with open_dict(task):
        task.pop("hydra", None)
    with hydra_config(cfg):
        return resolved(task)


def resolved(task: DictConfig) -> DictConfig:
    """Returns a copy in which every interpolation is resolved.

    Raises:
        ConfigError: An interpolation that leads nowhere, or a mandatory value that is missing.
    """
    try:
        plain: dict[str, Any] = OmegaConf.to_container(task, resolve=True, throw_on_missing=True)  # type: ignore[assignment]
        return OmegaConf.create(plain)
    except MissingMandatoryValue as error:
        key = str(error.full_key)
        raise ConfigError(key, got="???", expected="a value", hint=f"Add {key}=VALUE") from error
    except InterpolationResolutionError as error:
        raise _interpolation_error(task, error) from error


def parse_overrides(overrides: Sequence[str], config_dir: Path | None = None) -> list[Override]:
    """Parses overrides in Hydra's grammar.

    Raises:
        UserError: One that is not in the grammar.
    """
    loader = config_loader(config_dir)
    try:
        return OverridesParser.create(loader).parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise _syntax_error(loader, error) from error


def quote(value: str) -> str:
    r"""Writes a text as a quoted value of Hydra's grammar, whatever characters it has.

    >>> print(quote("runs/it's"))
    'runs/it\'s'
    """
    escaped = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", value)
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{chr(92) * trailing}'"


@contextmanager
def hydra_config(cfg: DictConfig) -> Iterator[None]:
    """Makes ``${hydra:...}`` resolve while no job is running, and leaves no trace."""
    before = HydraConfig.instance().cfg
    if "hydra" in cfg:
        HydraConfig.instance().set_config(cfg)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def _groups(loader: ConfigLoaderImpl) -> dict[str, list[str]]:
    """Returns the choices of every group, nested ones (``method/loss``) behind the others."""
    outer = [name for name in loader.list_groups("") if name != "hydra"]
    nested = [f"{name}/{inner}" for name in outer for inner in loader.list_groups(name)]
    return {name: loader.get_group_options(name, ObjectType.CONFIG) for name in [*outer, *nested]}


def _syntax_error(loader: ConfigLoaderImpl, error: OverrideParseException) -> UserError:
    override = error.override
    if "=" in override:
        key, value = override.split("=", 1)
        reason = str(error).splitlines()[0]
        hint = f"Hydra says: {reason}. Quote a text with special characters: {key}=\\'...\\'"
        return ConfigError(key, got=value, expected="a value in Hydra's override syntax", hint=hint)
    found = [f"{group}={override}" for group, options in _groups(loader).items() if override in options]
    hint = f"did you mean '{found[0]}'?" if found else nearest(f"{override}=", _choices(loader))
    return ConfigError(override, got=override, expected="an override KEY=VALUE", hint=hint)


def _choices(loader: ConfigLoaderImpl) -> list[str]:
    return [f"{group}={option}" for group, options in _groups(loader).items() for option in options]


def _missing_file(loader: ConfigLoaderImpl, error: MissingConfigException, overrides: Sequence[str]) -> UserError:
    path = error.missing_cfg_file or ""
    group, _, choice = path.rpartition("/")
    if not group:
        return UserError(f"no primary config '{path}': {str(error).splitlines()[0]}")
    options = list(error.options or loader.get_group_options(group, ObjectType.CONFIG))
    named = any(re.match(rf"\+?{re.escape(group)}(@[^=]*)?=", item) for item in overrides)
    hint = nearest(choice, options)
    if not named:
        hint = f"It stands in a YAML file's defaults list. {hint}".strip()
    return ConfigError(group, got=choice, expected=f"one of {', '.join(options)}", hint=hint)


def _composition_error(
    loader: ConfigLoaderImpl, config_name: str, overrides: Sequence[str], error: Exception
) -> UserError:
    message = str(error)
    if re.match(rf"In '{GROUP}/[^']*': Could not override|Could not override '{GROUP}'", message):
        return refused_preset(loader, config_name, overrides)
    if found := re.match(r"Could not override '([^']*)'", message):
        return _unknown_key(loader, config_name, overrides, found[1])
    if found := re.match(r"(?:Multiple values for )?(\S+?)( appears more than once|\. To override a value)", message):
        # A choice that is taken twice brings the groups inside it twice.
        added = [item[1:].split("=")[0] for item in overrides if item.startswith("+")]
        group = next((name for name in added if f"{found[1]}/".startswith(f"{name}/")), found[1])
        return UserError(f"+{group}=...: '{group}' has a choice already. Write {group}=... without '+'")
    if message.startswith("Config group override must be a string"):
        return _no_choice(loader, overrides)
    if found := re.match(r"You must specify '([^']*)'", message):
        options = loader.get_group_options(found[1], ObjectType.CONFIG)
        expected = f"one of {', '.join(options)}"
        return ConfigError(found[1], got="???", expected=expected, hint=f"Add {found[1]}=CHOICE")
    if isinstance(error.__cause__, GrammarParseError) and (path := _unreadable_file(loader)) is not None:
        return UserError(f"{path}: an interpolation cannot be read: {str(error.__cause__).splitlines()[0]}")
    parts = [message.strip(), str(error.__cause__ or "").strip()]
    return UserError(". ".join(" ".join(part.split()) for part in parts if part))


def _unreadable_file(loader: ConfigLoaderImpl) -> Path | None:
    """Returns the YAML file with an interpolation outside the grammar; Hydra's error does not name it."""
    folders = [Path(source.path) for source in loader.get_sources() if source.scheme() == "file"]
    for path in (path for folder in folders for path in sorted(folder.rglob("*.yaml"))):
        try:
            OmegaConf.load(path)
        except GrammarParseError:
            return path
    return None


def _no_choice(loader: ConfigLoaderImpl, overrides: Sequence[str]) -> ConfigError:
    """Words an override of a group by something that is no name."""
    groups = _groups(loader)
    parsed = OverridesParser.create(loader).parse_overrides(list(overrides))
    wrong = next(item for item in parsed if item.key_or_group in groups and not isinstance(item.value(), str | list))
    options = groups[wrong.key_or_group]
    hint = f"Use {wrong.key_or_group}=none" if wrong.value() is None and "none" in options else ""
    return ConfigError(wrong.key_or_group, got=wrong.value(), expected=f"one of {', '.join(options)}", hint=hint)


def _unknown_key(loader: ConfigLoaderImpl, config_name: str, overrides: Sequence[str], key: str) -> UserError:
    given = next((item for item in overrides if re.match(rf"{re.escape(key)}\s*=", item)), f"{key}=")
    value = given.split("=", 1)[1]
    groups = _groups(loader)
    group = key.split("@")[0]
    outer, _, inner = group.rpartition("/")
    if group in groups and outer:
        hint = f"Not every choice of '{outer}' has a group '{inner}'"
        return ConfigError(key, got=value, expected=f"a group of the chosen '{outer}'", hint=hint)
    if group in groups:
        hint = f"'{group}' is not in the defaults of '{config_name}': write +{key}={value}"
        return ConfigError(key, got=value, expected="a group that has a choice already", hint=hint)
    others = [item for item in overrides if _is_choice(item, groups)]
    try:
        base = loader.load_configuration(config_name, others, RunMode.MULTIRUN, validate_sweep_overrides=False)
    except HydraException:
        # A choice is wrong as well; this error can be worded without them.
        base = loader.load_configuration(config_name, [], RunMode.MULTIRUN, validate_sweep_overrides=False)
    parent, known = _deepest(base, key)
    names = [f"{parent}.{name}" if parent else name for name in known]
    if not parent:
        names = sorted({*names, *groups} - {"hydra"})
    shown = ", ".join(name.rpartition(".")[2] for name in names)
    where = f"one of the keys of '{parent}'" if parent else "one of the keys"
    return ConfigError(key, got=value, expected=f"{where}: {shown}", hint=nearest(key, names))


def _is_choice(override: str, groups: dict[str, list[str]]) -> bool:
    return override.lstrip("+").split("=")[0].split("@")[0] in groups


def _deepest(cfg: DictConfig, key: str) -> tuple[str, list[str]]:
    """Follows ``key`` as far as it exists: the last mapping's path and its keys."""
    node: Any = cfg
    path: list[str] = []
    for part in key.split("."):
        child = node.get(part) if not OmegaConf.is_missing(node, part) else None
        if not isinstance(child, DictConfig):
            break
        node, path = child, [*path, part]
    return ".".join(path), [str(name) for name in node if name != "hydra" and not str(name).startswith("_")]


def _interpolation_error(task: DictConfig, error: InterpolationResolutionError) -> ConfigError:
    key = str(error.full_key)
    raw: Any = OmegaConf.to_container(task, resolve=False)
    for part in re.findall(r"[^.\[\]]+", key):
        raw = raw[int(part)] if isinstance(raw, list) else raw[part]
    reason = str(error).splitlines()[0]
    return ConfigError(key, got=raw, expected="an interpolation that resolves", hint=reason)
