"""Views: what each kind can be seen as, and a clear refusal of the rest."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from alignment.data.records import (
    Binary,
    Demonstration,
    Preference,
    Prompt,
    PromptLike,
    Record,
    RecordError,
    RecordKind,
    Stepwise,
    UnfitError,
    from_row,
    to_row,
)
from alignment.data.views import VIEWS, check_view, prompt_of, view
from alignment.utils.errors import ConfigError

CHAT = [{"role": "user", "content": "Hi"}]
RECORDS: dict[RecordKind, Record] = {
    RecordKind.PREFERENCE: Preference(
        id="p",
        prompt=CHAT,
        chosen="a",
        rejected="b",
        margin=1.0,
        prompt_ids=(1,),
        chosen_ids=(2,),
        rejected_ids=(3,),
        tokenizer_hash="t",
    ),
    RecordKind.DEMONSTRATION: Demonstration(id="d", prompt="Q", completion="a", prompt_ids=(1,), completion_ids=(2,)),
    RecordKind.BINARY: Binary(id="b", prompt="Q", completion="a", label=True),
    RecordKind.STEPWISE: Stepwise(id="s", prompt="Q", steps=("a", "b"), labels=(1.0, 1.0)),
    RecordKind.PROMPT: Prompt(id="q", prompt=CHAT, answer={"target": [1, None]}),
}


def test_preference_is_everything_but_steps() -> None:
    record = RECORDS[RecordKind.PREFERENCE]
    (demonstration,) = view(record, RecordKind.DEMONSTRATION)
    assert demonstration == Demonstration(
        id="p", prompt=CHAT, completion="a", prompt_ids=(1,), completion_ids=(2,), tokenizer_hash="t"
    )
    good, bad = view(record, RecordKind.BINARY)
    assert good == Binary(
        id="p/chosen", prompt=CHAT, completion="a", label=True, prompt_ids=(1,), completion_ids=(2,), tokenizer_hash="t"
    )
    assert (bad.id, bad.completion, bad.label, bad.completion_ids) == ("p/rejected", "b", False, (3,))  # type: ignore[attr-defined]
    (prompt,) = view(record, RecordKind.PROMPT)
    assert prompt == Prompt(id="p", prompt=CHAT, prompt_ids=(1,), tokenizer_hash="t")


@pytest.mark.parametrize(("have", "want"), list(itertools.product(RecordKind, repeat=2)))
def test_every_combination(have: RecordKind, want: RecordKind) -> None:
    if want == have:
        assert view(RECORDS[have], want) == (RECORDS[have],)
    elif want in VIEWS[have]:
        assert {item.kind for item in view(RECORDS[have], want)} == {want}
    else:
        with pytest.raises(ConfigError, match=f"data: got '{have} records'.*This data offers"):
            view(RECORDS[have], want)


@pytest.mark.parametrize(
    ("labels", "good"),
    [((1.0, 1.0), True), ((1.0, 0.0), False), ((0.0, None), False), ((0.5, 0.0), False), ((1, 1), True)],
)
@pytest.mark.parametrize(("prompt", "text"), [("Q", "\na\nb"), ("Q\n", "a\nb"), (CHAT, "a\nb")])
def test_a_solution_is_good_if_all_its_steps_are(labels: tuple, good: bool, prompt: PromptLike, text: str) -> None:
    record = Stepwise(id="s", prompt=prompt, steps=("a", "b"), labels=labels, answer={"target": 1})
    expected = Binary(id="s", prompt=prompt, completion=text, label=good, answer={"target": 1})
    assert view(record, RecordKind.BINARY) == (expected,)
    if good:
        imitated = Demonstration(id="s", prompt=prompt, completion=text, answer={"target": 1})
        assert view(record, RecordKind.DEMONSTRATION) == (imitated,)
    else:
        with pytest.raises(UnfitError, match="thumbs down"):
            view(record, RecordKind.DEMONSTRATION)


@pytest.mark.parametrize("labels", [(1.0, None), (None, 1.0), (1.0, 0.9)])
@pytest.mark.parametrize("want", [RecordKind.BINARY, RecordKind.DEMONSTRATION])
def test_a_solution_with_doubtful_steps_is_neither_good_nor_bad(labels: tuple, want: RecordKind) -> None:
    with pytest.raises(UnfitError, match="not known whether every step is right"):
        view(Stepwise(id="s", prompt="Q", steps=("a", "b"), labels=labels), want)


def test_only_good_completions_are_imitated() -> None:
    good = Binary(
        id="b", prompt="Q", completion="a", label=True, prompt_ids=(1,), completion_ids=(2,), tokenizer_hash="t"
    )
    (found,) = view(good, RecordKind.DEMONSTRATION)
    assert found == Demonstration(
        id="b", prompt="Q", completion="a", prompt_ids=(1,), completion_ids=(2,), tokenizer_hash="t"
    )
    with pytest.raises(UnfitError, match="thumbs down"):
        view(replace(good, label=False), RecordKind.DEMONSTRATION)


def test_a_tie_serves_only_as_a_prompt_or_where_soft_labels_are_wanted() -> None:
    tie = replace(RECORDS[RecordKind.PREFERENCE], probability=0.5)
    for want in (RecordKind.PREFERENCE, RecordKind.DEMONSTRATION, RecordKind.BINARY):
        with pytest.raises(UnfitError, match="tie"):
            view(tie, want)
    for want in (RecordKind.DEMONSTRATION, RecordKind.BINARY):
        with pytest.raises(UnfitError, match="tie"):
            view(tie, want, soft_labels=True)
    assert view(tie, RecordKind.PREFERENCE, soft_labels=True) == (tie,)
    assert view(tie, RecordKind.PROMPT)[0].prompt == CHAT
    nearly = replace(tie, probability=0.51)
    assert view(nearly, RecordKind.PREFERENCE) == (nearly,)


def test_refusal_names_the_way_to_pairs() -> None:
    with pytest.raises(ConfigError, match="data=pairs_from_labels makes preferences"):
        check_view(RecordKind.BINARY, RecordKind.PREFERENCE)
    with pytest.raises(ConfigError) as caught:
        check_view(RecordKind.DEMONSTRATION, RecordKind.PREFERENCE)
    assert "pairs_from_labels" not in str(caught.value)


def test_refusal_names_what_is_offered() -> None:
    with pytest.raises(ConfigError, match=r"expected preferences.*offers demonstrations.*; prompts for evaluation"):
        check_view(RecordKind.DEMONSTRATION, RecordKind.PREFERENCE)


def test_what_a_verifier_needs_stays_with_the_prompt_in_every_view() -> None:
    for record in RECORDS.values():
        known = replace(record, answer={"target": 1})
        for want in (known.kind, *VIEWS[known.kind]):
            assert {str(seen.answer) for seen in view(known, want)} == {"{'target': 1}"}


@pytest.mark.parametrize("kind", RecordKind)
def test_prompts_to_measure_on_come_from_any_record(kind: RecordKind) -> None:
    (prompt,) = prompt_of(RECORDS[kind])
    assert prompt.prompt == RECORDS[kind].prompt
    assert prompt.answer == ({"target": [1, None]} if kind is RecordKind.PROMPT else {})


@pytest.mark.parametrize("kind", RecordKind)
def test_rows_and_back(kind: RecordKind) -> None:
    assert from_row(kind, to_row(RECORDS[kind])) == RECORDS[kind]


TURN = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Prompt(id="x", prompt=[]), "prompt has no messages"),
        (lambda: Prompt(id="x", prompt=[TURN]), "the prompt ends with the assistant's turn"),
        (lambda: Prompt(id="x", prompt=[{"role": "user"}]), "prompt holds something that is no message"),
        (lambda: Prompt(id="x", prompt=[{"role": "user", "content": None}]), "prompt's content is not text"),
        (lambda: Prompt(id="x", prompt=3), "prompt has no messages"),
        (lambda: Binary(id="x", prompt="Q", completion="a", label=2), "label is not a boolean"),
        (lambda: Demonstration(id="x", prompt="Q", completion=[TURN]), "completion is chat but prompt is text"),
        (lambda: Demonstration(id="x", prompt=CHAT, completion=CHAT), "the conversation does not end"),
        (lambda: Preference(id="x", prompt="Q", chosen="a", rejected="b", margin=float("nan")), "NaN or Inf"),
        (lambda: Preference(id="x", prompt="Q", chosen="a", rejected="b", margin="1"), "margin is not a number"),
        (
            lambda: Preference(id="x", prompt="Q", chosen="a", rejected="b", probability=1.5),
            "probability outside [0, 1]",
        ),
        (
            lambda: Preference(id="x", prompt="Q", chosen="a", rejected="b", probability=0.4),
            "probability below one half",
        ),
        (lambda: Preference(id="x", prompt="Q", chosen="a", rejected="b", probability=float("nan")), "NaN or Inf"),
        (lambda: Stepwise(id="x", prompt="Q", steps=("a",), labels=()), "steps and labels differ in number"),
        (lambda: Stepwise(id="x", prompt="Q", steps=("a",), labels=(1.5,)), "step label outside"),
        (lambda: Stepwise(id="x", prompt="Q", steps=("a",), labels=(None,)), "no step has a label"),
    ],
)
def test_invalid_record(make: object, reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        make()  # type: ignore[operator]
    assert caught.value.reason.startswith(reason)
