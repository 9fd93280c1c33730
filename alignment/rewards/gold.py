"""The reviews world's true reward."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.data.worlds.reviews import Gold, gold_reward
from alignment.types import Rewards, Rollout
from alignment.utils.errors import UserError

COMPONENTS = ("sentiment", "style", "length", "grammar", "on_topic")


class GoldReward:
    """Reads sentiment, style and length from the text; see :func:`alignment.data.worlds.reviews.gold_reward`.

    The components ``grammar`` and ``on_topic`` are guards: what alignment should leave as it was.
    """

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Judges each completion as an answer to its prompt; every value lies in [0, 1].

        Raises:
            UserError: A prompt is not one of the reviews world.
        """
        golds = [_judge(rollout) for rollout in rollouts]
        columns = {name: tuple(getattr(gold, name) for gold in golds) for name in COMPONENTS}
        return Rewards(total=tuple(gold.total for gold in golds), components=columns)


def _judge(rollout: Rollout) -> Gold:
    try:
        return gold_reward(rollout.prompt, rollout.completion)
    except ValueError as error:
        raise UserError(f"reward=gold, prompt {rollout.prompt_id}: {error}") from error
