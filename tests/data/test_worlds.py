"""The embedded world: its texts, its true reward, its data sets and its tokenizer."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
from itertools import pairwise, zip_longest
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data.features import RECORD_FEATURES
from alignment.data.records import RecordKind, from_row
from alignment.data.worlds import reviews
from alignment.data.worlds.reviews import NEGATIVE, POSITIVE, gold_reward, parse_prompt, parse_sentences
from alignment.data.worlds.sources import (
    WorldDemonstrations,
    WorldFeedback,
    WorldPreferences,
    WorldPrompts,
    preference_probability,
)
from alignment.data.worlds.tokenizer import world_tokenizer
from alignment.utils.errors import ConfigError

FORMAL = "Write a formal review of the soup at the castle."
CASUAL = "Write a casual review of the soup at the castle."
PAIRS = {"num_records": 10, "seed": 0, "split": "train", "temperature": 0.1, "pairs": "independent"}
FEEDBACK = {"num_records": 10, "seed": 0, "split": "train", "temperature": 0.1, "keep_desirable": 0.5}
SOURCES = [
    WorldDemonstrations(num_records=40, seed=0, split="train"),
    WorldPreferences(num_records=40, seed=0, split="train", temperature=0.1, pairs="independent"),
    WorldFeedback(num_records=40, seed=0, split="train", temperature=0.1, keep_desirable=1.0),
    WorldPrompts(num_records=40, seed=0, split="train"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return world_tokenizer()


@pytest.fixture(scope="module")
def written() -> list[tuple[str, str]]:
    random, prompts = Random(0), reviews.prompts("train")
    chosen = [random.choice(prompts) for _ in range(1500)]
    return [(prompt, reviews.sample_completion(parse_prompt(prompt), random=random)) for prompt in chosen]


def test_prompts_are_many_and_the_held_out_ones_ask_for_other_things():
    train, held_out = reviews.prompts("train"), reviews.prompts("held_out")
    assert len(set(train)) == len(train) > 500
    assert len(set(held_out)) == len(held_out) > 128

    def pairs(prompts):
        return {(request.thing, request.place) for request in map(parse_prompt, prompts)}

    assert not pairs(train) & pairs(held_out)
    # Nothing in a held-out prompt is new by itself: each thing and each place was trained on.
    assert {thing for thing, _ in pairs(held_out)} <= {thing for thing, _ in pairs(train)}
    assert {place for _, place in pairs(held_out)} <= {place for _, place in pairs(train)}


def test_a_prompt_is_read_back():
    for prompt in reviews.prompts("train"):
        request = parse_prompt(prompt)
        assert request.register in prompt
        assert request.thing in prompt
        assert request.place in prompt
    chat = [{"role": "system", "content": "x"}, {"role": "user", "content": CASUAL}]
    assert parse_prompt(chat) == parse_prompt(CASUAL)
    with pytest.raises(ValueError, match="not a prompt of the reviews world: 'Once upon a time'"):
        parse_prompt("Once upon a time")


def test_every_written_review_parses_and_is_on_topic(written):
    golds = [gold_reward(prompt, completion) for prompt, completion in written]
    assert all(gold.on_topic == 1 for gold in golds)
    # A review may say the same sentence twice, which then counts once.
    assert statistics.mean(gold.grammar for gold in golds) > 0.995


def test_the_rewards_of_the_base_distribution_are_middling_and_spread(written):
    totals = [gold_reward(prompt, completion).total for prompt, completion in written]
    assert 0.45 < statistics.mean(totals) < 0.65
    assert statistics.stdev(totals) > 0.12
    assert min(totals) < 0.25
    assert max(totals) > 0.85


def test_reward_by_hand():
    # 2 words of praise and none of blame: 0.5 + 0.5 * 2/3; both sentences casual; 9 words: (9 - 2) / (14 - 2).
    gold = gold_reward(CASUAL, "Wow, the soup was great! Hey, that price was lovely!")
    assert gold.sentiment == pytest.approx(0.5 + 1 / 3)
    assert gold.style == 1
    assert gold.length == pytest.approx(8 / 12)
    assert (gold.grammar, gold.on_topic) == (1, 1)
    assert gold.total == pytest.approx(0.5 * (0.5 + 1 / 3) + 0.3 + 0.2 * 8 / 12)


@pytest.mark.parametrize(
    ("better", "worse", "component"),
    [
        ("The soup was great.", "The soup was plain.", "sentiment"),
        ("The soup was plain.", "The soup was awful.", "sentiment"),
        ("The soup was plain.", "The soup was not great.", "sentiment"),
        ("The soup was not awful.", "The soup was awful.", "sentiment"),
        ("We found the soup to be great.", "The soup was great.", "style"),
        ("The soup was great.", "Wow, the soup was great!", "style"),
        ("It should be noted that the soup was great.", "The soup was great.", "length"),
        ("The soup was great.", "The lamp was great.", "on_topic"),
        ("The soup was great.", "The soup was great. The lamp was great.", "on_topic"),
        ("The soup was great.", "The soup was great. soup great great.", "grammar"),
    ],
)
def test_what_each_component_prefers(better, worse, component):
    assert getattr(gold_reward(FORMAL, better), component) > getattr(gold_reward(FORMAL, worse), component)


def test_style_is_what_the_prompt_asks_for():
    text = "Honestly, the soup was just great!"
    assert gold_reward(CASUAL, text).total > gold_reward(FORMAL, text).total


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \n",
        "great",
        "great great great great great great great great",
        " ".join(POSITIVE),
        ". . . ! ! ?",
        "The soup was great",
        "the soup was great.",
        "The soup was great and lovely and superb and perfect.",
        "The soup was greatgreat.",
        "\x00\x01\ud800 \u202e 漢字 🎉!",
        "a" * 100_000 + "!",
        "Wow, " * 5000,
        "We found the We found the We found the soup.",
    ],
)
def test_garbage_earns_nothing(text):
    assert gold_reward(FORMAL, text).total == 0


def test_words_that_do_not_parse_cost_their_share():
    good = "We found the soup to be great. In our view, the price was lovely."
    # 14 words that parse; 4 that do not leave the length at its best.
    mixed = gold_reward(FORMAL, f"{good} great great great great.")
    assert mixed.grammar == pytest.approx(14 / 18)
    assert mixed.total == pytest.approx(14 / 18 * gold_reward(FORMAL, good).total)


def test_repetition_does_not_pay():
    once = "We found the soup to be great. In our view, the price was lovely."
    best = gold_reward(FORMAL, once).total
    for times in (2, 3, 10, 200):
        assert gold_reward(FORMAL, " ".join([once] * times)).total < best
    same_word = "We found the soup to be great. In our view, the price was great."
    assert gold_reward(FORMAL, same_word).sentiment < gold_reward(FORMAL, once).sentiment


def test_praise_saturates_and_length_has_an_optimum():
    sentences = [f"We found the {thing} to be {word}." for thing, word in zip(reviews.ASPECTS, POSITIVE, strict=False)]
    golds = [gold_reward(FORMAL, " ".join(sentences[:n])) for n in range(1, 9)]
    gains = [b.sentiment - a.sentiment for a, b in pairwise(golds)]
    assert all(0 < later < earlier for earlier, later in pairwise(gains))
    totals = [gold.total for gold in golds]
    assert totals.index(max(totals)) in (1, 2)
    assert golds[-1].length == 0


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=200) | st.lists(st.sampled_from([*POSITIVE, *NEGATIVE, "The soup was great.", "!"])).map(" ".join)
)
def test_any_text_at_all_is_judged_within_bounds(text):
    gold = gold_reward(CASUAL, text)
    for value in (gold.total, gold.sentiment, gold.style, gold.length, gold.grammar, gold.on_topic):
        assert 0 <= value <= 1
    if not parse_sentences(text):
        assert gold.total == 0


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.kind))
def test_a_source_gives_records_of_its_kind_and_the_same_each_time(source):
    table = source.load()
    assert len(table) == 40
    assert table.features == RECORD_FEATURES[source.kind]
    records = [from_row(source.kind, row) for row in table]
    assert len({record.id for record in records}) == 40
    assert all(record.kind is source.kind for record in records)
    assert records == [from_row(source.kind, row) for row in source.load()]


def preferences(**changes):
    return WorldPreferences(**{**PAIRS, **changes})


def feedback(**changes):
    return WorldFeedback(**{**FEEDBACK, **changes})


@pytest.mark.parametrize("make", [preferences, feedback])
def test_a_longer_set_begins_with_the_shorter_and_another_seed_is_another_set(make):
    short, long, other = (
        make(**changes).load().to_list() for changes in ({}, {"num_records": 20}, {"seed": 1, "num_records": 20})
    )
    assert short == long[: len(short)]
    assert len(long) > len(short) > 0
    assert not {row["id"] for row in long} & {row["id"] for row in other}


@pytest.mark.parametrize(
    ("make", "own"), [(preferences, {"pairs": "near_duplicate"}), (feedback, {"keep_desirable": 0.4})]
)
def test_the_fingerprint_covers_every_argument(make, own):
    changes = [{}, {"num_records": 11}, {"seed": 1}, {"split": "held_out"}, {"temperature": 0.2}, own]
    prints = [make(**change).fingerprint for change in changes]
    demonstrations = WorldDemonstrations(num_records=10, seed=0, split="train").fingerprint
    assert len({*prints, demonstrations}) == 7
    assert prints[0] == make().fingerprint


def test_splits_do_not_share_prompts():
    train = WorldDemonstrations(num_records=200, seed=0, split="train").load()[:]["messages"]
    held_out = WorldPrompts(num_records=200, seed=0, split="held_out").load()[:]["messages"]
    assert not {m[0]["content"] for m in train} & {m[0]["content"] for m in held_out}
    assert len({m[0]["content"] for m in held_out}) == 200


def test_prompts_are_spread_over_the_split():
    contents = [m[0]["content"] for m in WorldPrompts(num_records=16, seed=0, split="held_out").load()[:]["messages"]]
    assert len({parse_prompt(content).thing for content in contents}) > 10
    assert len({parse_prompt(content).register for content in contents}) == 2


def test_preferences_are_labelled_by_the_reward():
    rows = preferences(num_records=300, temperature=0.0).load()
    for row in rows:
        assert row["chosen"] != row["rejected"]
        chosen, rejected = (gold_reward(row["messages"], row[name]).total for name in ("chosen", "rejected"))
        assert chosen >= rejected


def test_label_noise_is_bradley_terrys():
    rows = preferences(num_records=2000).load()
    gaps = [
        gold_reward(row["messages"], row["chosen"]).total - gold_reward(row["messages"], row["rejected"]).total
        for row in rows
    ]
    agreed = sum(gap > 0 for gap in gaps) + 0.5 * sum(gap == 0 for gap in gaps)
    expected = sum(preference_probability(abs(gap), temperature=0.1) for gap in gaps)
    spread = math.sqrt(sum(p * (1 - p) for p in (preference_probability(abs(g), temperature=0.1) for g in gaps)))
    assert abs(agreed - expected) < 4 * spread
    assert 0.7 < agreed / 2000 < 0.95


def test_the_sides_of_a_near_duplicate_differ_in_one_adjective():
    kinds = {word: kind for kind in reviews.ADJECTIVES for word in kind}
    rows = preferences(num_records=300, pairs="near_duplicate").load()
    moved = []
    for row in rows:
        words = [row[side].replace(".", " .").replace("!", " !").split() for side in ("chosen", "rejected")]
        ((chosen, rejected),) = [(a, b) for a, b in zip_longest(*words) if a != b]
        assert kinds[chosen] is not kinds[rejected]
        moved.append(kinds[chosen] is POSITIVE or kinds[rejected] is NEGATIVE)
        assert gold_reward(row["messages"], row["rejected"]).grammar > 0.4
    # Which of the two is natural, and which was made, says nothing; the reward decides, with noise.
    assert 0.6 < statistics.mean(moved) < 0.95


@pytest.mark.parametrize(("pairs", "grows"), [("independent", True), ("length_neutral", False)])
def test_what_is_chosen_is_longer_unless_length_plays_no_part(pairs, grows, tokenizer):
    rows = preferences(num_records=3000, pairs=pairs).load()
    more = [len(tokenizer(row["chosen"])["input_ids"]) - len(tokenizer(row["rejected"])["input_ids"]) for row in rows]
    error = statistics.stdev(more) / math.sqrt(len(more))
    assert (statistics.mean(more) > 4 * error) == grows
    assert grows or abs(statistics.mean(more)) < 2 * error


def test_feedback_is_both_sides_of_the_pairs_and_only_thumbs_up_are_left_out():
    pairs = preferences(num_records=200).load().to_list()
    sides = {(row[side], side == "chosen") for row in pairs for side in ("chosen", "rejected")}
    every, few = (feedback(num_records=400, keep_desirable=kept).load().to_list() for kept in (1.0, 0.1))
    assert {(row["completion"], row["label"]) for row in every} == sides
    assert [row for row in few if not row["label"]] == [row for row in every if not row["label"]]
    assert len(every) == 400
    kept = [row for row in few if row["label"]]
    assert 8 < len(kept) < 35
    assert all(row in every for row in kept)


@pytest.mark.parametrize(
    ("gap", "temperature", "probability"),
    [(0.0, 0.1, 0.5), (0.1, 0.1, 1 / (1 + math.exp(-1))), (-0.1, 0.1, 1 / (1 + math.e)), (1.0, 1e-320, 1.0),
     (-1.0, 1e-320, 0.0), (0.0, 0.0, 0.5), (-0.2, 0.0, 0.0), (-1.0, 1e-4, 0.0)],
)  # fmt: skip
def test_preference_probability(gap, temperature, probability):
    assert preference_probability(gap, temperature=temperature) == pytest.approx(probability)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WorldDemonstrations(num_records=0, seed=0, split="train"), "num_records: got 0"),
        (lambda: WorldDemonstrations(num_records=1, seed=0, split="test"), "split: got 'test'"),
        (lambda: preferences(temperature=-1.0), "temperature: got -1"),
        (lambda: preferences(temperature=math.nan), "temperature: got nan"),
        (lambda: preferences(pairs="near"), "pairs: got 'near'"),
        (lambda: feedback(keep_desirable=1.5), "keep_desirable: got 1.5"),
        (lambda: WorldPrompts(num_records=10_000, seed=0, split="held_out"), "at most 208"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_tokenizer_is_the_same_in_every_process(tokenizer):
    code = "from alignment.data.worlds.tokenizer import world_tokenizer as t; print(t().backend_tokenizer.to_str())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == tokenizer.backend_tokenizer.to_str()


def test_t1_a_conversation_has_one_bos_and_its_answer_ends_with_eos(tokenizer):
    messages = [{"role": "user", "content": FORMAL}, {"role": "assistant", "content": "The soup was great."}]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    answer = tokenizer("The soup was great.")["input_ids"]
    assert [*asked, *answer, tokenizer.eos_token_id] == ids
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60).filter(lambda text: "<|" not in text))
def test_any_text_survives_the_tokenizer(text):
    tokenizer = world_tokenizer_once()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


_ONCE: list = []


def world_tokenizer_once():
    if not _ONCE:
        _ONCE.append(world_tokenizer())
    return _ONCE[0]


def test_sequences_are_short_and_words_are_single_tokens(tokenizer, written):
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": p}], add_generation_prompt=True,
                                             return_dict=False) for p, _ in written[:200]]  # fmt: skip
    lengths = [len(tokenizer(completion)["input_ids"]) + 1 for _, completion in written]
    assert max(map(len, prompts)) <= 24
    assert 15 < statistics.mean(lengths) < 30
    assert max(lengths) < 48
    words = [*reviews.THINGS, *reviews.PLACES, *POSITIVE, *NEGATIVE]
    assert all(len(tokenizer(f" {word}")["input_ids"]) == 1 for word in words)


def test_an_unknown_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="unknown role: narrator"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "x"}])


def test_kinds():
    assert [source.kind for source in SOURCES] == [
        RecordKind.DEMONSTRATION,
        RecordKind.PREFERENCE,
        RecordKind.BINARY,
        RecordKind.PROMPT,
    ]
