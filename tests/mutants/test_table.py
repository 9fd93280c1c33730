"""The table of bugs fits the code as it is; running it (make mutants) takes too long for every day."""

from __future__ import annotations

import re
from collections import Counter

from table import MUTANTS, ROOT, SIGN, Mutant, stale

LOSSES = {f"alignment/losses/{path.name}" for path in (ROOT / "alignment" / "losses").glob("[!_]*.py")}
#: Files of methods that turn a batch into what is learnt and logged.
TERMS = {
    f"alignment/methods/{name}.py"
    for name in ("calibration", "nll", "pairwise", "policy_gradient", "preference_metrics")
} | {path for path in (loss.replace("/losses/", "/methods/") for loss in LOSSES) if (ROOT / path).exists()}


def test_every_bug_can_still_be_put_in():
    assert stale() == []


def test_every_loss_has_a_flipped_sign():
    assert LOSSES - {mutant.file for mutant in MUTANTS if mutant.name == SIGN} == set()


def test_every_loss_has_a_dropped_term_or_a_changed_constant():
    """A test of which way a loss goes finds a flipped sign, and nothing else."""
    assert LOSSES - {mutant.file for mutant in MUTANTS if not is_flip(mutant)} == set()


def test_every_method_that_has_terms_has_a_bug():
    assert len(TERMS) > 10
    assert TERMS - {mutant.file for mutant in MUTANTS} == set()


def is_flip(mutant: Mutant) -> bool:
    """Whether a bug is a flipped sign, or an exchange: the same words in another order."""
    before, after = (Counter(re.findall(r"[\w.]+", text)) for text in (mutant.old, mutant.new))
    return mutant.name == SIGN or before == after


def test_every_bug_changes_something_and_is_there_once():
    assert all(mutant.old != mutant.new for mutant in MUTANTS)
    texts = [(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS]
    assert len(set(texts)) == len(texts)
