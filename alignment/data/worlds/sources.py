"""Data sets of the reviews world: demonstrations, preferences and prompts, made when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, ClassVar

from alignment.data.records import Demonstration, Message, Preference, Prompt, Record, RecordKind, to_row
from alignment.data.store import content_hash
from alignment.data.worlds import reviews
from alignment.data.worlds.reviews import Split
from alignment.utils.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset


class WorldSource:
    """Records that are drawn one by one, each from its own seed: a longer set begins with a shorter one.

    Args:
        num_records: How many to make.
        seed: Seeds the draw.
        split: ``train``, or ``held_out`` for prompts that no training record has.
    """

    kind: ClassVar[RecordKind]

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

        prompts = reviews.prompts(self.split)
        rows = [to_row(self._record(index, prompts)) for index in range(self.num_records)]
        table = pa.Table.from_pylist(rows, schema=RECORD_FEATURES[self.kind].arrow_schema)
        return Dataset(table, fingerprint=self.fingerprint)

    def _identity(self) -> dict[str, object]:
        return {
            "world": "reviews",
            "version": reviews.WORLD_VERSION,
            "kind": str(self.kind),
            "num_records": self.num_records,
            "seed": self.seed,
            "split": self.split,
        }

    def _record(self, index: int, prompts: tuple[str, ...]) -> Record:
        raise NotImplementedError

    def _id(self, index: int) -> str:
        return f"reviews/{self.split}/{self.seed}/{index}"

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

    def _record(self, index: int, prompts: tuple[str, ...]) -> Demonstration:
        random = self._random(index)
        prompt = random.choice(prompts)
        completion = reviews.sample_completion(reviews.parse_prompt(prompt), random=random)
        return Demonstration(id=self._id(index), prompt=_chat(prompt), completion=completion)


class WorldPreferences(WorldSource):
    """A prompt and two independent reviews, labelled by the true reward with Bradley-Terry noise.

    P(a preferred over b) = sigmoid((reward(a) - reward(b)) / temperature), after Bradley and Terry (1952).

    Args:
        num_records: How many to make.
        seed: Seeds the draw.
        split: ``train``, or ``held_out`` for prompts that no training record has.
        temperature: In units of the reward, which lies in [0, 1]; 0 labels without noise.
    """

    kind = RecordKind.PREFERENCE

    def __init__(self, *, num_records: int, seed: int, split: Split, temperature: float) -> None:
        super().__init__(num_records=num_records, seed=seed, split=split)
        if not temperature >= 0:
            raise ConfigError("temperature", got=temperature, expected="0 or more")
        self.temperature = temperature

    def _identity(self) -> dict[str, object]:
        return {**super()._identity(), "temperature": self.temperature}

    def _record(self, index: int, prompts: tuple[str, ...]) -> Preference:
        random = self._random(index)
        prompt = random.choice(prompts)
        request = reviews.parse_prompt(prompt)
        first, second = _two_different(lambda: reviews.sample_completion(request, random=random))
        gap = reviews.gold_reward(prompt, first).total - reviews.gold_reward(prompt, second).total
        if random.random() >= preference_probability(gap, temperature=self.temperature):
            first, second = second, first
        return Preference(id=self._id(index), prompt=_chat(prompt), chosen=first, rejected=second)


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

    def _record(self, index: int, prompts: tuple[str, ...]) -> Prompt:
        place = (self.seed + index * len(prompts) // self.num_records) % len(prompts)
        return Prompt(id=self._id(index), prompt=_chat(prompts[place]))


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


def _chat(prompt: str) -> list[Message]:
    return [Message(role="user", content=prompt)]
