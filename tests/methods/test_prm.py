import pytest
import torch
from by_hand import logged, parts
from transformers import AutoModelForTokenClassification

from alignment.config.validate import validate
from alignment.data.collate import TokenSequence, token_batch
from alignment.methods.prm import PRM, first_false
from alignment.types import StepwiseBatch
from alignment.utils.errors import ConfigError

from method_tester import TWO_PROCESSES, MethodTester
from runs import SMALL_RUN, job, metrics, train

TESTER = MethodTester(overrides=("method=prm", "model=chains_init"), uses_reference=False)


def test_step_from_yaml(tmp_path):
    TESTER.check_step_from_yaml(tmp_path)


def test_overfits_eight_solutions(tmp_path):
    TESTER.check_overfits(tmp_path)


def test_resume_is_bitwise(tmp_path):
    TESTER.check_resume_is_bitwise(tmp_path, at=4)


def test_accumulation_agrees(tmp_path):
    TESTER.check_accumulation_agrees(tmp_path)


@pytest.mark.parametrize("hardware", TWO_PROCESSES)
@pytest.mark.parametrize("variant", [("adapter=none",), ("adapter=lora",)], ids="-".join)
def test_two_processes_agree_with_one(tmp_path, hardware, variant):
    TESTER.check_processes_agree(tmp_path, hardware, variant)


@pytest.mark.parametrize("option", ["model.gradient_checkpointing=true", "model.compile=true"])
def test_hardware_options_change_no_number(tmp_path, option):
    TESTER.check_hardware_options(tmp_path, option, tolerance=1e-4)


def test_golden_curve(tmp_path):
    TESTER.check_golden(tmp_path, "prm")


def test_the_export_loads_in_transformers(tmp_path):
    run = train(job(tmp_path, *TESTER.overrides, "trainer.max_steps=2"), tmp_path / "run")
    model = AutoModelForTokenClassification.from_pretrained(run / "model")
    assert "AutoModelForTokenClassification.from_pretrained" in (run / "model" / "README.md").read_text("utf-8")
    assert model.config.id2label == {0: "wrong", 1: "right"}
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 2)


def test_unjudged_steps_are_no_targets_and_soft_labels_are_kept(tmp_path):
    """T7: labels come through as they were given, and a step without one is left out."""
    row = '{"prompt": "1 + 1 + 1", "completions": ["1 + 1 = 2", "2 + 1 = 3", "Answer: 3"], "labels": [0.25, null, 1]}\n'
    (tmp_path / "steps.jsonl").write_text("".join(row.replace("1 + 1 + 1", f"sum {i}") for i in range(8)))
    read = (
        *("data=jsonl", f"data.train.path={tmp_path / 'steps.jsonl'}", "data.validation_size=0"),
        *("data.max_length=64", "data.max_prompt_length=32"),
        *("trainer.max_steps=1", "export=null"),
    )
    means = {
        labels: metrics(
            train(
                job(tmp_path, *SMALL_RUN, *TESTER.overrides, *read, f"method.labels={labels}", small=False),
                tmp_path / labels,
            )
        )
        for labels in ("soft", "hard")
    }
    assert means["soft"][1]["train/process/label_mean"] == pytest.approx((0.25 + 1) / 2)
    assert means["hard"][1]["train/process/label_mean"] == 1.0


def test_first_error_is_found():
    from alignment.types import TokenBatch

    ids = torch.zeros(1, 8, dtype=torch.long)
    owner = torch.tensor([0, 0, 0, 1, 1, 2])
    batch = TokenBatch(ids, None, None, owner, owner, owner, owner, 3, 8)
    flags = torch.tensor([True, False, False, True, True, False])
    assert first_false(flags, batch).tolist() == [1, 6, 5]


#: Solutions, a filler last: labels, None for a step that nobody judged, and the probabilities given to judged steps.
SOLUTIONS = (
    ([1, 1, 0, 1], [0.75, 0.75, 0.25, 0.25]),  # the first error is found, a right step thereafter is not
    ([0.75, 1], [0.5, 0.75]),  # no error, and none is seen: even odds are a yes
    ([1, 1], [0.75, 0.25]),  # no error, and one is seen
    ([0, None, 0], [0.75, 0.25]),  # another error than the first is seen
    ([0, 0.25], [0.25, 0.25]),  # the second step is an error unless any success is enough
    ([0, 0], [0.75, 0.75]),
)


@pytest.mark.parametrize(
    ("labels", "accuracy", "recall", "mean"), [("soft", 9 / 12, 4 / 5, 7 / 12), ("hard", 8 / 12, 3 / 4, 8 / 12)]
)
def test_metrics_by_hand(labels, accuracy, recall, mean):
    ids = [TokenSequence([1], [2] * len(given), [label is not None for label in given]) for given, _ in SOLUTIONS]
    right = torch.tensor([probability for _, said in SOLUTIONS for probability in said])
    given = torch.tensor([float(label) for given, _ in SOLUTIONS for label in given if label is not None])
    weights = torch.tensor([1.0] * 5 + [0.0])
    batch = StepwiseBatch(tuple("abcdef"), weights, counts={}, tokens=token_batch(ids, pad_id=0), labels=given)
    method = PRM(labels=labels, parts=parts())
    method.reward = lambda tokens: torch.stack([1 - right, right], dim=1).log()
    values = logged(method, method.terms(batch))
    assert values["process/step_accuracy"] == pytest.approx(accuracy)
    assert values["process/wrong_step_recall"] == pytest.approx(recall)
    assert values["process/first_error_accuracy"] == pytest.approx(3 / 5)
    assert values["process/label_mean"] == pytest.approx(mean)
    truth = given if labels == "soft" else given.ceil()
    entropies = -(truth * right.log() + (1 - truth) * (1 - right).log())
    assert values["loss/prm"] == pytest.approx(entropies[:-2].mean().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("override", "message"),
    [("method.labels=fuzzy", "method.labels"), ("reference=frozen_copy", "reference")],
)
def test_bad_fields_are_named(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        validate(job(tmp_path, *TESTER.overrides, override), "train")


def test_data_without_steps_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="judged steps"):
        train(job(tmp_path, *TESTER.overrides, "data=world"), tmp_path / "run")
