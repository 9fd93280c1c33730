"""A world of short reviews: a grammar that writes them and the true reward that judges them.

A prompt asks for a formal or a casual review of one thing at one place. A completion is one to three
sentences of a grammar, drawn with a random lean toward praise and a random lean toward formality, so
that independent completions of one prompt have middling rewards with real spread. The true ("gold")
reward reads sentiment, style and length from the text alone; it counts only sentences that parse by
the grammar and that were not said before, so that repetition, word salad and noise earn nothing.

Everything here is a pure function of its arguments: there is no state and no hidden randomness.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random
from typing import Literal

from alignment.data.records import Messages, PromptLike

WORLD_VERSION = 1
"""Part of every fingerprint: raised when the texts or the reward change."""

Register = Literal["formal", "casual"]
Split = Literal["train", "held_out"]

REGISTERS: tuple[Register, ...] = ("formal", "casual")
# fmt: off
THINGS = (
    "soup", "coffee", "bread", "cake", "tea", "bench", "lamp", "window", "painting", "statue", "bridge",
    "fountain", "clock", "piano", "menu", "tower",
)
PLACES = ("harbour", "market", "station", "castle", "library", "museum", "garden", "village")
ASPECTS = ("price", "look", "size", "quality", "finish", "value", "service", "setting")
POSITIVE = (
    "excellent", "lovely", "superb", "delightful", "charming", "splendid", "wonderful", "pleasant", "great",
    "perfect", "brilliant", "impressive",
)
NEGATIVE = (
    "awful", "dreadful", "poor", "dull", "disappointing", "terrible", "unpleasant", "horrible", "bland",
    "sloppy", "weak", "grim",
)
NEUTRAL = ("ordinary", "average", "usual", "plain", "common", "standard", "simple", "typical")
# fmt: on
ADJECTIVES = (POSITIVE, NEGATIVE, NEUTRAL)

REQUESTS = (
    "Write a {register} review of the {thing} at the {place}.",
    "Describe the {thing} at the {place} in a {register} tone.",
    "What is the {thing} at the {place} like? Keep it {register}.",
    "Give me a {register} opinion of the {thing} at the {place}.",
)
SENTENCES: dict[str, tuple[str, ...]] = {
    "formal": (
        "In our view, the {subject} was {judgement}.",
        "We found the {subject} to be {judgement}.",
        "It should be noted that the {subject} was {judgement}.",
        "We consider the {subject} {judgement}.",
    ),
    "casual": (
        "Wow, the {subject} was {judgement}!",
        "Honestly, the {subject} was just {judgement}!",
        "You know, the {subject} is so {judgement}!",
        "Hey, that {subject} was {judgement}!",
    ),
    "plain": (
        "The {subject} was {judgement}.",
        "The {subject} at the {place} was {judgement}.",
    ),
}

WEIGHTS = {"sentiment": 0.5, "style": 0.3, "length": 0.2}
"""What each component adds to the total; they sum to one."""

FULL_LENGTH_WORDS = (14, 20)
"""From this many words to this many the length is worth one."""
ZERO_LENGTH_WORDS = (2, 36)
"""At this few words, and at this many, the length is worth nothing."""


@dataclass(frozen=True)
class Request:
    """What a prompt of this world asks for."""

    register: Register
    thing: str
    place: str


@dataclass(frozen=True)
class Gold:
    """The true reward of a completion; every value lies in [0, 1].

    Attributes:
        total: ``grammar * (0.5 sentiment + 0.3 style + 0.2 length)``.
        sentiment: 0.5 where praise and blame balance, toward 1 with distinct words of praise.
        style: Sentences in the register asked for count 1, plain ones 0.5, the other register 0.
        length: 1 from 14 to 20 words, falling to 0 at 2 and at 36.
        grammar: Share of the words that stand in a sentence which parses and is no repetition.
        on_topic: 1 where the thing asked about is named and no other thing is. A guard that is
            measured and not rewarded.
    """

    total: float
    sentiment: float
    style: float
    length: float
    grammar: float
    on_topic: float


@dataclass(frozen=True)
class Sentence:
    """A sentence that parsed: its register and what it says."""

    register: str
    subject: str
    praise: frozenset[str]
    blame: frozenset[str]
    num_words: int


@cache
def prompts(split: Split) -> tuple[str, ...]:
    """Returns every request of a split, in a fixed order.

    One in five pairs of thing and place is held out, in every wording: a held-out prompt asks for a
    combination that no training prompt names.
    """
    chosen = [
        (thing, place)
        for (i, thing), (j, place) in product(enumerate(THINGS), enumerate(PLACES))
        if ((i + 2 * j) % 5 == 0) == (split == "held_out")
    ]
    return tuple(
        wording.format(register=register, thing=thing, place=place)
        for (thing, place), register, wording in product(chosen, REGISTERS, REQUESTS)
    )


def parse_prompt(prompt: PromptLike) -> Request:
    """Reads what a prompt asks for, from its text or from its last user message.

    Raises:
        ValueError: The prompt is not one of this world.
    """
    text = prompt if isinstance(prompt, str) else _last_user_message(prompt)
    for pattern in _request_patterns():
        found = pattern.search(text)
        if found:
            register: Register = "formal" if found["register"] == "formal" else "casual"
            return Request(register=register, thing=found["thing"], place=found["place"])
    raise ValueError(
        f"not a prompt of the reviews world: {text[:80]!r}. The gold reward judges only that world's "
        "prompts: use its data, or another reward."
    )


def sample_completion(request: Request, *, random: Random) -> str:
    """Draws one review: one to three sentences with a random lean to praise and to formality.

    The lean to formality follows the request more often than not, so that a model which imitates these
    reviews has seen what formal and casual mean, and is still far from obeying.
    """
    praise = random.random()
    toward_request = max(random.random(), random.random())
    formality = toward_request if request.register == "formal" else 1.0 - toward_request
    sentences = []
    for index in range(random.choice((1, 2, 2, 3, 3))):
        subject = request.thing if index == 0 or random.random() < 0.4 else random.choice(ASPECTS)
        register = "plain" if random.random() < 0.25 else _lean(random, formality, "formal", "casual")
        text = random.choice(SENTENCES[register])
        judgement = _sample_judgement(praise, random=random)
        sentences.append(text.format(subject=subject, place=request.place, judgement=judgement))
    return " ".join(sentences)


def change_adjective(completion: str, *, random: Random) -> str:
    """Returns a review with one adjective changed for one of another kind: praise, blame, or neither.

    Args:
        completion: A review of this world.
        random: Chooses which adjective, and for which.
    """
    found = random.choice(list(_adjective_pattern().finditer(completion)))
    other = random.choice([word for kind in ADJECTIVES if found[0] not in kind for word in kind])
    return completion[: found.start()] + other + completion[found.end() :]


def gold_reward(prompt: PromptLike, completion: str) -> Gold:
    """Judges any text as an answer to a prompt of this world.

    Args:
        prompt: One of this world's prompts, as text or as chat messages.
        completion: Any text at all; what does not parse earns nothing.

    Raises:
        ValueError: The prompt is not one of this world.

    >>> gold_reward("Write a casual review of the soup at the castle.", "the the the soup soup").total
    0.0
    """
    request = parse_prompt(prompt)
    sentences = parse_sentences(completion)
    num_words = len(completion.split())
    parsed_words = sum(sentence.num_words for sentence in sentences)
    if not sentences:
        return Gold(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    grammar = parsed_words / num_words
    sentiment = _sentiment(sentences)
    style = sum(_style(sentence.register, request.register) for sentence in sentences) / len(sentences)
    length = _length(num_words)
    named = {sentence.subject for sentence in sentences} & set(THINGS)
    total = WEIGHTS["sentiment"] * sentiment + WEIGHTS["style"] * style + WEIGHTS["length"] * length
    return Gold(
        total=grammar * total,
        sentiment=sentiment,
        style=style,
        length=length,
        grammar=grammar,
        on_topic=float(named == {request.thing}),
    )


def parse_sentences(text: str) -> list[Sentence]:
    """Returns the sentences of a text that parse by the grammar, each only the first time it is said."""
    parsed: dict[str, Sentence] = {}
    for raw in re.split(r"(?<=[.!?])", text):
        line = " ".join(raw.split())
        if line in parsed:
            continue
        for register, pattern in _sentence_patterns():
            found = pattern.fullmatch(line)
            if found:
                praise, blame = _judge(found["judgement"])
                parsed[line] = Sentence(register, found["subject"], praise, blame, len(line.split()))
                break
    return list(parsed.values())


def _sentiment(sentences: Sequence[Sentence]) -> float:
    praise = len(frozenset[str]().union(*(sentence.praise for sentence in sentences)))
    blame = len(frozenset[str]().union(*(sentence.blame for sentence in sentences)))
    return 0.5 + 0.5 * (praise - blame) / (praise + blame + 1)


def _style(register: str, asked: Register) -> float:
    return 0.5 if register == "plain" else float(register == asked)


def _length(num_words: int) -> float:
    (low_zero, high_zero), (low, high) = ZERO_LENGTH_WORDS, FULL_LENGTH_WORDS
    rising = (num_words - low_zero) / (low - low_zero)
    falling = (high_zero - num_words) / (high_zero - high)
    return max(0.0, min(1.0, rising, falling))


def _judge(judgement: str) -> tuple[frozenset[str], frozenset[str]]:
    words = judgement.split()
    if words[0] == "not":
        return frozenset(), frozenset({judgement} if words[1] in POSITIVE else ())
    return frozenset(words) & frozenset(POSITIVE), frozenset(words) & frozenset(NEGATIVE)


def _sample_judgement(praise: float, *, random: Random) -> str:
    def adjective() -> str:
        if random.random() < 0.15:
            return random.choice(NEUTRAL)
        return random.choice(POSITIVE if random.random() < praise else NEGATIVE)

    first, form = adjective(), random.random()
    if form < 0.1:
        return f"not {first}"
    second = adjective()
    return f"{first} and {second}" if form < 0.4 and second != first else first


def _lean(random: Random, probability: float, yes: str, no: str) -> str:
    return yes if random.random() < probability else no


def _last_user_message(messages: Messages) -> str:
    return next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")


@cache
def _request_patterns() -> tuple[re.Pattern[str], ...]:
    slots = {"register": REGISTERS, "thing": THINGS, "place": PLACES}
    return tuple(_pattern(wording, slots) for wording in REQUESTS)


@cache
def _sentence_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    adjectives = (*POSITIVE, *NEGATIVE, *NEUTRAL)
    word = "|".join(adjectives)
    judgement = f"(?:not )?(?:{word})|(?:{word}) and (?:{word})"
    slots = {"subject": (*THINGS, *ASPECTS), "place": PLACES}
    return tuple(
        (register, _pattern(text, slots, judgement=judgement))
        for register, texts in SENTENCES.items()
        for text in texts
    )


@cache
def _adjective_pattern() -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(word for kind in ADJECTIVES for word in kind)})\b")


def _pattern(text: str, slots: dict[str, tuple[str, ...]], *, judgement: str = "") -> re.Pattern[str]:
    """Turns a template into a pattern: its slots become named groups, the rest is taken literally."""
    expression = re.escape(text).replace(r"\{", "{").replace(r"\}", "}")
    groups = {name: f"(?P<{name}>{'|'.join(words)})" for name, words in slots.items()}
    return re.compile(expression.format(**groups, judgement=f"(?P<judgement>{judgement})"))
