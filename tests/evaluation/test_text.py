"""Diversity of completions, by hand."""

from __future__ import annotations

from math import exp, log

import pytest

from alignment.evaluation.text import distinct_2, self_bleu


def test_distinct_2():
    assert distinct_2(["a b c"]) == 1.0
    assert distinct_2(["a b", "A b"]) == 0.5
    assert distinct_2(["a b a b"]) == pytest.approx(2 / 3)
    assert distinct_2(["a", ""]) is None


def test_self_bleu_of_copies_is_one_and_of_strangers_none():
    assert self_bleu(["a b c d", "a b c d", "a b c d"]) == pytest.approx([1, 1, 1])
    assert self_bleu(["a b c", "d e f"]) == [0, 0]
    assert self_bleu(["", ""]) == [1, 1]
    assert self_bleu(["", "a"]) == [0, 0]


def test_self_bleu_by_hand():
    # "a b c" against "a b d e": 2 of 3 words, (1 + 1) / (2 + 1) bigrams, (0 + 1) / (1 + 1) trigrams; 4 words against 3.
    first, _ = self_bleu(["a b c", "a b d e"])
    assert first == pytest.approx(exp((log(2 / 3) + log(2 / 3) + log(1 / 2)) / 3 + 1 - 4 / 3))


def test_collapse_raises_self_bleu():
    varied = [f"the {a} was {b} ." for a in ("soup", "lamp", "tower") for b in ("great", "dull", "plain", "grim")]
    collapsed = [*varied[:2], *["the soup was great ."] * 10]
    assert sum(self_bleu(collapsed)) > sum(self_bleu(varied))
