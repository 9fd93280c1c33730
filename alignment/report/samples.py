"""Completions of the same prompts before and after training, picked so that losses show as well as gains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignment.report.read import Run, Sample

NUM_EACH = 3


@dataclass(frozen=True)
class Message:
    """One turn of a prompt; ``role`` is empty for plain text."""

    role: str
    text: str


@dataclass(frozen=True)
class Pair:
    """One prompt with its completion before and after.

    Attributes:
        why: largest gain, median, largest loss; or ``sample`` where nothing was judged.
        gain: Reward after minus before.
        prompt: Its turns.
    """

    why: str
    gain: float | None
    prompt: list[Message]
    before: Sample | None
    after: Sample


@dataclass(frozen=True)
class BeforeAfter:
    """The picks of one run.

    Attributes:
        run: The run's name.
        first_step: The step of the earlier samples, ``None`` where there is one evaluation only.
        last_step: The step of the later ones.
        num_pairs: Pairs that the picks were made from.
        num_better: Pairs with a higher reward after than before; ``None`` where rewards are missing.
        num_worse: Pairs with a lower one.
    """

    run: str
    label: str
    first_step: int | None
    last_step: int
    num_pairs: int
    num_better: int | None
    num_worse: int | None
    pairs: list[Pair]


def before_after(run: Run, label: str) -> BeforeAfter | None:
    """Returns the picks of a run, or ``None`` where it has no samples."""
    if not run.samples:
        return None
    steps = sorted(run.samples)
    last = steps[-1]
    first = steps[0] if len(steps) > 1 else None
    before = {} if first is None else {(s.prompt_id, s.sample): s for s in run.samples[first]}
    pairs = [
        Pair(
            "",
            _gain(before.get((s.prompt_id, s.sample)), s),
            messages(s.prompt),
            before.get((s.prompt_id, s.sample)),
            s,
        )
        for s in run.samples[last]
        if first is None or (s.prompt_id, s.sample) in before
    ]
    gains = [pair.gain for pair in pairs if pair.gain is not None]
    return BeforeAfter(
        run=run.name,
        label=label,
        first_step=first,
        last_step=last,
        num_pairs=len(pairs),
        num_better=sum(gain > 0 for gain in gains) if gains else None,
        num_worse=sum(gain < 0 for gain in gains) if gains else None,
        pairs=pick(pairs),
    )


def pick(pairs: list[Pair]) -> list[Pair]:
    """Returns the largest gains, the median and the largest losses; the first ones where nothing was judged.

    With few pairs each is shown once. A "largest loss" that is no loss is called smallest gain, and a
    "largest gain" that is no gain smallest loss.
    """
    judged = sorted((pair for pair in pairs if pair.gain is not None), key=lambda pair: -(pair.gain or 0.0))
    if not judged:
        return [_called(pair, "sample") for pair in pairs[: 2 * NUM_EACH]]
    num = len(judged)
    middle = num // 2
    top = list(range(min(NUM_EACH, (num + 2) // 3)))
    bottom = list(range(num - len(top), num))
    median = [i for i in (middle - 1, middle) if 0 <= i < num] if num >= 4 * NUM_EACH else [middle]
    whys = dict.fromkeys(bottom, "loss") | dict.fromkeys(median, "median") | dict.fromkeys(top, "gain")
    return [_called(judged[i], _why(whys[i], judged[i].gain or 0.0)) for i in sorted(whys)]


def _why(kind: str, gain: float) -> str:
    if kind == "median":
        return "median"
    if kind == "gain":
        return "largest gain" if gain > 0 else "no gain" if gain == 0 else "smallest loss"
    return "largest loss" if gain < 0 else "no loss" if gain == 0 else "smallest gain"


def _called(pair: Pair, why: str) -> Pair:
    return Pair(why, pair.gain, pair.prompt, pair.before, pair.after)


def _gain(before: Sample | None, after: Sample) -> float | None:
    if before is None or before.reward is None or after.reward is None:
        return None
    gain = after.reward - before.reward
    return gain if gain == gain else None  # NaN cannot be ranked


def messages(prompt: Any) -> list[Message]:
    """Returns the turns of a prompt, which is text or a list of chat messages.

    >>> messages([{"role": "user", "content": "Hi"}])
    [Message(role='user', text='Hi')]
    """
    if not isinstance(prompt, list):
        return [Message("", str(prompt))]
    return [
        Message(str(turn.get("role", "")), str(turn.get("content", "")))
        if isinstance(turn, dict)
        else Message("", str(turn))
        for turn in prompt
    ]
