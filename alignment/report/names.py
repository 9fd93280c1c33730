"""What the parts of a run are called in words: method, model, data, reward."""

from __future__ import annotations

import re
from typing import Any

from alignment.report.format import listing
from alignment.report.read import Run


def method_of(run: Run) -> str:
    """Returns the method's class, or the verb of a run that trains nothing."""
    verb = str(run.manifest.get("verb") or "")
    return class_name(run.config.get("method")) or (verb if verb != "train" else "")


def model_of(run: Run) -> str:
    """Returns the model that the run started from."""
    source = section(run, "model").get("source")
    return str(source) if source else node_name(run.config.get("model"))


def is_judge(run: Run) -> bool:
    """Says whether the run trained a model that judges and writes nothing."""
    return section(run, "model").get("head") in ("score", "steps")


def data_of(run: Run) -> str:
    """Returns the data that the run trained on."""
    data = run.config.get("data")
    train = data.get("train") if isinstance(data, dict) else None
    return node_name(train) or node_name(data)


def hardware_of(run: Run) -> str:
    """Returns the hardware in a few words."""
    hardware = section(run, "hardware")
    num = hardware.get("world_size") or hardware.get("devices")
    parts = [
        str(hardware.get("device_name") or hardware.get("accelerator") or ""),
        f"× {num}" if num not in (None, 1, "1") else "",
        str(hardware.get("precision") or ""),
    ]
    strategy = hardware.get("strategy")
    name = class_name(strategy) if isinstance(strategy, dict) else str(strategy or "")
    return " ".join([*filter(None, parts), *([name] if name not in ("", "auto") else [])])


def reward_of(run: Run) -> str:
    """Returns the name in words of the run's reward: ``GoldReward`` becomes ``Gold reward``."""
    return _in_words(run.config.get("reward"))


def guard_of(run: Run) -> str:
    """Returns the name of the reward that judges fresh samples: the run's, or one that nothing is trained on."""
    own = own_guard(run)
    return _in_words(own) if own else reward_of(run)


def own_guard(run: Run) -> Any:
    """Returns the node of the reward that judges fresh samples alone; ``None`` without one."""
    callbacks = run.config.get("callbacks")
    fresh = callbacks.get("fresh_samples") if isinstance(callbacks, dict) else None
    own = fresh.get("reward") if isinstance(fresh, dict) else None
    return None if own == run.config.get("reward") else own


def _in_words(node: Any) -> str:
    name = class_name(node)
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).split()
    if not words:
        return "Reward"
    lowered = [words[0], *(word if word.isupper() else word.lower() for word in words[1:])]
    return " ".join(lowered if lowered[-1].lower() == "reward" else [*lowered, "reward"])


def node_name(node: Any) -> str:
    """Returns what a configuration node is about: its path, or that of a node inside it, else its class."""
    return _path_in(node) or class_name(node)


def class_name(node: Any) -> str:
    """Returns the last part of a node's ``_target_``, or an empty string."""
    return str(node.get("_target_") or "").rpartition(".")[2] if isinstance(node, dict) else ""


def section(run: Run, key: str) -> dict[str, Any]:
    """Returns a nested part of the manifest, empty where there is none."""
    value = run.manifest.get(key)
    return value if isinstance(value, dict) else {}


def same_everywhere(values: list[str]) -> str:
    """Returns the values without repeats, in words.

    >>> same_everywhere(["cpu", "cpu"]), same_everywhere(["a", "", "b"])
    ('cpu', 'a and b')
    """
    return listing(list(dict.fromkeys(value for value in values if value)), most=4)


def _path_in(node: Any) -> str:
    if not isinstance(node, dict):
        return ""
    if isinstance(node.get("path"), str) and node["path"]:
        return node["path"]
    return next((path for child in node.values() if (path := _path_in(child))), "")
