"""The chains world: its solver, its verdicts, its data sets and its tokenizer."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignment.data.features import RECORD_FEATURES
from alignment.data.records import RecordKind, from_row
from alignment.data.tokenise import STEP_END
from alignment.data.worlds import chains
from alignment.data.worlds.chain_sources import (
    WorldChainDemonstrations,
    WorldChainOutcomes,
    WorldChainPrompts,
    WorldChainSolutions,
)
from alignment.data.worlds.chains import Chain, Operation, Solver, is_solved, judge, parse_prompt, prompt_text
from alignment.data.worlds.tokenizer import chains_tokenizer
from alignment.utils.errors import ConfigError

NOISY = Solver(forget=0.4, slip=0.05)
PERFECT = Solver(forget=0.0, slip=0.0)
CHAIN = Chain(27, (Operation("+", 4), Operation("-", 3), Operation("-", 6)))
SIZE = {"num_records": 40, "seed": 0, "split": "train", "min_operations": 4, "max_operations": 6}
ERRORS = {"forget": 0.4, "slip": 0.05}
SOURCES = [
    WorldChainPrompts(**SIZE),
    WorldChainDemonstrations(**SIZE, **ERRORS),
    WorldChainSolutions(**SIZE, **ERRORS),
    WorldChainOutcomes(**SIZE, **ERRORS),
]


def drawn(num: int, *, split: chains.Split = "train") -> list[Chain]:
    random = Random(3)
    return [chains.sample_chain(split, num_operations=(4, 6), random=random) for _ in range(num)]


@pytest.fixture(scope="module")
def tokenizer():
    return chains_tokenizer()


def test_a_prompt_says_what_its_chain_is():
    assert prompt_text(CHAIN) == "Start with 27. Add 4. Subtract 3. Subtract 6."
    assert CHAIN.answer == 22
    for chain in drawn(50):
        assert parse_prompt([{"role": "user", "content": prompt_text(chain)}]) == chain
        values = [chain.start]
        for operation in chain.operations:
            values.append(operation(values[-1]))
        assert all(value in chains.VALUES for value in values)
        assert values[-1] == chain.answer
        assert 4 <= len(chain.operations) <= 6


@pytest.mark.parametrize("text", ["", "Start with 7.", "Start with 7. Add 5", "Start with 7. Add x.", "Go. Add 5."])
def test_another_prompt_is_refused(text):
    with pytest.raises(ValueError, match="not a prompt of the chains world"):
        parse_prompt(text)


def test_a_perfect_solver_is_right_in_every_step():
    for chain in drawn(50):
        lines = chains.sample_solution(chain, solver=PERFECT, random=Random(0))
        assert len(lines) == len(chain.operations) + 1
        assert judge(chain, lines) == (True,) * len(lines)
        assert is_solved(chain, lines)


@pytest.mark.parametrize(
    ("lines", "verdicts", "solved"),
    [
        # 27 + 4 with the carry forgotten; what follows goes on correctly from there.
        (["27 + 4 = 21", "21 - 3 = 18", "18 - 6 = 12", "Answer: 12"], (False, True, True, True), False),
        # The equation holds, but the number is not the one that was written before.
        (["27 + 4 = 21", "31 - 3 = 28", "28 - 6 = 22", "Answer: 22"], (False, False, True, True), True),
        # Another operation than was asked for, another operand, another order.
        (["27 - 4 = 23", "23 - 3 = 20", "20 - 6 = 14", "Answer: 14"], (False, True, True, True), False),
        (["27 + 5 = 32", "32 - 3 = 29", "29 - 6 = 23", "Answer: 23"], (False, True, True, True), False),
        # Two mistakes that cancel give a right answer.
        (["27 + 4 = 21", "21 - 3 = 28", "28 - 6 = 22", "Answer: 22"], (False, False, True, True), True),
        # An answer that is not the last number; a chain that ends early; lines too many; no step at all.
        (["27 + 4 = 31", "31 - 3 = 28", "28 - 6 = 22", "Answer: 23"], (True, True, True, False), False),
        (["27 + 4 = 31", "Answer: 31"], (True, False), False),
        (["27 + 4 = 31", "31 - 3 = 28", "28 - 6 = 22", "22 - 6 = 16", "Answer: 16"], (True,) * 3 + (False,) * 2, False),
        (["so", "27 - 3 = 24", "24 - 6 = 18", "Answer: 18"], (False, True, True, True), False),
        (["27 + 4 = 031"], (False,), False),
        ([], (), False),
    ],
)
def test_verdicts_by_hand(lines, verdicts, solved):
    assert judge(CHAIN, lines) == verdicts
    assert is_solved(CHAIN, lines) is solved


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=20) | st.sampled_from(["27 + 4 = 31", "Answer: 22", "31 - 3 = 28"]), max_size=6))
def test_any_text_at_all_has_as_many_verdicts_as_lines(lines):
    assert len(judge(CHAIN, lines)) == len(lines)
    assert is_solved(CHAIN, lines) in (True, False)


def test_the_solver_errs_as_often_as_it_says_and_goes_on_from_what_it_wrote():
    counts: Counter[str] = Counter()
    random = Random(1)
    for chain in drawn(2000):
        lines = chains.sample_solution(chain, solver=NOISY, random=random)
        numbers = [tuple(map(int, re.findall(r"\d+", line))) for line in lines[:-1]]
        assert [left for left, _, _ in numbers] == [chain.start, *(result for _, _, result in numbers[:-1])]
        for verdict, operation, (left, _, result) in zip(judge(chain, lines), chain.operations, numbers, strict=False):
            crosses = left // 10 != operation(left) // 10
            counts["crossings" if crosses else "others"] += 1
            if not verdict:
                counts["forgotten" if crosses else "slipped"] += 1
                distance = abs(result - operation(left))
                assert distance == 10 if crosses else distance in (1, 2, 10)
    for errors, steps, rate in (("forgotten", "crossings", 0.4), ("slipped", "others", 0.05)):
        spread = math.sqrt(rate * (1 - rate) / counts[steps])
        assert abs(counts[errors] / counts[steps] - rate) < 4 * spread
        assert counts[steps] > 4000


def test_the_most_common_answer_is_often_wrong_and_right_steps_are_seldom():
    """What the world is for: votes are misled by the mistake that many samples share, verdicts on steps are not."""
    random = Random(2)
    voted, verified, mean = 0, 0, 0.0
    for chain in drawn(300, split="held_out"):
        solutions = [chains.sample_solution(chain, solver=NOISY, random=random) for _ in range(16)]
        solved = [is_solved(chain, lines) for lines in solutions]
        ((answer, _),) = Counter(lines[-1] for lines in solutions).most_common(1)
        voted += answer == f"Answer: {chain.answer}"
        verified += solved[max(range(16), key=lambda place: all(judge(chain, solutions[place])))]
        mean += sum(solved) / 16
    assert 0.3 < mean / 300 < 0.45
    assert 0.55 < voted / 300 < 0.75
    assert verified / 300 > 0.93


def test_one_chain_in_five_is_held_out():
    train = {prompt_text(chain) for chain in drawn(500)}
    held_out = {prompt_text(chain) for chain in drawn(500, split="held_out")}
    assert not train & held_out
    assert all(chains.is_held_out(parse_prompt(text)) for text in held_out)
    random = Random(0)
    free = [random.choice(range(10, 90)) + sum(random.choices(chains.OPERANDS, k=5)) for _ in range(2000)]
    assert 0.17 < sum(total % 5 == 0 for total in free) / 2000 < 0.23


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.kind))
def test_a_source_gives_records_of_its_kind_and_the_same_each_time(source):
    table = source.load()
    assert table.features == RECORD_FEATURES[source.kind]
    records = [from_row(source.kind, row) for row in table]
    assert len({record.id for record in records}) == len(records) == 40
    assert records == [from_row(source.kind, row) for row in source.load()]
    assert all(record.id.startswith("chains/train/0/") for record in records)


def test_step_labels_are_the_verdicts():
    labels: Counter[float] = Counter()
    for row in WorldChainSolutions(**SIZE | {"num_records": 300}, **ERRORS).load():
        chain = parse_prompt(row["messages"])
        assert row["labels"] == [float(verdict) for verdict in judge(chain, row["steps"])]
        assert row["steps"][-1].startswith("Answer: ")
        labels.update(row["labels"])
    assert 0.15 < labels[0.0] / labels.total() < 0.35


def test_outcomes_are_right_against_wrong_and_prompts_have_the_answer():
    for row in WorldChainOutcomes(**SIZE, **ERRORS).load():
        chain = parse_prompt(row["messages"])
        assert is_solved(chain, row["chosen"].split(STEP_END))
        assert not is_solved(chain, row["rejected"].split(STEP_END))
    for row in WorldChainPrompts(**SIZE).load():
        record = from_row(RecordKind.PROMPT, row)
        assert record.answer == {"answer": str(parse_prompt(record.prompt).answer)}


def test_the_fingerprint_covers_every_argument():
    base = {**SIZE, **ERRORS}
    changes = [{}, {"num_records": 41}, {"seed": 1}, {"split": "held_out"}, {"min_operations": 3},
               {"max_operations": 7}, {"forget": 0.5}, {"slip": 0.1}]  # fmt: skip
    prints = {WorldChainSolutions(**base | change).fingerprint for change in changes}
    assert len(prints | {source.fingerprint for source in SOURCES}) == len(changes) + 3


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        (WorldChainSolutions, {"min_operations": 0}, "min_operations: got 0"),
        (WorldChainSolutions, {"max_operations": 3}, r"max_operations: got 3, expected at least min_operations \(4\)"),
        (WorldChainDemonstrations, {"forget": 1.5}, "forget: got 1.5"),
        (WorldChainDemonstrations, {"slip": math.nan}, "slip: got nan"),
    ],
)
def test_bad_arguments_are_named(source, change, message):
    with pytest.raises(ConfigError, match=message):
        source(**SIZE | ERRORS | change)


def test_a_solver_that_never_errs_gives_no_pairs(monkeypatch):
    monkeypatch.setattr("alignment.data.worlds.chain_sources.MOST_DRAWS", 50)
    with pytest.raises(ConfigError, match=r"forget: got 0\.0, expected between 0 and 1"):
        WorldChainOutcomes(**SIZE, forget=0.0, slip=0.0).load()


def test_a_digit_an_operator_and_the_end_of_a_step_are_tokens_of_their_own(tokenizer):
    text = "27 + 4 = 131\n131 - 3 = -8\nAnswer: 17"
    pieces = [tokenizer.decode([token]) for token in tokenizer(text)["input_ids"]]
    assert pieces == [*"27", " + ", "4", " = ", *"131", "\n", *"131", " - ", "3", " = ", "-", "8", "\n", "Answer: ",
                      *"17"]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60).filter(lambda text: "<|" not in text))
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_is_the_same_in_every_process(tokenizer):
    code = "from alignment.data.worlds.tokenizer import chains_tokenizer as t; print(t().backend_tokenizer.to_str())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == tokenizer.backend_tokenizer.to_str()
