"""A reward that is a Python function of the user's own, as TRL's trainers call them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch

from alignment.config.targets import check_text, resolve
from alignment.rewards.errors import BlamedError
from alignment.rewards.reading import field_names
from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError, UserError


class CallableReward:
    """What a function ``f(prompts, completions, **columns) -> list[float]`` says of completions.

    The convention is that of TRL's reward functions, so that those written for it work as they are. Every argument is
    a list with an entry a completion: ``prompts``, ``completions``, ``completion_ids``, and the fields of the records'
    answers by name, ``None`` where a record lacks one. Prompts are as in the data; where they are chat messages, a
    completion is the list of the assistant's one message. A function without ``**kwargs`` gets what it names.

    ``None`` in the result says that the function does not apply to a completion: it counts 0, in a sum of rewards as if
    the part were not there, and 0 in the component ``applicable`` (1 elsewhere). What else is no finite number is left
    to :func:`alignment.rewards.errors.checked_scores` to refuse.

    Deviations: TRL's ``trainer_state``, ``log_extra`` and ``log_metric`` do not exist here, and coroutines are refused.

    Args:
        function: Its dotted name, such as ``my_rewards.brevity``. It must be below a module that the environment
            variable ``ALIGNMENT_ALLOW_TARGETS`` allows (see :mod:`alignment.config.targets`): a configuration runs no
            code that its reader has not allowed.

    Raises:
        ConfigError: It is not allowed, cannot be imported, or is no plain function.
    """

    def __init__(self, *, function: str) -> None:
        self.name = function
        self.function = _load(function)
        self.parameters = inspect.signature(self.function).parameters.values()

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Calls the function once.

        Raises:
            UserError: It wants an argument that the records do not bring, or returns no list.
        """
        if not rollouts:
            return Rewards(total=(), components={})
        values = self.function(**self._arguments(rollouts))
        if not isinstance(values, Sequence | torch.Tensor) or isinstance(values, str):
            raise UserError(f"reward.function={self.name} returned a {type(values).__name__}, not a list of numbers")
        plain = [value.item() if isinstance(value, torch.Tensor) else value for value in values]
        return Rewards(
            total=tuple(0.0 if value is None else value for value in plain),
            components={"applicable": tuple(float(value is not None) for value in plain)},
        )

    def _arguments(self, rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
        columns = dict.fromkeys(name for rollout in rollouts for name in rollout.answer)
        given: dict[str, list[Any]] = {name: [rollout.answer.get(name) for rollout in rollouts] for name in columns}
        given["prompts"] = [rollout.prompt for rollout in rollouts]
        given["completions"] = [_completion(rollout) for rollout in rollouts]
        given["completion_ids"] = [list(rollout.completion_ids) for rollout in rollouts]
        if not any(item.kind is item.VAR_KEYWORD for item in self.parameters):
            wanted = {item.name for item in self.parameters}
            given = {name: values for name, values in given.items() if name in wanted}
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        for item in self.parameters:
            if item.kind in kinds and item.default is item.empty and item.name not in given:
                raise BlamedError(
                    f"reward.function={self.name} wants the argument '{item.name}', which prompt "
                    f"{rollouts[0].prompt_id} does not bring: its record's answer has {field_names(rollouts[0])}"
                )
        return given


def _completion(rollout: Rollout) -> Any:
    is_text = isinstance(rollout.prompt, str)
    return rollout.completion if is_text else [{"role": "assistant", "content": rollout.completion}]


def _load(name: str) -> Callable[..., Any]:
    key = "reward.function"
    try:
        check_text(key, name)
        found = resolve(key, name)
    except ConfigError as error:
        raise ConfigError(key, got=error.got, expected=error.expected, hint=error.hint) from error
    except ModuleNotFoundError as error:
        hint = f"{error}. For a module of your own set PYTHONPATH to its folder"
        raise ConfigError(key, got=name, expected="a function that can be imported", hint=hint) from error
    if not isinstance(found, FunctionType) or inspect.iscoroutinefunction(found):
        got = "a coroutine" if inspect.iscoroutinefunction(found) else f"a {type(found).__name__}"
        raise ConfigError(key, got=name, expected="a plain function", hint=f"it is {got}")
    if any(item.kind is item.POSITIONAL_ONLY for item in inspect.signature(found).parameters.values()):
        raise ConfigError(key, got=name, expected="a function whose arguments can be given by name")
    return found
