"""Data sets of the reviews world: demonstrations, preferences, feedback and prompts, made when they are asked for."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from random import Random
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from alignment.data.records import Binary, Demonstration, Message, Preference, Prompt, Record, RecordKind, to_row
from alignment.data.store import content_hash
from alignment.data.views import both_sides
from alignment.data.worlds import reviews
from alignment.data.worlds.reviews import WEIGHTS, Split
from alignment.utils.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset

Pairs = Literal["independent", "near_duplicate", "length_neutral"]


class WorldSource(ABC):
    """Records that are drawn one by one, each from its own seed: a longer set begins with a shorter one.

    Args:
        num_records: How many to make.
        seed: Seeds the draw.
        split: ``train``, or ``held_out`` for prompts that no training record has.
    """

    kind: ClassVar[RecordKind]
    world: ClassVar[str] = "reviews"
    version: ClassVar[int] = reviews.WORLD_VERSION

    def __init__(self, *, num_records: int, seed: int, split: Split) -> None:
        if num_records < 1:
            raise ConfigError("num_records", got=num_records, expected="at least 1")
        if split not in ("train", "held_out"):
            raise ConfigError("split", got=split, expected="train or held_out")
        self.num_records = num_records
        self.seed = seed
        self.split: Split = split

    @property
    def fingerprint(self) -> str:
        """Names the records: the world's version and every argument."""
        return content_hash(**self._identity())

    def load(self) -> Dataset:
        """Makes the records, as a table with the columns of their kind."""
        import pyarrow as pa
        from datasets import Dataset

        from alignment.data.features import RECORD_FEATURES

        rows = [to_row(self._record(index)) for index in self._indices()]
        table = pa.Table.from_pylist(rows, schema=RECORD_FEATURES[self.kind].arrow_schema)
        return Dataset(table, fingerprint=self.fingerprint)

    def _identity(self) -> dict[str, object]:
        return {
            "world": self.world,
            "version": self.version,
            "kind": str(self.kind),
            "num_records": self.num_records,
            "seed": self.seed,
            "split": self.split,
        }

    def _indices(self) -> Iterable[int]:
        return range(self.num_records)

    @abstractmethod
    def _record(self, index: int) -> Record:
        """Makes one record."""

    def _id(self, index: int) -> str:
        return f"{self.world}/{self.split}/{self.seed}/{index}"

    def _random(self, index: int) -> Random:
        return Random(f"{self.kind}/{self.split}/{self.seed}/{index}")  # noqa: S311


class WorldDemonstrations(WorldSource):
    """A prompt and one review: what a model imitates before it is aligned.

    Args:
        num_records: How many to make.
        seed: Seeds the draw.
        split: ``train``, or ``held_out`` for prompts that no training record has.
    """

    kind = RecordKind.DEMONSTRATION

    def _record(self, index: int) -> Demonstration:
        random = self._random(index)
        prompt = random.choice(reviews.prompts(self.split))
        completion = reviews.sample_completion(reviews.parse_prompt(prompt), random=random)
        return Demonstration(id=self._id(index), prompt=chat(prompt), completion=completion)


class WorldPreferences(WorldSource):
    """A prompt and two reviews, labelled by the true reward with Bradley-Terry noise.

    P(a preferred over b) = sigmoid((reward(a) - reward(b)) / temperature), after Bradley and Terry (1952).

    Args:
        num_records: How many to make.
        seed: Seeds the draw.
        split: ``train``, or ``held_out`` for prompts that no training record has.
        temperature: In units of the reward, which lies in [0, 1]; 0 labels without noise.
        pairs: ``independent`` reviews of one prompt; ``near_duplicate`` reviews that differ in one adjective; or
            ``length_neutral``: independent reviews whose lengths play no part in the label.
    """

    kind = RecordKind.PREFERENCE

    def __init__(self, *, num_records: int, seed: int, split: Split, temperature: float, pairs: Pairs) -> None:
        super().__init__(num_records=num_records, seed=seed, split=split)
        if not temperature >= 0:
            raise ConfigError("temperature", got=temperature, expected="0 or more")
        if pairs not in get_args(Pairs):
            raise ConfigError("pairs", got=pairs, expected="independent, near_duplicate or length_neutral")
        self.temperature = temperature
        self.pairs: Pairs = pairs

    def _identity(self) -> dict[str, object]:
        return {**super()._identity(), "temperature": self.temperature, "pairs": self.pairs}

    def _record(self, index: int) -> Preference:
        random = self._random(index)
        prompt = random.choice(reviews.prompts(self.split))
        request = reviews.parse_prompt(prompt)
        first, second = _two_different(lambda: reviews.sample_completion(request, random=random))
        if self.pairs == "near_duplicate":
            second = reviews.change_adjective(first, random=random)
        gap = self._value(prompt, first) - self._value(prompt, second)
        if random.random() >= preference_probability(gap, temperature=self.temperature):
            first, second = second, first
        return Preference(id=self._id(index), prompt=chat(prompt), chosen=first, rejected=second)

    def _value(self, prompt: str, completion: str) -> float:
        gold = reviews.gold_reward(prompt, completion)
        if self.pairs == "length_neutral":
            return gold.total - gold.grammar * WEIGHTS["length"] * gold.length
        return gold.total


