"""What SFT, KTO and the reward model learn from and log, and any method of a step, from numbers made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from by_hand import logged, parts, scored, tokens_of

from alignment.methods.base import Method
from alignment.methods.kto import KTO
from alignment.methods.reward_model import RewardModel
from alignment.methods.sft import SFT
from alignment.types import BinaryBatch, Mismatched, PreferenceBatch, SFTBatch


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


@pytest.mark.parametrize(
    ("normaliser", "nll"), [("token", (1 + 2 + 4 + 0.5 + 0.25) / 5), ("sequence", (1.5 + 4 + 0.375) / 3)]
)
def test_sft(monkeypatch, normaliser, nll):
    """Three demonstrations and a filler."""
    logps = scored([-1.0, -2.0], [-4.0], [-0.5, -0.25], [-9.0, -9.0, -9.0])
    policy = replace(
        logps,
        is_greedy=torch.tensor([True, False, False, True, True, False, False, False]),
        entropies=torch.tensor([0.5, 1.5, 2.0, 0.25, 0.75, 9.0, 9.0, 9.0]),
        ranks=torch.tensor([0, 5, 4, 0, 0, 9, 9, 9]),
    )
    monkeypatch.setattr(SFT, "is_logged", True)
    method = SFT(normaliser=normaliser, train_on_prompt=False, parts=parts())
    method.policy = lambda tokens, entropy, rank: policy if entropy and rank else logps
    batch = SFTBatch(tuple("abcd"), torch.tensor([1.0, 1.0, 1.0, 0.0]), counts={}, tokens=tokens_of(logps))
    assert logged(method, method.terms(batch)) == pytest.approx(
        {
            "loss/nll": nll,
            "loss/total": nll,
            "logps/completion_mean_nats": -7.75 / 5,
            "policy/token_accuracy": 3 / 5,
            "policy/top5_accuracy": 4 / 5,
            "length/completion_tokens": 5 / 3,
            "policy/entropy_nats": 5 / 5,
        }
    )


#: Three completions and a filler, of log-ratios 1, -2, .5: up, down, up.
POLICY = scored([-1.0, -2.0], [-5.0], [-1.0, -0.5, -0.5], [-9.0])
REFERENCE = scored([-2.0, -2.0], [-3.0], [-1.0, -1.0, -0.5], [-1.0])
#: Two mismatched ones and a filler, of log-ratios 3 and -1.
CROSSED, CROSSED_REFERENCE = scored([-1.0, -1.0], [-3.0], [-1.0]), scored([-3.0, -2.0], [-2.0], [-9.0])


def kto(monkeypatch, *, others: float, sign: int = 1) -> KTO:
    """A method whose other ranks' mismatched pairs add up to a number of nats."""

    def reduce(total: torch.Tensor, *, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "sum"
        return total + others

    monkeypatch.setattr(KTO, "trainer", SimpleNamespace(strategy=SimpleNamespace(reduce=reduce)))
    method = KTO(beta=0.5, desirable_weight=0.8, undesirable_weight=1.5, z0="mismatched", parts=parts(reference=POLICY))
    sides = {4: (POLICY, REFERENCE), 3: (CROSSED, CROSSED_REFERENCE)[::sign]}
    method.policy = lambda tokens: sides[tokens.num_sequences][0]
    method.bundle.reference.batch_logps = lambda batch: sides[batch.tokens.num_sequences][1].token_logps
    return method


def thumbs(*, is_first: bool, labels: tuple[bool, ...] = (True, False, True, False)) -> BinaryBatch:
    crossed = Mismatched(tuple("efg"), torch.tensor([1.0, 1.0, 0.0]), tokens_of(CROSSED))
    return BinaryBatch(
        tuple("abcd"),
        torch.tensor([1.0, 1.0, 1.0, 0.0]),
        counts={"records": 5.0},
        tokens=tokens_of(POLICY),
        labels=torch.tensor(labels),
        mismatched=(crossed,) if is_first else (),
    )


def test_kto(monkeypatch):
    """z0 = (3 - 1 + 2) / 5 = .8, of both ranks' records, and the same in the step's second micro-batch."""
    method = kto(monkeypatch, others=2.0)
    up, down = [1 - 0.8, 0.5 - 0.8], -2 - 0.8
    loss = (0.8 / (1 + math.exp(up[0] / 2)) + 0.8 / (1 + math.exp(up[1] / 2)) + 1.5 / (1 + math.exp(-down / 2))) / 3
    expected = {
        "loss/kto": loss,
        "loss/total": loss,
        "reward/chosen": 0.5 * 1.5 / 2,
        "reward/rejected": -1.0,
        "reward/margin": 0.375 + 1.0,
        "logps/chosen_sum_nats": (-3 - 2) / 2,
        "logps/rejected_sum_nats": -5.0,
        "logps/chosen_mean_nats": (-1.5 - 2 / 3) / 2,
        "logps/rejected_mean_nats": -5.0,
        "length/chosen_tokens": 2.5,
        "length/rejected_tokens": 1.0,
        "kl/z0_nats": 0.8,
    }
    first = method.terms(thumbs(is_first=True))
    assert logged(method, first) == pytest.approx(expected)
    assert logged(method, first, method.terms(thumbs(is_first=False))) == pytest.approx(expected)


def test_z0_is_never_below_nothing(monkeypatch):
    """(1 - 3 + 1.5) / 5 would be -.1."""
    method = kto(monkeypatch, others=1.5, sign=-1)
    assert logged(method, method.terms(thumbs(is_first=True)))["kl/z0_nats"] == 0.0


def test_a_label_that_no_record_has_is_not_logged(monkeypatch):
    method = kto(monkeypatch, others=2.0)
    got = logged(method, method.terms(thumbs(is_first=True, labels=(True, True, True, False))))
    assert got["reward/chosen"] == pytest.approx(0.5 * (1 - 2 + 0.5) / 3)
    assert not [name for name in got if "rejected" in name or "margin" in name]


#: Four pairs and a filler: scores whose differences are log 4.5, -log 4.5, 0 and log 9: 9/11, 2/11, .5 and .9.
CHOSEN = [math.log(4.5) + 1, 0.0, -0.5, math.log(9), 50.0]
REJECTED = [1.0, math.log(4.5), -0.5, 0.0, -50.0]
LENGTHS = [[0.0] * length for length in (3, 1, 2, 4, 9, 2, 2, 5, 4, 9)]


def judged(*, margins: list[float], probabilities: list[float] | None) -> PreferenceBatch:
    return PreferenceBatch(
        tuple("abcde"),
        torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]),
        counts={},
        tokens=tokens_of(scored(*LENGTHS)),
        margins=torch.tensor([*margins, 0.0]),
        probabilities=None if probabilities is None else torch.tensor([*probabilities, 1.0]),
    )


