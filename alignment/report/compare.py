"""What differs between runs, and which of them are seeds of one configuration."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from alignment.report.discover import natural_key
from alignment.report.format import scalar
from alignment.report.read import Run

ABSENT = "(absent)"
UNKNOWN = "(config unknown)"
# Keys that never make two runs different experiments.
PLACES = ("paths.", "hydra.", "logger.", "callbacks.", "resume", "name")
MAX_KEYS_IN_LABEL = 3


@dataclass(frozen=True)
class Group:
    """Runs of one configuration: they differ in nothing but the seed and where they are written.

    Attributes:
        index: Decides the colour and the marker.
        label: What sets the configuration apart from the others.
        members: Indices of its runs.
    """

    index: int
    label: str
    members: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """How the runs of a page relate.

    Attributes:
        groups: Configurations, in the order of their differing values.
        labels: What each run is called; unique.
        group_of: The group of each run.
        differing: Key to the value of every run, for keys that are not the same everywhere.
        swept: The differing keys that set the groups apart.
    """

    groups: list[Group]
    labels: list[str]
    group_of: list[int]
    differing: dict[str, list[str]]
    swept: list[str]


def compare(runs: list[Run]) -> Comparison:
    """Groups the runs by configuration and names each by what sets it apart."""
    flats = [flat_config(run) for run in runs]
    differing = _differing(flats)
    swept = [key for key in differing if not is_seed(key) and not key.startswith(PLACES)]
    keys: list[tuple[str, ...]] = [
        tuple(flat.get(key, ABSENT) for key in swept) if flat else (UNKNOWN, run.path.as_posix())
        for run, flat in zip(runs, flats, strict=True)
    ]
    distinct = list(dict.fromkeys(keys))
    members = {key: [run for run, other in zip(runs, keys, strict=True) if other == key] for key in distinct}
    shared = frozenset(_overrides(runs[0])).intersection(*map(_overrides, runs))
    names = {key: _group_label(key, swept, members[key], shared) for key in distinct}
    if swept and len(swept) <= MAX_KEYS_IN_LABEL:
        distinct.sort(key=lambda key: [_value_key(value) for value in key])
    groups = [
        Group(index, names[key], tuple(i for i, other in enumerate(keys) if other == key))
        for index, key in enumerate(distinct)
    ]
    labels = _unique([_run_label(run, names[key], members[key]) for run, key in zip(runs, keys, strict=True)], runs)
    return Comparison(groups, labels, [distinct.index(key) for key in keys], differing, swept)


def flat_config(run: Run) -> dict[str, str]:
    """Returns the configuration as dotted keys; the run's own folder is written as RUN."""
    flat: dict[str, str] = {}
    paths = run.config.get("paths")
    folders = [
        str(run.path),
        *([str(paths["run_dir"])] if isinstance(paths, dict) and paths.get("run_dir") else []),
    ]
    for key, value in _flatten("", run.config):
        text = scalar(value)
        for folder in folders:
            text = text.replace(folder, "RUN")
        flat[key] = text
    return flat


def is_seed(key: str) -> bool:
    """Says whether a key only seeds a random state.

    >>> is_seed("seed"), is_seed("rollout.sampling.seed"), is_seed("method.beta")
    (True, True, False)
    """
    leaf = key.rpartition(".")[2]
    return leaf == "seed" or leaf.endswith("_seed")


def _flatten(prefix: str, node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        children = [(f"{prefix}.{key}" if prefix else str(key), child) for key, child in node.items()]
    elif isinstance(node, list) and any(isinstance(item, dict | list) for item in node):
        children = [(f"{prefix}.{i}", child) for i, child in enumerate(node)]
    else:
        return [(prefix, node)] if prefix else []
    return [pair for key, child in children for pair in _flatten(key, child)]


def _differing(flats: list[dict[str, str]]) -> dict[str, list[str]]:
    known = [flat for flat in flats if flat]
    keys = dict.fromkeys(key for flat in known for key in flat)
    return {
        key: [flat.get(key, ABSENT) if flat else UNKNOWN for flat in flats]
        for key in keys
        if len({flat.get(key, ABSENT) for flat in known}) > 1
    }


def _group_label(key: tuple[str, ...], swept: list[str], members: list[Run], shared: frozenset[str]) -> str:
    is_known = key[0:1] != (UNKNOWN,)
    if is_known and 0 < len(swept) <= MAX_KEYS_IN_LABEL:
        short = _short_names(swept)
        return ", ".join(f"{name}={value}" for name, value in zip(short, key, strict=True))
    if is_known and not swept:
        return str(members[0].manifest.get("name") or members[0].name)
    own = [item for item in _overrides(members[0]) if item not in shared]
    overrides = [item for item in own if not is_seed(item.partition("=")[0].lstrip("+~"))]
    is_job = members[0].path.name.isdigit()
    if is_job and 0 < len(overrides) <= MAX_KEYS_IN_LABEL:
        return ", ".join(overrides)
    return members[0].name


def _overrides(run: Run) -> list[str]:
    value = run.manifest.get("overrides")
    return [str(item) for item in value] if isinstance(value, list) else []


def _short_names(keys: list[str]) -> list[str]:
    """Returns the last part of each key where it is unique, else the whole key.

    >>> _short_names(["method.beta", "optim.lr"]), _short_names(["a.lr", "b.lr"])
    (['beta', 'lr'], ['a.lr', 'b.lr'])
    """
    leaves = Counter(key.rpartition(".")[2] for key in keys)
    return [key.rpartition(".")[2] if leaves[key.rpartition(".")[2]] == 1 else key for key in keys]


def _run_label(run: Run, group_label: str, members: list[Run]) -> str:
    seed = seed_of(run)
    if group_label in {member.name for member in members}:
        return run.name  # the group is called after a folder, and every run has its own
    return f"{group_label} · seed {seed}" if len(members) > 1 and seed is not None else group_label


def seed_of(run: Run) -> int | None:
    """Returns the run's seed, from its manifest or its configuration."""
    for source in (run.manifest, run.config):
        if isinstance(source.get("seed"), int):
            return source["seed"]
    return None


def _unique(labels: list[str], runs: list[Run]) -> list[str]:
    seen = Counter(labels)
    return [
        f"{label} · {run.name}" if seen[label] > 1 and label != run.name else label
        for label, run in zip(labels, runs, strict=True)
    ]


def _value_key(value: str) -> tuple[int, float, list[tuple[int, str]]]:
    try:
        return (0, float(json.loads(value)), [])
    except (ValueError, TypeError):
        return (1, 0.0, natural_key(value))
