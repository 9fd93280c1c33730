"""How varied a set of completions is, from their words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, log

SELF_BLEU_REFERENCES = 8
SELF_BLEU_ORDER = 3


def words(text: str) -> list[str]:
    """Lower-cased words, split at white space."""
    return text.lower().split()


def ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """Counts the n-grams of one order."""
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))


def distinct_2(completions: Sequence[str]) -> float | None:
    """Share of different bigrams among all bigrams of some completions (distinct-2, Li et al. 2016, 1510.03055).

    Returns ``None`` where no completion has two words.

    >>> distinct_2(["a b a b"])
    0.6666666666666666
    """
    counts = sum((ngrams(words(text), 2) for text in completions), Counter[tuple[str, ...]]())
    return len(counts) / counts.total() if counts else None


def self_bleu(completions: Sequence[str]) -> list[float]:
    """Scores each completion against the others as references (Zhu et al. 2018, 1802.01886); 1 is a copy.

    BLEU of order 3 with equal weights, add-one smoothing above unigrams and the brevity penalty. To stay
    cheap the references of a completion are the eight that follow it, from the end round to the start.

    Args:
        completions: At least two.
    """
    split = [words(text) for text in completions]
    tables = [[ngrams(tokens, order) for order in range(1, SELF_BLEU_ORDER + 1)] for tokens in split]
    num = min(SELF_BLEU_REFERENCES, len(split) - 1)
    scores = []
    for index in range(len(split)):
        others = [(index + step) % len(split) for step in range(1, num + 1)]
        scores.append(_bleu(tables[index], [tables[other] for other in others]))
    return scores


_Tables = Sequence[Counter[tuple[str, ...]]]


def _bleu(candidate: _Tables, references: Sequence[_Tables]) -> float:
    length = candidate[0].total()
    if length == 0:
        # Two empty completions are copies of one another.
        return float(any(reference[0].total() == 0 for reference in references))
    total = 0.0
    for order, counts in enumerate(candidate):
        best = Counter[tuple[str, ...]]()
        for reference in references:
            best |= reference[order]
        matched, possible = (counts & best).total(), counts.total()
        if order == 0 and matched == 0:
            return 0.0
        smooth = 0 if order == 0 else 1
        total += log((matched + smooth) / (possible + smooth))
    closest = min((reference[0].total() for reference in references), key=lambda n: (abs(n - length), n))
    brevity = min(0.0, 1.0 - closest / length)
    return exp(total / SELF_BLEU_ORDER + brevity)
