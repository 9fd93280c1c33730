"""VADER: sentiment by a human-rated lexicon and a few rules."""

from __future__ import annotations

from collections.abc import Sequence

from alignment.types import Rewards, Rollout
from alignment.utils.errors import UserError


class VaderReward:
    """The compound score of VADER (Hutto and Gilbert, ICWSM 2014), read from the completion alone.

    The total is ``compound``, in [-1, 1]; an empty completion scores 0. The components ``positive``,
    ``negative`` and ``neutral`` are VADER's own shares of the text, and sum to one.

    Raises:
        UserError: The package ``vaderSentiment`` is not installed.
    """

    def __init__(self) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise UserError(
                "reward=vader needs the package vaderSentiment, which is not installed: "
                "pip install 'alignment[judge]' (or pip install vaderSentiment)"
            ) from error
        self._analyzer = SentimentIntensityAnalyzer()

    def score(self, rollouts: Sequence[Rollout]) -> Rewards:
        """Scores each completion."""
        scores = [self._analyzer.polarity_scores(rollout.completion) for rollout in rollouts]
        return Rewards(
            total=tuple(score["compound"] for score in scores),
            components={
                "positive": tuple(score["pos"] for score in scores),
                "negative": tuple(score["neg"] for score in scores),
                "neutral": tuple(score["neu"] for score in scores),
            },
        )