def reward_model(**options) -> RewardModel:
    method = RewardModel(**{"centering_coefficient": 0.0} | options, parts=parts())
    method.reward = lambda tokens: torch.tensor(CHOSEN + REJECTED)
    return method


def test_a_reward_model():
    """A tie of scores is no right order; in training nothing is said of calibration."""
    method = reward_model()
    loss = (-math.log(9 / 11) - math.log(2 / 11) - math.log(0.5) - math.log(0.9)) / 4
    assert logged(method, method.terms(judged(margins=[0.0] * 4, probabilities=None))) == pytest.approx(
        {
            "loss/reward_model": loss,
            "loss/total": loss,
            "reward/chosen": sum(CHOSEN[:4]) / 4,
            "reward/rejected": sum(REJECTED[:4]) / 4,
            "reward/margin": math.log(9) / 4,
            "reward/accuracy": 2 / 4,
            "length/chosen_tokens": (3 + 1 + 2 + 4) / 4,
            "length/rejected_tokens": (2 + 2 + 5 + 4) / 4,
        },
        rel=1e-6,
    )


def test_a_reward_model_reads_margins_votes_and_its_coefficient():
    """The vote of the first pair is a tie: it has no right order, and the three others have one right."""
    method = reward_model(centering_coefficient=0.1)
    margins, votes = [0.0, 1.0, -0.5, 0.25], [0.5, 1.0, 0.75, 1.0]
    ahead = [c - r - m for c, r, m in zip(CHOSEN, REJECTED, margins, strict=False)]
    loss = sum(v * softplus(-a) + (1 - v) * softplus(a) for v, a in zip(votes, ahead, strict=True)) / 4
    level = sum((c + r) ** 2 for c, r in zip(CHOSEN[:4], REJECTED[:4], strict=True)) / 4
    got = logged(method, method.terms(judged(margins=margins, probabilities=votes)))
    assert got["loss/reward_model"] == pytest.approx(loss)
    assert got["loss/centering"] == pytest.approx(level)
    assert got["loss/total"] == pytest.approx(loss + 0.1 * level)
    assert got["reward/margin"] == pytest.approx(math.log(9) / 4), "of rewards, whatever the pair should have"
    assert got["reward/accuracy"] == pytest.approx(1 / 3)


def test_a_reward_models_calibration_is_of_held_out_votes():
    """Confidence 9/11 twice, right once and wrong once; .5 of a vote of .7; .9 of one of 1."""
    method = reward_model().eval()
    got = logged(method, method.terms(judged(margins=[3.0] * 4, probabilities=[1.0, 1.0, 0.7, 1.0])))
    assert got["calibration/expected_error"] == pytest.approx((abs(2 / 11 - 9 / 11) + 0.2 + 0.1) / 4, abs=1e-6)


def test_what_any_step_says_of_its_optimiser_and_speed():
    """Gradients of 3, 4 and 12 have a norm of 13; 200 tokens in 4 seconds are 50 a second."""
    weights = [
        torch.nn.Parameter(torch.zeros(2)),
        torch.nn.Parameter(torch.zeros(1)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])
    published: dict[str, float] = {}
    method = SimpleNamespace(
        parameters=lambda: weights,
        is_logged=True,
        budget={"seconds": 10.0, "tokens_trained": 500.0},
        _last_log=(6.0, 300.0),
        train_sums=None,
        means=lambda sums: {"loss/total": 0.5},
        publish=published.update,
        global_step=3,
    )
    Method.on_before_optimizer_step(method, torch.optim.SGD(weights, lr=0.25))
    Method._log_train(method)
    assert published == {
        "train/loss/total": 0.5,
        "train/optim/learning_rate": 0.25,
        "train/optim/grad_norm": pytest.approx(13.0),
        "train/speed/tokens_per_second": 50.0,
        "train/budget/seconds": 10.0,
        "train/budget/tokens_trained": 500.0,
    }
