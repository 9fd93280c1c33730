"""What a reward returns is checked, and what it raises is blamed on a prompt and a completion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

from alignment.rewards.base import Reward
from alignment.types import Rewards, Rollout
from alignment.utils.errors import BrokenJudgeError, ConfigError, UserError

SHOWN_CHARACTERS = 80
"""How much of a prompt and of a completion a message shows."""

ERRORS = "errors"
"""The component that counts failures."""

_NEVER_A_SCORE = (ConfigError, BrokenJudgeError)


class BrokenRewardError(UserError):
    """A reward returned something that no training can use."""


class BlamedError(UserError):
    """An error whose text says already what is to blame for it: nobody has to look for that again."""


def checked_scores(
    reward: Reward, rollouts: Sequence[Rollout], *, name: str = "reward", error_score: float | None = None
) -> Rewards:
    """Scores roll-outs and lets nothing pass but one finite number for each, in the total and in every component.

    A reward that fails on the whole batch is asked again completion by completion, to find the one to blame, unless
    its error is a :class:`BlamedError`. With a score for failures it is asked prompt by prompt first: one that compares
    the completions of a prompt has nothing to say of a single one.

    Args:
        reward: The reward.
        rollouts: What it judges.
        name: How messages call it: the configuration key that it came from.
        error_score: ``None`` raises. A number is the total of a completion whose reward failed, its other components
            are 0, and the component ``errors`` is 1 where that happened and 0 elsewhere.

    Returns:
        The rewards as plain floats; numbers of other libraries and booleans are converted.

    Raises:
        ConfigError: Whatever ``error_score`` says: a wrong key is no fault of a completion.
        BrokenJudgeError: Likewise: that a judge cannot work is none either.
        BlamedError: The reward raised, or returned the wrong number of values, or something that is no finite number.
    """
    if not rollouts:
        return Rewards(total=(), components={})
    try:
        rewards = _scored(reward, rollouts)
    except _NEVER_A_SCORE:
        raise
    except Exception as error:
        if error_score is not None:
            return _prompt_by_prompt(reward, rollouts, error_score=error_score)
        if isinstance(error, BlamedError):
            raise
        raise _blamed(reward, rollouts, name=name, error=error) from error
    return rewards if error_score is None else _with_errors(rewards, (0.0,) * len(rollouts))


def _scored(reward: Reward, rollouts: Sequence[Rollout]) -> Rewards:
    rewards: object = reward.score(rollouts)
    if not isinstance(rewards, Rewards):
        raise BrokenRewardError(f"it returned {type(rewards).__name__}, not Rewards")
    total = _numbers(rewards.total, len(rollouts), what="total")
    components = {
        component: _numbers(values, len(rollouts), what=f"component '{component}'")
        for component, values in rewards.components.items()
    }
    return Rewards(total=total, components=components)


def _numbers(values: Sequence[object], number: int, *, what: str) -> tuple[float, ...]:
    if len(values) != number:
        raise BrokenRewardError(f"its {what} has {len(values)} values for {number} completions")
    for value in values:
        if not isinstance(value, Real) or not math.isfinite(value):
            raise BrokenRewardError(f"its {what} is {value!r}, not a finite number")
    return tuple(float(value) for value in values)  # type: ignore[arg-type]


def _blamed(reward: Reward, rollouts: Sequence[Rollout], *, name: str, error: Exception) -> BlamedError:
    """Words an error with the first completion that also fails alone."""
    if len(rollouts) == 1:
        return BlamedError(f"{name}, {place(rollouts[0])}: {reason(error)}")
    for rollout in rollouts:
        try:
            _scored(reward, [rollout])
        except Exception as own:
            return BlamedError(f"{name}, {place(rollout)}: {reason(own)}")
    return BlamedError(
        f"{name} fails on {len(rollouts)} completions together and on none alone, "
        f"the first of them {place(rollouts[0])}: {reason(error)}"
    )


def places_by_prompt(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """Returns where the completions of each prompt stand."""
    places: dict[str, list[int]] = {}
    for at, rollout in enumerate(rollouts):
        places.setdefault(rollout.prompt_id, []).append(at)
    return list(places.values())


def _prompt_by_prompt(reward: Reward, rollouts: Sequence[Rollout], *, error_score: float) -> Rewards:
    found: list[Rewards | None] = [None] * len(rollouts)
    for places in places_by_prompt(rollouts):
        for at, rewards in zip(places, _one_by_one(reward, [rollouts[at] for at in places]), strict=True):
            found[at] = rewards
    names = dict.fromkeys(name for rewards in found if rewards is not None for name in rewards.components)
    total = tuple(error_score if rewards is None else rewards.total[0] for rewards in found)
    components = {
        name: tuple(0.0 if rewards is None else rewards.components.get(name, (0.0,))[0] for rewards in found)
        for name in names
    }
    return _with_errors(Rewards(total, components), tuple(float(rewards is None) for rewards in found))


def _one_by_one(reward: Reward, rollouts: Sequence[Rollout]) -> list[Rewards | None]:
    """Scores all, or where that fails each alone; ``None`` stands for a completion that fails alone too."""
    try:
        scored = _scored(reward, rollouts)
    except _NEVER_A_SCORE:
        raise
    except Exception:
        return [None] if len(rollouts) == 1 else [one for rollout in rollouts for one in _one_by_one(reward, [rollout])]
    components = scored.components.items()
    return [
        Rewards((total,), {name: (values[at],) for name, values in components}) for at, total in enumerate(scored.total)
    ]


def _with_errors(rewards: Rewards, errors: tuple[float, ...]) -> Rewards:
    """Adds the component :data:`ERRORS`, to that of a reward which counts errors of its own."""
    own = rewards.components.get(ERRORS, (0.0,) * len(errors))
    both = tuple(mine + new for mine, new in zip(own, errors, strict=True))
    return Rewards(total=rewards.total, components={**rewards.components, ERRORS: both})


def place(rollout: Rollout) -> str:
    """Names a completion and its prompt in a message."""
    return f"prompt {rollout.prompt_id} ({shown(_text(rollout))}), completion {shown(rollout.completion)}"


def _text(rollout: Rollout) -> str:
    """A prompt's text, or that of a conversation's last message."""
    return rollout.prompt if isinstance(rollout.prompt, str) else str(rollout.prompt[-1]["content"])


def shown(text: str) -> str:
    """Returns the beginning of a text as messages show it."""
    return repr(text[:SHOWN_CHARACTERS]) + ("..." if len(text) > SHOWN_CHARACTERS else "")


def reason(error: Exception) -> str:
    """The project's own messages as they are, others with the exception's name."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
