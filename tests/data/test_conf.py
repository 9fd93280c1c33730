"""The data groups compose and build what they say, as a user would type them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from transformers import PreTrainedTokenizerFast

from alignment.data.sources import HubSource
from alignment.types import PreferenceBatch, PromptBatch, SFTBatch

CONF = Path(__file__).parents[2] / "conf"
CHAT = [{"role": "user", "content": "Hi"}]
ROWS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "jsonl": ("data.train.path", {"prompt": "Q", "chosen": "a", "rejected": "b"}, PreferenceBatch),
    "hh": (
        "data.train.path",
        {"chosen": "\n\nHuman: Hi {}\n\nAssistant: a", "rejected": "\n\nHuman: Hi {}\n\nAssistant: b"},
        PreferenceBatch,
    ),
    "ultrafeedback": ("data.train.path", {"prompt": "Q", "chosen": "a", "rejected": "b"}, PreferenceBatch),
    "demonstrations": ("data.train.path", {"instruction": "Q", "input": "", "output": "a"}, SFTBatch),
    "openings": ("data.train.source.path", {"text": "{} one two three four five six seven eight nine"}, PromptBatch),
}


@pytest.mark.parametrize("name", ROWS)
def test_group_reads_a_local_file(
    name: str, write_jsonl: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    key, row, batch_type = ROWS[name]
    rows = [
        {field: value.format(number) if "{}" in value else f"{value}{number}" for field, value in row.items()}
        for number in range(8)
    ]
    overrides = [f"data={name}", f"{key}={write_jsonl(rows)}", "data.validation_size=2", "data.batch_size=2"]
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", overrides=overrides)
    make = instantiate(cfg.data, _convert_="all")
    data = make(tokenizer=tokenizer, batch_type=batch_type, seed=1, cache_dir=tmp_path / "cache")
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, batch_type)
    assert (data.num_train_records, data.num_validation_records) == (6, 2)


@pytest.mark.parametrize(
    ("name", "has_answers"), [("", True), ("_demonstrations", True), ("_steps", True), ("_outcomes", False)]
)
def test_answers_are_rewarded_where_records_bring_them(name: str, has_answers: bool) -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", overrides=[f"data=world_chains{name}", "data.validation.num_records=1"])
    (row,) = instantiate(cfg.data.validation).load()
    assert (row["answer"] != "{}") is has_answers
    assert (cfg.reward is not None) is has_answers


def test_pairs_from_labels_in_the_users_words(
    write_jsonl: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    rows = [{"q": f"Q{number // 3}", "a": f"a{number}", "says": ["1_ok", "bad", 3][number % 3]} for number in range(12)]
    overrides = ["data=pairs_from_labels", f"data.train.source.path={write_jsonl(rows)}", "data.validation_size=1"]
    overrides += ["data.train.source.columns={prompt: q, completion: a, label: says}"]
    overrides += ["data.train.source.label_values={1_ok: true, bad: false, 3: null}"]
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", overrides=overrides)
    make = instantiate(cfg.data, _convert_="all")
    data = make(tokenizer=tokenizer, batch_type=PreferenceBatch, seed=1, cache_dir=tmp_path / "cache")
    assert (data.num_train_records, data.num_validation_records) == (3, 1)


@pytest.mark.parametrize("name", ["hh", "ultrafeedback"])
def test_group_without_a_path_is_the_hubs(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", overrides=[f"data={name}"])
    source = instantiate(cfg.data.train, _convert_="all")
    assert isinstance(source, HubSource)
    assert source.path == cfg.data.train.hub.path
    assert source.on_bad_row == "drop"
