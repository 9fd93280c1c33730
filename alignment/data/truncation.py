"""What to do with sequences that are too long."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from alignment.data.records import UnfitError
from alignment.utils.errors import ConfigError, DataError

PromptPolicy = Literal["keep_end", "keep_start", "drop", "error"]
CompletionPolicy = Literal["truncate", "drop", "error"]


class TooLongError(UnfitError):
    """A record that the truncation policy drops."""


@dataclass(frozen=True)
class Truncation:
    """Limits in tokens and what happens beyond them.

    Attributes:
        max_length: The most tokens of prompt and completion together, end of sequence included.
        max_prompt_length: The most tokens of the prompt; ``None`` lets it fill ``max_length``.
        prompt: ``keep_end`` cuts its beginning off (but keeps a beginning-of-sequence token),
            ``keep_start`` its end, ``drop`` drops the record, ``error`` stops.
        completion: ``truncate`` cuts its end off, its end-of-sequence token with it; ``drop``, ``error``.
    """

    max_length: int
    max_prompt_length: int | None
    prompt: PromptPolicy
    completion: CompletionPolicy

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ConfigError("data.max_length", got=self.max_length, expected="at least 2 tokens")
        limit = self.max_prompt_length
        if limit is not None and not 2 <= limit < self.max_length:
            raise ConfigError(
                "data.max_prompt_length",
                got=limit,
                expected=f"null, or from 2 to {self.max_length - 1}",
                hint=f"data.max_length={self.max_length} must leave room for the completion",
            )
        if self.prompt not in ("keep_end", "keep_start", "drop", "error"):
            raise ConfigError("data.truncate_prompt", got=self.prompt, expected="keep_end, keep_start, drop or error")
        if self.completion not in ("truncate", "drop", "error"):
            raise ConfigError("data.truncate_completion", got=self.completion, expected="truncate, drop or error")


@dataclass(frozen=True)
class Side:
    """A completion: its tokens, and which of them count.

    Attributes:
        ids: Token ids.
        scored: One flag a token, or ``None`` where all count.
        labels: Values of the scored tokens, for judged steps.
    """

    ids: list[int]
    scored: list[bool] | None = None
    labels: list[float] | None = None

    def head(self, length: int) -> Side:
        """The first ``length`` tokens."""
        if self.scored is None:
            return replace(self, ids=self.ids[:length])
        scored = self.scored[:length]
        labels = None if self.labels is None else self.labels[: sum(scored)]
        return Side(self.ids[:length], scored, labels)

    @property
    def num_scored(self) -> int:
        """How many tokens count."""
        return len(self.ids) if self.scored is None else sum(self.scored)


def truncate_prompt(ids: list[int], policy: Truncation, *, limit: int, bos_id: int | None, name: str) -> list[int]:
    """Brings a prompt down to ``limit`` tokens.

    Raises:
        TooLongError: The policy is to drop.
        DataError: The policy is to stop.
    """
    if len(ids) <= limit:
        return ids
    if policy.prompt == "error":
        raise DataError(
            name,
            f"the prompt has {len(ids)} tokens, more than {limit}: raise data.max_prompt_length or data.max_length, "
            "or set data.truncate_prompt to keep_end, keep_start or drop",
        )
    if policy.prompt == "drop":
        raise TooLongError("prompt too long", f"{len(ids)} tokens")
    if policy.prompt == "keep_start":
        return ids[:limit]
    kept = [ids[0]] if ids[0] == bos_id else []
    return kept + ids[len(ids) - (limit - len(kept)) :]


def truncate_completions(sides: list[Side], policy: Truncation, *, room: int, name: str) -> list[Side]:
    """Brings completions down to ``room`` tokens, so that something is left to learn from.

    Raises:
        TooLongError: The policy is to drop; nothing would be left; or both sides would be the same.
        DataError: The policy is to stop.
    """
    longest = max(len(side.ids) for side in sides)
    if longest > room and policy.completion == "error":
        raise DataError(
            name,
            f"a completion has {longest} tokens, its prompt leaves room for {max(room, 0)}: raise data.max_length, or "
            "set data.truncate_completion to truncate or drop",
        )
    if longest > room and policy.completion == "drop":
        raise TooLongError("completion too long", f"{longest} tokens")
    if room < 1:
        raise TooLongError("the prompt leaves no room for a completion", f"room is {room}")
    kept = [side.head(room) for side in sides]
    if any(side.num_scored == 0 for side in kept):
        raise TooLongError("no scored token is left")
    if len(kept) == 2 and kept[0].ids == kept[1].ids:
        cause = "after truncation" if longest > room else "as tokens"
        raise TooLongError(f"chosen equals rejected {cause}")
    return kept
