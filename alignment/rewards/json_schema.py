"""A reward for JSON that fits a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignment.rewards.reading import field_names, record_error
from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError, UserError

_FENCED = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)\n[ \t]*```", re.DOTALL)


class JsonSchemaReward:
    r"""1 where the completion is JSON that a JSON Schema accepts, else 0.

    Read is the whole completion, and if that is no JSON its last block between \`\`\`json and \`\`\`. ``NaN`` and
    ``Infinity`` are no JSON. The schema's draft is the one that its ``$schema`` names, else 2020-12; ``format`` is not
    checked, and a ``$ref`` never leads out of the schema: nothing is fetched.

    Components: ``parses`` and ``valid``.

    Args:
        schema: The schema itself, or ``None``.
        path: A JSON file with the schema, or ``None``.
        field: The field of the record's answer with the schema, as a mapping or as JSON text, or ``None``.
        max_characters: A longer completion counts as no JSON. It bounds the time that a schema's patterns take.

    Raises:
        ConfigError: Not exactly one of schema, path and field, or no schema.
        UserError: The package ``jsonschema`` is not installed.
    """

    def __init__(
        self, *, schema: dict[str, Any] | None, path: str | None, field: str | None, max_characters: int
    ) -> None:
        try:
            import jsonschema as _  # noqa: F401
        except ImportError as error:
            raise UserError(
                "reward=json_schema needs the package jsonschema, which is not installed: "
                "pip install 'alignment[json]' (or pip install jsonschema)"
            ) from error
        given = {
            name: value for name, value in (("schema", schema), ("path", path), ("field", field)) if value is not None
        }
        if len(given) != 1:
            expected = "exactly one of reward.schema, reward.path and reward.field"
            raise ConfigError("reward.schema", got=", ".join(given) or None, expected=expected)
        if max_characters < 1:
            raise ConfigError("reward.max_characters", got=max_characters, expected="at least 1")
        self.field = field
        self.max_characters = max_characters
        if field is None:
            key, found = ("reward.schema", schema) if path is None else ("reward.path", _read(path))
            try:
                self._accepts = _acceptor(json.dumps(found))
            except ValueError as error:
                raise ConfigError(key, got=path or schema, expected="a JSON Schema", hint=str(error)) from error

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Reads each completion.

        Raises:
            BlamedError: A record has no schema under ``field``, or a schema refers to something outside itself.
        """
        parses, valid = [], []
        for rollout in rollouts:
            accepts = self._accepts if self.field is None else self._of_record(rollout, self.field)
            found = _parsed(rollout.completion) if len(rollout.completion) <= self.max_characters else []
            parses.append(float(bool(found)))
            try:
                valid.append(float(any(map(accepts, found))))
            except ValueError as error:
                raise record_error(rollout, reward="json_schema", message=str(error)) from error
        return Rewards(total=tuple(valid), components={"parses": tuple(parses), "valid": tuple(valid)})

    def _of_record(self, rollout: Rollout, field: str) -> Callable[[Any], bool]:
        what = f"its record's '{field}'"
        schema = rollout.answer.get(field)
        if schema is None:
            message = f"{what} is missing (it has {field_names(rollout)}). Name the schema's field in reward.field"
            raise record_error(rollout, reward="json_schema", message=message)
        try:
            return _acceptor(schema if isinstance(schema, str) else json.dumps(schema))
        except ValueError as error:
            message = f"{what} is no JSON Schema: {error}"
            raise record_error(rollout, reward="json_schema", message=message) from error


@lru_cache(maxsize=256)
def _acceptor(schema: str) -> Callable[[Any], bool]:
    """Returns what says whether a value fits a schema.

    Raises:
        ValueError: It is no schema; from the function that is returned: the schema refers to another.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable

    loaded: Any = json.loads(schema)
    if not isinstance(loaded, dict):
        raise ValueError(f"a {type(loaded).__name__} where a mapping is expected")  # noqa: TRY004
    kind = validator_for(loaded, default=Draft202012Validator)
    try:
        kind.check_schema(loaded)
    except SchemaError as error:
        raise ValueError(f"{error.json_path}: {error.message}") from error
    # The specifications' own registry: without one jsonschema would fetch what a $ref names.
    validator = kind(loaded, registry=REGISTRY)

    def accepts(value: Any) -> bool:
        try:
            return validator.is_valid(value)
        except Unresolvable as error:
            raise ValueError(f"the schema refers to something outside itself, {error.ref!r}") from error
        except RecursionError:
            return False

    return accepts


def _parsed(text: str) -> list[Any]:
    """Returns the JSON value of a text in a list, or an empty list."""
    for candidate in (text, *_FENCED.findall(text)[-1:]):
        try:
            return [json.loads(candidate, parse_constant=_refuse)]
        except (ValueError, RecursionError):
            continue
    return []


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _read(path: str) -> Any:
    try:
        return json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("reward.path", got=path, expected="a file with a JSON Schema", hint=str(error)) from error
