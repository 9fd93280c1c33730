"""IFEval: every instruction followed and not followed, strict and loose, and the published prompts."""

from __future__ import annotations

import builtins
import json

import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from alignment.config.paths import conf_dir
from alignment.data.records import RecordKind
from alignment.data.sources import FileSource
from alignment.rewards.errors import checked_scores
from alignment.rewards.ifeval import loose_texts
from alignment.rewards.ifeval_checks import CHECKS, compare, count_sentences, words
from alignment.types import Rewards, Rollout
from alignment.utils.errors import BrokenJudgeError, UserError

CONFIG = OmegaConf.load(conf_dir() / "reward" / "ifeval.yaml")
ENGLISH = "The quick brown fox jumps over the lazy dog while the children are watching from the window"
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund, während die Kinder aus dem Fenster schauen."

# Name, arguments, a text that follows, texts that do not.
CASES = [
    ("keywords:existence", {"keywords": ["Intern", "grow"]}, "Internships let you GROW.", ["An intern.", "grow"]),
    ("keywords:frequency", {"keyword": "fox", "frequency": 2, "relation": "at least"}, "Fox and foxes", ["A fox"]),
    ("keywords:frequency", {"keyword": "fox", "frequency": 2, "relation": "less than"}, "A fox", ["fox fox"]),
    ("keywords:forbidden_words", {"forbidden_words": ["can", "ride"]}, "Candid pride", ["I CAN", "a ride!"]),
    ("keywords:letter_frequency", {"letter": "t", "let_frequency": 3, "let_relation": "at least"}, "That t", ["that"]),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 1, "let_relation": "less than"}, "a", ["#a"]),
    ("language:response_language", {"language": "de"}, GERMAN, [ENGLISH, "123"]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        "One. Two! Three?",
        ["One. Two", "One... Dr. Two is not three."],
    ),
    ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"}, "One.", ["One. Two."]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\nTwo", ["One", "a\n***\nb\n***\nc"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "a well-known dog", ["a-b-c d"]),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "two words", ["now three words"]),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "elm"},
        "Oak is one.\n\n*Elm* is the other.",
        ["Oak\n\nAsh", "Elm\n\nOak", "Oak\n\nElm\n\nAsh", "Oak\nElm", "Oak\n\nelms"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        "Dear [name], at [address]",
        ["Dear [name]", "[] []"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "Bye.\n\np. s. Write!",
        ["Bye", "PS me", "P.P.S. x"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye. P.P.S. Write!", ["Bye. P.S. Write!"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        "Two:\n* one\n - two\n",
        ["* one", "* one\n* two\n* three", "**bold**\n*it*"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        "Well. My answer is maybe.",
        ["Maybe.", "My answer is yes. My answer is no."],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "*one* and **two**",
        ["*one*", "**both of them**", "** ** and * *", "* a bullet\n* another"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 2},
        "Day 1\nwork\nDay 2\nrest",
        ["Day 1 only", "Day one, Day two", "day 1, day 2", "Monday 1, Monday 2"],
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', ["{a: 1}", 'Here:\n{"a": 1}', "```json\n```"]),
    ("detectable_format:json_format", {}, ' {"a": [1, 2]}\n', ["", '{"a": 1']),
    ("detectable_format:title", {}, "<<A Day>>\nIt was.", ["<A Day>", "<<>> nothing", "<<  >>", "<<two\nlines>>"]),
    (
        "combination:two_responses",
        {},
        "Yes\n******\nNo",
        ["Yes", "Yes******Yes", "a******b******c", "a***b", "a******"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a  Limerick.\n"},
        "\nwrite a  limerick.\nThere was",
        ["Sure: Write a  Limerick.", "Write a limerick."],
    ),
    ("startend:end_checker", {"end_phrase": "Peace!"}, '"So be it. peace!"\n', ["Peace! And so on", "peace"]),
    ("startend:quotation", {}, ' "All of it"\n', ['"Not all" of it', '"', "none"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "NASA and well-known ESA-ESTEC",
        ["NASA and Esa"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "less than"},
        "a Dog",
        ["A dog"],
    ),
    ("change_case:english_capital", {}, ENGLISH.upper(), [ENGLISH, GERMAN.upper()]),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), [ENGLISH, GERMAN.lower()]),
    ("punctuation:no_comma", {}, "One; two.", ["One, two."]),
]


def rollout(completion: str, ids: object, kwargs: object, **more: object) -> Rollout:
    answer = {"instruction_id_list": ids, "kwargs": kwargs, **more}
    return Rollout("p7", "Write.", (1,), (5, 2), completion, "stop", 0, answer)


def score(completion: str, *instructions: tuple[str, dict], **fields: str) -> Rewards:
    ids, kwargs = [name for name, _ in instructions], [given for _, given in instructions]
    return instantiate(CONFIG, **fields).score([rollout(completion, ids, kwargs)])


def test_there_are_cases_for_all_25():
    assert len(CHECKS) == 25
    assert {case[0] for case in CASES} == set(CHECKS)


@pytest.mark.parametrize(
    ("name", "given", "good", "bad"), CASES, ids=[f"{n}-{place}" for place, (n, *_) in enumerate(CASES)]
)
def test_an_instruction_is_followed_or_not(name, given, good, bad):
    assert score(good, (name, given)).total == (1.0,)
    assert {text: score(text, (name, given)).total for text in bad} == dict.fromkeys(bad, (0.0,))


@pytest.mark.parametrize("name", CHECKS)
def test_an_empty_completion_follows_nothing(name):
    given = next(case[1] for case in CASES if case[0] == name)
    for mode in ("strict", "loose"):
        assert score(" \n", (name, given), mode=mode).total == (0.0,)


def test_the_total_is_a_share_or_all_or_nothing():
    instructions = [
        ("punctuation:no_comma", {}),
        ("startend:quotation", {}),
        ("keywords:existence", {"keywords": ["a"]}),
        ("detectable_format:title", {}),
    ]
    scored = score('"a <<Title>>, b"', *instructions)
    assert scored.total == (0.75,)
    assert scored.components == {"followed": (0.75,), "all_followed": (0.0,)}
    assert score('"a <<Title>>, b"', *instructions, total="all").total == (0.0,)
    assert score('"a <<Title>> b"', *instructions, total="all").total == (1.0,)
    assert instantiate(CONFIG).score([]).total == ()


@pytest.mark.parametrize(
    ("completion", "instruction"),
    [
        ("Sure, here it is:\nNo comma", ("punctuation:no_comma", {})),
        ("No comma\nHope it helps, bye", ("punctuation:no_comma", {})),
        ("Sure, here:\nNo comma\nHope it helps, bye", ("punctuation:no_comma", {})),
        ("**Peace!**", ("startend:end_checker", {"end_phrase": "Peace!"})),
        ("Sure:\n*My answer* is yes.\nBye, bye", ("detectable_format:constrained_response", {})),
    ],
)
def test_loose_forgives_a_first_line_a_last_line_and_asterisks(completion, instruction):
    assert score(completion, instruction).total == (0.0,)
    assert score(completion, instruction, mode="loose").total == (1.0,)


@given(st.text(alphabet="ab*\n,", max_size=30))
def test_loose_is_never_stricter(text):
    instructions = [
        ("punctuation:no_comma", {}),
        ("combination:two_responses", {}),
        ("detectable_format:number_highlighted_sections", {"num_highlights": 1}),
    ]
    assert score(text, *instructions, mode="loose").total[0] >= score(text, *instructions).total[0]
    assert len(loose_texts(text)) == 8
    assert loose_texts(text)[0] == text


@pytest.mark.parametrize(
    ("ids", "kwargs", "message"),
    [
        (["punctuation:no_comas"], [{}], "unknown instruction 'punctuation:no_comas'.*mean 'punctuation:no_comma'"),
        ([3], [{}], "unknown instruction 3"),
        (["punctuation:no_comma"], [], "two lists of one length"),
        ([], [], "two lists of one length"),
        (None, None, r"needs 'instruction_id_list' and 'kwargs'"),
        (["startend:end_checker"], [{}], r"end_checker: missing a required argument: 'end_phrase' in its kwargs: \{\}"),
        (["punctuation:no_comma"], [{"num": 3}], r"no_comma: got an unexpected keyword argument 'num'"),
        (
            ["length_constraints:number_words"],
            [{"num_words": 3, "relation": "around"}],
            "number_words: relation is 'around', expected 'at least' or 'less than'",
        ),
        (["length_constraints:number_words"], [{"num_words": "3", "relation": "at least"}], "'>=' not supported"),
    ],
)  # fmt: skip
def test_a_bad_record_is_named(ids, kwargs, message):
    with pytest.raises(UserError, match=rf"reward=ifeval, prompt p7.*{message}"):
        instantiate(CONFIG).score([rollout("a", ids, kwargs)])


def test_arguments_that_are_null_are_left_out():
    given = {"end_phrase": None, "num_words": 2, "relation": "at least", "keywords": None}
    assert score("a b", ("length_constraints:number_words", given)).total == (1.0,)
    assert instantiate(CONFIG).score([rollout("a", ["punctuation:no_comma"], [None])]).total == (1.0,)


def test_without_the_package_only_a_prompt_with_a_language_is_refused(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "langdetect":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert score("a", ("punctuation:no_comma", {})).total == (1.0,)
    needs_it = [rollout("a", ["language:response_language"], [{"language": "de"}])]
    for error_score in (None, 0.0):  # whose package is missing is no fault of the completion
        with pytest.raises(BrokenJudgeError, match=r"^checking .*pip install 'alignment\[ifeval\]'"):
            checked_scores(instantiate(CONFIG), needs_it, error_score=error_score)


def test_the_language_is_the_same_every_time():
    # Without a seed it is Lithuanian, Portuguese, Italian or Spanish, by chance.
    instructions = [("language:response_language", {"language": language}) for language in ("lt", "pt", "it", "es")]
    reward = instantiate(CONFIG)
    for name, arguments in instructions:
        one = [rollout("Taxi radio video", [name], [arguments])]
        assert len({reward.score(one).total for _ in range(20)}) == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        ("...", 0),
        ("No end", 1),
        ('He said "Stop!" Then he left.', 2),
        ("It costs 3.50 dollars. Really?!", 2),
        ("Mr. J. Smith, e.g. him, is here.", 1),
        ("A title\n\nA sentence.", 1),
        ("今日は晴れ。明日は雨！", 2),
    ],
)
def test_sentences(text, number):
    assert count_sentences(text) == number


@given(
    st.lists(st.sampled_from(["dog", "runs", "well-known", "don't", "4"]), min_size=1, max_size=20), st.integers(1, 25)
)
def test_words_and_relations(tokens, number):
    assert words(" ".join(tokens)) == tokens
    assert compare(len(tokens), "at least", number) is not compare(len(tokens), "less than", number)


def test_the_published_prompts_are_read_and_checked(shared_data):
    records = FileSource(path=str(shared_data / "prompts" / "ifeval.jsonl"), as_chat=True)
    assert records.kind is RecordKind.PROMPT
    answers = [json.loads(row["answer"]) for row in records.load()]
    assert len(answers) == 364
    assert {name for answer in answers for name in answer["instruction_id_list"]} == set(CHECKS)
    texts = (ENGLISH, f'"{ENGLISH.lower()}."', "a, b\n" + ENGLISH)
    for mode in ("strict", "loose"):
        reward = instantiate(CONFIG, mode=mode)
        scored = reward.score(
            [Rollout("p", "x", (1,), (2,), text, "stop", 0, answer) for answer in answers for text in texts]
        )
        assert all(0 <= share <= 1 for share in scored.total)
        assert 0.1 < sum(scored.total) / len(scored.total) < 0.6
        repeated = [answer for answer in answers if "combination:repeat_prompt" in answer["instruction_id_list"]]
        assert len(repeated) == 31
