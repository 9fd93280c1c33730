"""The table of bugs fits the code as it is; running it (make mutants) takes too long for every day."""

from __future__ import annotations

from table import MUTANTS, ROOT, SIGN, stale


def test_every_bug_can_still_be_put_in():
    assert stale() == []


def test_every_loss_has_a_flipped_sign():
    losses = {f"alignment/losses/{path.name}" for path in (ROOT / "alignment" / "losses").glob("[!_]*.py")}
    assert losses - {mutant.file for mutant in MUTANTS if mutant.name == SIGN} == set()


def test_every_bug_changes_something_and_is_there_once():
    assert all(mutant.old != mutant.new for mutant in MUTANTS)
    texts = [(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS]
    assert len(set(texts)) == len(texts)
