"""Rewards that check a form: a pattern, a JSON Schema, n-grams."""

from __future__ import annotations

import builtins
import json
import time

import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from alignment.config.paths import conf_dir
from alignment.rewards.repetition import repeated_share
from alignment.types import Rollout
from alignment.utils.errors import ConfigError, UserError

REGEX, JSON, REPETITION = (OmegaConf.load(conf_dir() / "reward" / f"{name}.yaml")
                           for name in ("regex", "json_schema", "repetition"))  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def rollout(completion: str, tokens: tuple[int, ...] = (5, 2), **answer: object) -> Rollout:
    return Rollout("p7", "Say it.", (1,), tokens, completion, "stop", 0, answer)


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("<think>a\nb</think><answer>4</answer>", 1.0),
        ("\n<think></think>\n\n<answer>4</answer>\n", 1.0),
        ("<think>a</think>", 0.0),
        ("So: <think>a</think><answer>4</answer>", 0.0),
        ("<think>a</think><answer>4</answer> Done", 0.0),
        ("<answer>4</answer><think>a</think>", 0.0),
        ("", 0.0),
    ],
)
def test_the_format_of_the_shipped_pattern(completion, value):
    assert instantiate(REGEX).score([rollout(completion)]).total == (value,)


def test_search_wants_a_part_and_fullmatch_the_whole():
    texts = [rollout(text) for text in ("abc", "b", "c", "a\nb")]
    assert instantiate(REGEX, pattern="b", match="search").score(texts).total == (1.0, 1.0, 0.0, 1.0)
    assert instantiate(REGEX, pattern="b", match="fullmatch").score(texts).total == (0.0, 1.0, 0.0, 0.0)
    assert instantiate(REGEX, pattern="a.b", match="search").score(texts).total == (0.0,) * 4
    assert instantiate(REGEX, pattern="(?s)a.b", match="search").score(texts).total == (0.0, 0.0, 0.0, 1.0)


def test_a_completion_that_is_too_long_is_not_looked_at():
    reward = instantiate(REGEX, pattern="a*", max_characters=3)
    scored = reward.score([rollout("aaa"), rollout("aaaa")])
    assert (scored.total, scored.components) == ((1.0, 0.0), {"too_long": (0.0, 1.0)})
    # Exponential in 40 characters: had it been looked at, this test would not end.
    start = time.monotonic()
    assert instantiate(REGEX, pattern="(a+)+", max_characters=39).score([rollout("a" * 40 + "b")]).total == (0.0,)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": "("}, r"reward\.pattern: got '\(', expected a regular expression"),
        ({"max_characters": 0}, r"reward\.max_characters: got 0"),
    ],
)
def test_a_bad_field_of_regex_is_named(change, message):
    with pytest.raises(Exception, match=message) as caught:
        instantiate(REGEX, **change)
    assert isinstance(caught.value.__cause__, ConfigError)


@pytest.mark.parametrize(
    ("completion", "parses", "valid"),
    [
        ('{"name": "Ann", "age": 3}', 1.0, 1.0),
        ('  {"name": "Ann"}\n', 1.0, 1.0),
        ('{"name": "Ann", "age": -3}', 1.0, 0.0),
        ('{"age": 3}', 1.0, 0.0),
        ('{"name": "Ann", "x": 1}', 1.0, 0.0),
        ("[]", 1.0, 0.0),
        ('{"name": "Ann"', 0.0, 0.0),
        ("", 0.0, 0.0),
        ('{"name": "Ann", "age": NaN}', 0.0, 0.0),
        ('{"name": "Ann", "age": Infinity}', 0.0, 0.0),
        ('{"name": "Ann", "age": ' + "9" * 5000 + "}", 0.0, 0.0),
        ("[" * 20000 + "]" * 20000, 0.0, 0.0),
        ('Here it is:\n```json\n{"name": "Ann"}\n```\nDone.', 1.0, 1.0),
        ('```\n{"name": "Ann"}\n```', 1.0, 1.0),
        ('```json\n{"name": 1}\n```\nNo:\n```json\n{"name": "Ann"}\n```', 1.0, 1.0),
        ('```json\n{"name": "Ann"}\n```\nNo:\n```json\n{"name": 1}\n```', 1.0, 0.0),
        ("```python\nprint()\n```", 0.0, 0.0),
    ],
)
def test_json_parses_and_fits(completion, parses, valid):
    scored = instantiate(JSON, schema=SCHEMA, field=None, _convert_="all").score([rollout(completion)])
    assert scored.components == {"parses": (parses,), "valid": (valid,)}
    assert scored.total == (valid,)


