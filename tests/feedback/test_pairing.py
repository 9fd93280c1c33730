"""From judged roll-outs to preferences."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from alignment.config.paths import conf_dir
from alignment.data.records import Preference, RecordKind, from_row
from alignment.data.sources import FileSource
from alignment.feedback.pairing import BestWorst, write_pairs
from alignment.types import Rewards, Rollout
from alignment.utils.errors import ConfigError

ALWAYS = BestWorst(min_margin=0.0, label_temperature=None, seed=0)


def rollout(prompt_id: str, sample: int, text: str) -> Rollout:
    return Rollout(prompt_id, f"prompt {prompt_id}", (1, 2), (10, sample), text, "stop", sample)


def group(prompt_id: str, *judged: tuple[float, str]) -> list[tuple[float, Rollout]]:
    return [(total, rollout(prompt_id, sample, text)) for sample, (total, text) in enumerate(judged)]


def pair(judged: list[tuple[float, Rollout]], pairing: BestWorst = ALWAYS):
    return pairing([r for _, r in judged], Rewards(tuple(t for t, _ in judged), {}), tokenizer_hash="hash")


def test_best_against_worst_with_tokens_and_margin():
    pairs = pair(group("a", (0.25, "low"), (1.0, "high"), (0.5, "middle")))
    assert pairs.records == (
        Preference(
            id="a", prompt="prompt a", chosen="high", rejected="low", margin=0.75, tokenizer_hash="hash",
            prompt_ids=(1, 2), chosen_ids=(10, 1), rejected_ids=(10, 0),
        ),
    )  # fmt: skip
    assert not pairs.dropped


def test_samples_of_a_prompt_need_not_stand_together():
    judged = [*group("a", (0.0, "x"), (1.0, "y")), *group("b", (1.0, "x"), (0.0, "y"))]
    apart = [judged[0], judged[2], judged[1], judged[3]]
    assert {r.id: (r.chosen, r.rejected) for r in pair(apart).records} == {"a": ("y", "x"), "b": ("x", "y")}


@pytest.mark.parametrize(
    ("judged", "reason"),
    [
        (group("a", (0.5, "x"), (0.5, "y")), "tied rewards"),
        (group("a", (0.5, "x")), "a single sample"),
        (group("a", (0.5, "x"), (0.9, "  ")), "empty completion"),
        (group("a", (0.5, "x"), (0.9, "x")), "equal text"),
    ],
)
def test_what_gives_no_pair_is_counted(judged, reason):
    pairs = pair([*judged, *group("b", (0.0, "x"), (1.0, "y"))])
    assert [record.id for record in pairs.records] == ["b"]
    assert pairs.dropped == {reason: 1}
    assert pairs.statistics == {"pairs": 1, "mean_margin": 1.0, f"dropped: {reason}": 1}


def test_small_margins_are_dropped():
    judged = [*group("a", (0.0, "x"), (0.1, "y")), *group("b", (0.0, "x"), (0.2, "y"))]
    pairs = pair(judged, BestWorst(min_margin=0.2, label_temperature=None, seed=0))
    assert [record.id for record in pairs.records] == ["b"]
    assert pairs.dropped == {"margin below min_margin": 1}


def test_the_order_of_generation_does_not_matter():
    judged = group("a", (1.0, "first"), (1.0, "second"), (0.0, "third"), (0.0, "fourth"))
    assert pair(judged).records == pair(judged[::-1]).records


def test_label_noise_is_bradley_terrys_and_flips_the_margin():
    judged = [item for i in range(2000) for item in group(str(i), (0.0, "x"), (0.1, "y"))]
    pairs = pair(judged, BestWorst(min_margin=0.0, label_temperature=0.1, seed=0))
    kept = sum(record.chosen == "y" for record in pairs.records)
    expected = 1 / (1 + math.exp(-1))
    assert abs(kept / 2000 - expected) < 4 * math.sqrt(expected * (1 - expected) / 2000)
    assert all(record.margin == pytest.approx(0.1 if record.chosen == "y" else -0.1) for record in pairs.records)
    again = pair(judged[:200], BestWorst(min_margin=0.0, label_temperature=0.1, seed=0))
    assert again.records == pairs.records[:100]
    other = pair(judged, BestWorst(min_margin=0.0, label_temperature=0.1, seed=1))
    assert other.records != pairs.records


@pytest.mark.parametrize("prompt", ["Once", [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]])
def test_written_pairs_are_read_back_by_the_data_layer(tmp_path, prompt):
    judged = [*group("a", (0.2, "low é"), (0.9, "high\n2")), *group("b", (0.0, "x"), (1.0, "y"))]
    pairs = pair([(total, replace(rollout, prompt=prompt)) for total, rollout in judged])
    path = tmp_path / "run" / "pairs.jsonl"
    write_pairs(pairs, path)
    assert [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()] == ["a", "b"]
    source = FileSource(path=str(path))
    assert source.kind is RecordKind.PREFERENCE
    assert tuple(from_row(source.kind, row) for row in source.load()) == pairs.records
    assert [entry.name for entry in path.parent.iterdir()] == ["pairs.jsonl"]


@pytest.mark.parametrize(
    ("options", "key"),
    [({"min_margin": -1.0}, "min_margin"), ({"label_temperature": 0.0}, "label_temperature")],
)
def test_bad_options_are_named(options, key):
    with pytest.raises(ConfigError, match=f"pairing.{key}: got"):
        BestWorst(**{"min_margin": 0.0, "label_temperature": None, "seed": 0, **options})


def test_the_config_makes_a_pairing():
    pairing = instantiate(OmegaConf.load(conf_dir() / "pairing" / "best_worst.yaml"))
    assert len(pair(group("a", (0.0, "x"), (1.0, "y")), pairing).records) == 1
