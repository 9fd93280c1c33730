"""Solutions taken apart, what is continued, and what a verifier reads."""

from __future__ import annotations

import pytest

from alignment.data.encoding import Encoder
from alignment.data.records import Demonstration, Prompt, Stepwise
from alignment.data.steps import steps_of
from alignment.data.worlds.tokenizer import world_tokenizer
from alignment.evaluation.step_values import finished, solution_of, step_prompts, verdicts, whole
from alignment.rewards.length import LengthReward
from alignment.types import Rollout
from alignment.utils.errors import DataError, UserError

CHAT = [{"role": "user", "content": "Start with 27."}]


def stepwise(prompt, *steps: str) -> Stepwise:
    return Stepwise(id="s", prompt=prompt, steps=steps, labels=(1.0,) * len(steps), answer={"answer": "3"})


@pytest.mark.parametrize(
    ("text", "steps", "ends"),
    [
        ("a\nb", ["a", "b"], [2, 3]),
        ("a\nb\n", ["a", "b"], [2, 4]),
        (" a \n\n\tb", ["a", "b"], [4, 7]),
        ("a", ["a"], [1]),
        ("", [], []),
        ("\n \n", [], []),
    ],
)
def test_steps_of_a_text(text, steps, ends):
    found = steps_of(text, "\n")
    assert [step.text for step in found] == steps
    assert [step.end for step in found] == ends


def test_a_demonstration_keeps_its_text_in_front_of_what_goes_on():
    record = Demonstration(id="d", prompt="Q:", completion=" one\n\n two\nthree", answer={"answer": "3"})
    solution = solution_of(record, "\n")
    assert solution.steps == ("one", "two", "three")
    assert solution.prefixes == [" one\n", " one\n\n two\n"]
    assert whole(solution).completion == " one\n\n two\nthree"
    assert whole(solution).answer == {"answer": "3"}


def test_judged_steps_are_taken_as_they_are():
    assert solution_of(stepwise(CHAT, "one", "two\nlines", "three"), "\n").prefixes == ["one\n", "one\ntwo\nlines\n"]
    # As in training, a text prompt does not run into the first step.
    assert solution_of(stepwise("Q:", "one", "two"), "\n").prefixes == ["\none\n"]
    assert solution_of(stepwise("Q: ", "one", "two"), " ки\n").prefixes == ["one ки\n"]
    assert solution_of(stepwise("Q: ", "one", "two"), " ки\n").text == "one ки\ntwo"


def test_a_chats_answer_may_be_one_turn_and_no_more():
    turn = {"role": "assistant", "content": "one\ntwo"}
    assert solution_of(Demonstration(id="d", prompt=CHAT, completion=[turn]), "\n").steps == ("one", "two")
    many = Demonstration(id="d", prompt=CHAT, completion=[turn, CHAT[0], turn])
    with pytest.raises(DataError, match="d: the completion has 3 turns"):
        solution_of(many, "\n")


def test_what_is_continued_is_the_prompt_with_more_and_more_steps():
    tokenizer = world_tokenizer()
    prompts = step_prompts(solution_of(stepwise(CHAT, "The soup", "was", "great"), "\n"), Encoder(tokenizer))
    texts = [
        "<|bos|><|user|>Start with 27.<|assistant|>The soup\n",
        "<|bos|><|user|>Start with 27.<|assistant|>The soup\nwas\n",
    ]
    assert [tokenizer.decode(prompt.prompt_ids) for prompt in prompts] == texts
    assert [prompt.prompt_ids.count(tokenizer.bos_token_id) for prompt in prompts] == [1, 1]
    assert [prompt.id for prompt in prompts] == ["s/step 1", "s/step 2"]
    assert step_prompts(solution_of(stepwise(CHAT, "It is 3."), "\n"), Encoder(tokenizer)) == []
    refused = stepwise([{"role": "tool", "content": "x"}], "one", "two")
    with pytest.raises(DataError, match=r"^s: the chat template refuses"):
        step_prompts(solution_of(refused, "\n"), Encoder(tokenizer))


def test_the_verifier_reads_a_continuation_behind_its_steps():
    solution = solution_of(stepwise(CHAT, "one", "two", "three"), "\n")
    drawn = [Rollout("x", CHAT, (1,), (2,), text, "stop", number % 2) for number, text in enumerate("ABCD")]
    assert [item.completion for item in finished(solution, drawn)] == ["one\nA", "one\nB", "one\ntwo\nC", "one\ntwo\nD"]
    assert all(item.answer == {"answer": "3"} for item in finished(solution, drawn))
    assert list(finished(solution_of(stepwise(CHAT, "one"), "\n"), [])) == []


def test_a_reward_that_is_no_verifier_is_refused():
    judge = LengthReward(target_tokens=4, tolerance_tokens=4)
    short, half = Rollout("p", CHAT, (1,), (), "", "stop", 0), Rollout("q", CHAT, (1,), (2, 3), "x", "stop", 0)
    assert verdicts(judge, [short]) == [False]
    assert verdicts(judge, []) == []
    with pytest.raises(UserError, match=r"reward: LengthReward gives 0\.5 for prompt q, and a verifier gives 1 for"):
        verdicts(judge, [short, half])
    with pytest.raises(AssertionError):
        solution_of(Prompt(id="p", prompt="Q"), "\n")