def test_the_schema_may_come_from_a_file_or_from_the_record(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    texts = ('{"name": "Ann"}', "{}")
    assert instantiate(JSON, path=str(path), field=None).score(list(map(rollout, texts))).total == (1.0, 0.0)
    of_records = [rollout(texts[0], schema={"type": "array"}), rollout(texts[0], schema=json.dumps(SCHEMA))]
    assert instantiate(JSON).score(of_records).total == (0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"reward\.schema: got 'schema, field', expected exactly one of"),
        ({"field": None, "schema": None}, r"reward\.schema: got None, expected exactly one of"),
        (
            {"field": None, "schema": {"type": "text"}},
            r"reward\.schema: .*expected a JSON Schema. \$\.type: 'text' is not",
        ),
        ({"field": None, "schema": None, "path": "no/such.json"}, r"reward\.path: got 'no/such.json'"),
        ({"max_characters": 0, "schema": None}, r"reward\.max_characters: got 0"),
    ],
)
def test_a_bad_schema_is_named(change, message):
    with pytest.raises(Exception, match=message) as caught:
        instantiate(JSON, **{"schema": SCHEMA, **change}, _convert_="all")
    assert isinstance(caught.value.__cause__, ConfigError)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"other": 1}, r"reward=json_schema, prompt p7: its record's 'schema' is missing \(it has other\)"),
        ({"schema": {"type": 1}}, r"prompt p7: its record's 'schema' is no JSON Schema: \$\.type"),
        ({"schema": "{"}, r"prompt p7: its record's 'schema' is no JSON Schema"),
        ({"schema": [1]}, r"prompt p7: .*is no JSON Schema: a list where a mapping is expected"),
        ({"schema": {"$ref": "https://example.com/a.json"}}, "outside itself, 'https://example.com/a.json'"),
    ],
)
def test_a_records_bad_schema_is_named_and_nothing_is_fetched(answer, message, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("it went to the network"))
    with pytest.raises(UserError, match=message):
        instantiate(JSON).score([rollout("{}", **answer)])


def test_a_schema_may_refer_to_itself():
    nested = {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}
    assert instantiate(JSON).score([rollout(text, schema=nested) for text in ("[[], [[]]]", "[1]")]).total == (1.0, 0.0)


def test_the_missing_package_is_named(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "jsonschema":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Exception, match=r"reward=json_schema needs .*pip install 'alignment\[json\]'"):
        instantiate(JSON)


@pytest.mark.parametrize(
    ("tokens", "n", "penalty"),
    [
        ((1, 2, 3, 4), 2, 0.0),
        ((1, 2, 1, 2, 1), 2, -0.5),
        ((7, 7, 7, 7), 1, -0.75),
        ((7, 7, 7, 7), 4, 0.0),
        ((7, 7, 7), 4, 0.0),
        ((), 1, 0.0),
    ],
)
def test_repeated_n_grams(tokens, n, penalty):
    assert instantiate(REPETITION, n=n).score([rollout("x", tokens)]).total == (penalty,)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_the_penalty_is_below_one_and_saying_it_all_twice_costs(tokens, n):
    share = repeated_share(tokens, n=n)
    assert 0 <= share < 1
    grams = [str(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    assert share == pytest.approx(1 - len(set(grams)) / len(grams) if grams else 0)
    if len(tokens) >= n:
        assert repeated_share(tokens + tokens, n=n) > 0


def test_n_is_at_least_one():
    with pytest.raises(Exception, match=r"reward\.n: got 0, expected at least 1"):
        instantiate(REPETITION, n=0)