class WorldFeedback(WorldSource):
    """Single reviews with a thumbs up or down: the two sides of independent pairs, see :class:`WorldPreferences`.

    Args:
        num_records: How many reviews to judge, in pairs: half of them get a thumbs up.
        seed: Seeds the draw.
        split: ``train``, or ``held_out`` for prompts that no training record has.
        temperature: Of the noise in the labels, in units of the reward; 0 labels without noise.
        keep_desirable: Share of the thumbs up that is kept; the rest is left out.
    """

    kind = RecordKind.BINARY

    def __init__(self, *, num_records: int, seed: int, split: Split, temperature: float, keep_desirable: float) -> None:
        super().__init__(num_records=num_records, seed=seed, split=split)
        if not 0 <= keep_desirable <= 1:
            raise ConfigError("keep_desirable", got=keep_desirable, expected="a share, from 0 to 1")
        self.preferences = WorldPreferences(
            num_records=num_records, seed=seed, split=split, temperature=temperature, pairs="independent"
        )
        self.keep_desirable = keep_desirable

    def _identity(self) -> dict[str, object]:
        return {**self.preferences._identity(), **super()._identity(), "keep_desirable": self.keep_desirable}

    def _indices(self) -> Iterable[int]:
        kept = self.keep_desirable
        return [index for index in range(self.num_records) if index % 2 or self._random(index).random() < kept]

    def _record(self, index: int) -> Binary:
        return both_sides(self.preferences._record(index // 2))[index % 2]


class WorldPrompts(WorldSource):
    """Prompts alone, each once, spread evenly over the split's; for sampling and for evaluation.

    Args:
        num_records: How many to take; at most as many as the split has.
        seed: Where in the split to begin.
        split: ``train`` or ``held_out``.
    """

    kind = RecordKind.PROMPT

    def __init__(self, *, num_records: int, seed: int, split: Split) -> None:
        super().__init__(num_records=num_records, seed=seed, split=split)
        available = len(reviews.prompts(split))
        if num_records > available:
            raise ConfigError(
                "num_records", got=num_records, expected=f"at most {available}, the prompts of split {split}"
            )

    def _record(self, index: int) -> Prompt:
        prompts = reviews.prompts(self.split)
        place = (self.seed + index * len(prompts) // self.num_records) % len(prompts)
        return Prompt(id=self._id(index), prompt=chat(prompts[place]))


def preference_probability(gap: float, *, temperature: float) -> float:
    """Returns the chance that the first of two is preferred when its reward is higher by ``gap``.

    >>> preference_probability(0.0, temperature=0.1), preference_probability(0.3, temperature=0.0)
    (0.5, 1.0)
    """
    if temperature == 0 or math.isinf(gap / temperature):
        return 0.5 * (1.0 + math.copysign(gap != 0, gap))
    scaled = gap / temperature
    # The exponent is never positive, so that no gap overflows.
    weight = math.exp(-abs(scaled))
    return 1.0 / (1.0 + weight) if scaled >= 0 else weight / (1.0 + weight)


def _two_different(draw: Callable[[], str]) -> tuple[str, str]:
    first = second = draw()
    while second == first:
        second = draw()
    return first, second


def chat(prompt: str) -> list[Message]:
    """Returns a prompt as a conversation of one message."""
    return [Message(role="user", content=prompt)]
