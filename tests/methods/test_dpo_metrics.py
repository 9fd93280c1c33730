"""What the methods on pairs learn from and log, from log-probs made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from by_hand import logged, parts, scored, tokens_of

from alignment.losses.bco import bco_loss
from alignment.losses.divergences import reverse_kl
from alignment.losses.dpo import dpo_loss
from alignment.methods.cpo import CPO
from alignment.methods.dpo import DPO
from alignment.methods.ipo import IPO
from alignment.methods.orpo import ORPO
from alignment.methods.pairwise import Mixture
from alignment.methods.simpo import SimPO
from alignment.types import PreferenceBatch, TokenLogps

#: Three pairs and a filler: the chosen sides, then the rejected ones.
POLICY = scored([-1.0, -2.0], [-5.0], [-1.0, -0.5, -0.5], [-9.0], [-4.0], [-1.0, -0.5], [-1.0], [-1.0, -2.0])
REFERENCE = scored([-2.0, -2.0], [-3.0], [-1.0, -1.0, -0.5], [-1.0], [-3.5], [-1.0, -1.0], [-1.5], [-9.0, -9.0])
#: Log-ratios: 1, -2 and .5 of the chosen, -.5, .5 and .5 of the rejected. The second is upside down, the third a tie.
LOG_PROBS = {
    "logps/chosen_sum_nats": (-3 - 5 - 2) / 3,
    "logps/rejected_sum_nats": (-4 - 1.5 - 1) / 3,
    "logps/chosen_mean_nats": (-1.5 - 5 - 2 / 3) / 3,
    "logps/rejected_mean_nats": (-4 - 0.75 - 1) / 3,
    "length/chosen_tokens": (2 + 1 + 3) / 3,
    "length/rejected_tokens": (1 + 2 + 1) / 3,
}
DISPLACEMENT = {
    "logps/chosen_shift_nats": (1 - 2 + 0.5) / 3,
    "logps/chosen_fell_share": 1 / 3,
    "logps/chosen_mass_ratio": (math.exp(1) + math.exp(-2) + math.exp(0.5)) / 3,
}


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def pairs(policy: TokenLogps = POLICY) -> PreferenceBatch:
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])
    return PreferenceBatch(tuple("abcd"), weights, counts={}, tokens=tokens_of(policy), margins=torch.zeros(4))


def dpo(*, reference: TokenLogps = REFERENCE, **options) -> DPO:
    settings = {
        "loss": partial(dpo_loss, label_smoothing=0.0),
        "length_normalised": False,
        "nll_coefficient": 0.0,
        "nll_normaliser": "sequence",
        "weighting": "none",
    }
    return DPO(beta=0.5, divergence=reverse_kl, parts=parts(reference=reference), **(settings | options))


def values_of(method, policy: TokenLogps = POLICY) -> dict[str, float]:
    """All that a step of these pairs logs."""
    method.policy = lambda tokens, collision=False: policy
    return logged(method, method.terms(pairs(policy)))


def rewards(chosen: list[float], rejected: list[float], *, accuracy: float) -> dict[str, float]:
    chosen_mean, rejected_mean = sum(chosen) / 3, sum(rejected) / 3
    return {
        "reward/chosen": chosen_mean,
        "reward/rejected": rejected_mean,
        "reward/margin": chosen_mean - rejected_mean,
        "reward/accuracy": accuracy,
    }


def test_dpo():
    """Margins of log-ratios 1.5, -2.5 and 0; a tie is no right order."""
    loss = (softplus(-0.75) + softplus(1.25) + softplus(0)) / 3
    expected = rewards([0.5, -1.0, 0.25], [-0.25, 0.25, 0.25], accuracy=1 / 3) | LOG_PROBS | DISPLACEMENT
    assert values_of(dpo()) == pytest.approx(expected | {"loss/dpo": loss, "loss/total": loss}, rel=1e-6)


def test_dpo_of_means():
    """Rewards are of a token, and the chosen completions have moved as far as they have."""
    margins = [0.5 + 0.5, -2 - 0.25, 0.5 / 3 - 0.5]
    loss = sum(softplus(-0.5 * margin) for margin in margins) / 3
    expected = rewards([0.25, -1.0, 0.25 / 3], [-0.25, 0.125, 0.25], accuracy=1 / 3) | LOG_PROBS | DISPLACEMENT
    got = values_of(dpo(length_normalised=True))
    assert got == pytest.approx(expected | {"loss/dpo": loss, "loss/total": loss}, rel=1e-6)


def test_a_policy_that_is_its_reference_has_moved_nowhere():
    got = values_of(dpo(reference=POLICY))
    names = ("logps/chosen_shift_nats", "logps/chosen_fell_share", "logps/chosen_mass_ratio", "reward/accuracy")
    assert [got[name] for name in names] == [0.0, 0.0, 1.0, 0.0]


def test_the_mass_of_a_completion_far_above_the_reference_is_finite():
    far = replace(REFERENCE, token_logps=REFERENCE.token_logps - 400)
    assert values_of(dpo(reference=far))["logps/chosen_mass_ratio"] == pytest.approx(math.exp(20))


def test_wpo_weighs_the_pairs():
    """log w a token: -1 and 0, of the second pair 0 and -.5, of the third 1 and 0 and so no weight above 1."""
    nats = [[-1.0, -1.0], [0.0], [2.0, 1.0, 0.0], [0.0], [0.0], [-1.0, 0.0], [0.0], [0.0, 0.0]]
    collision = POLICY.token_logps - scored(*nats).token_logps
    got = values_of(dpo(weighting="wpo"), replace(POLICY, collision_logps=collision))
    weights = [math.exp(-1), math.exp(-0.5), 1.0]
    assert got["policy/wpo_weight"] == pytest.approx(sum(weights) / 3)
    losses = [softplus(-0.75), softplus(1.25), softplus(0)]
    assert got["loss/dpo"] == pytest.approx(sum(w * v for w, v in zip(weights, losses, strict=True)) / 3)


def test_a_mixture_and_a_likelihood_are_weighed():
    """BCO: -log s(b c) - log s(-b r), at a shift of 0."""
    losses = {"sigmoid": partial(dpo_loss, label_smoothing=0.0), "bco": partial(bco_loss, reward_shift=0.0)}
    mixture = Mixture(losses=losses, weights={"sigmoid": 0.8, "bco": 0.3})
    sigmoid = (softplus(-0.75) + softplus(1.25) + softplus(0)) / 3
    bco = (softplus(-0.5) + softplus(-0.25) + softplus(1) + softplus(0.25) + softplus(-0.25) + softplus(0.25)) / 3
    for normaliser, nll in (("sequence", (1.5 + 5 + 2 / 3) / 3), ("token", 10 / 6)):
        got = values_of(dpo(loss=mixture, nll_coefficient=0.7, nll_normaliser=normaliser))
        assert got["loss/mixture_sigmoid"] == pytest.approx(sigmoid)
        assert got["loss/mixture_bco"] == pytest.approx(bco)
        assert got["loss/dpo"] == pytest.approx(0.8 * sigmoid + 0.3 * bco)
        assert got["loss/nll"] == pytest.approx(nll)
        assert got["loss/total"] == pytest.approx(0.8 * sigmoid + 0.3 * bco + 0.7 * nll)


def test_the_shift_is_that_of_the_steps_before(monkeypatch):
    """Rewards of the step: (.5 - 1 + .25 - .25 + .25 + .25) / 6 = 0; after a step of mean 2 losses are of 2 less."""
    method = dpo(loss=bco_loss)
    assert method.shift is not None
    method.shift.load_state_dict({"sum": 6.0, "count": 3.0})
    monkeypatch.setattr(DPO, "trainer", type("Fit", (), {"training": True}))
    got = values_of(method)
    assert got["reward/shift"] == 2.0
    assert got["loss/dpo"] == pytest.approx(
        (softplus(1.5) + softplus(-2.25) + softplus(3) + softplus(-1.75) + softplus(1.75) + softplus(-1.75)) / 3
    )
    method.shift.end_step()
    assert method.shift.value == pytest.approx(6 / 6)


@pytest.mark.parametrize(
    ("reduction", "chosen", "rejected"),
    [
        ("mean", [0.5, -2.0, 0.5 / 3], [-0.5, 0.25, 0.5]),
        ("sum", [1.0, -2.0, 0.5], [-0.5, 0.5, 0.5]),
    ],
)
def test_ipo(reduction, chosen, rejected):
    """With tau .25 margins are pulled to 2."""
    loss = sum((c - r - 2) ** 2 for c, r in zip(chosen, rejected, strict=True)) / 3
    expected = rewards([c / 4 for c in chosen], [r / 4 for r in rejected], accuracy=1 / 3) | LOG_PROBS
    got = values_of(IPO(tau=0.25, reduction=reduction, parts=parts(reference=REFERENCE)))
    assert got == pytest.approx(expected | {"loss/ipo": loss, "loss/total": loss}, rel=1e-6)


@pytest.mark.parametrize(("normaliser", "nll"), [("sequence", (1.5 + 5 + 2 / 3) / 3), ("token", 10 / 6)])
def test_cpo(normaliser, nll):
    """Margins of log-probs: 1, -3.5 and -1."""
    expected = rewards([-0.75, -1.25, -0.5], [-1.0, -0.375, -0.25], accuracy=1 / 3) | LOG_PROBS
    cpo = sum(0.9 * softplus(-z) + 0.1 * softplus(z) for z in (0.25, -0.875, -0.25)) / 3
    losses = {"loss/cpo": cpo, "loss/nll": nll, "loss/total": cpo + 0.7 * nll}
    method = CPO(beta=0.25, nll_coefficient=0.7, nll_normaliser=normaliser, label_smoothing=0.1, parts=parts())
    assert values_of(method) == pytest.approx(expected | losses, rel=1e-6)


@pytest.mark.parametrize(
    ("normalised", "chosen", "rejected", "accuracy"),
    [
        (True, [-1.5, -5.0, -2 / 3], [-4.0, -0.75, -1.0], 2 / 3),
        (False, [-3.0, -5.0, -2.0], [-4.0, -1.5, -1.0], 1 / 3),
    ],
)
def test_simpo(normalised, chosen, rejected, accuracy):
    method = SimPO(
        beta=2.0,
        gamma=None,
        gamma_beta_ratio=0.25,
        length_normalised=normalised,
        nll_coefficient=0.7,
        parts=parts(),
    )
    simpo = sum(softplus(-(2 * (c - r) - 0.5)) for c, r in zip(chosen, rejected, strict=True)) / 3
    losses = {"loss/simpo": simpo, "loss/nll": 10 / 6, "loss/total": simpo + 0.7 * 10 / 6}
    expected = rewards([2 * c for c in chosen], [2 * r for r in rejected], accuracy=accuracy) | LOG_PROBS
    assert values_of(method) == pytest.approx(expected | losses, rel=1e-6)


@pytest.mark.parametrize(("normaliser", "nll"), [("sequence", (1.5 + 5 + 2 / 3) / 3), ("token", 10 / 6)])
def test_orpo(normaliser, nll):
    """Rewards are lambda times log-probs a token; odds are of the mean's exponential."""
    chosen, rejected = [-1.5, -5.0, -2 / 3], [-4.0, -0.75, -1.0]
    odds = [c - math.log1p(-math.exp(c)) - r + math.log1p(-math.exp(r)) for c, r in zip(chosen, rejected, strict=True)]
    ratio = sum(softplus(-value) for value in odds) / 3
    expected = rewards([c / 5 for c in chosen], [r / 5 for r in rejected], accuracy=2 / 3) | LOG_PROBS
    losses = {"loss/odds_ratio": ratio, "loss/nll": nll, "loss/total": ratio / 5 + nll}
    method = ORPO(odds_ratio_coefficient=0.2, nll_over="completion", nll_normaliser=normaliser, parts=parts())
    odds_ratio = {"odds/log_ratio_nats": sum(odds) / 3}
    assert values_of(method) == pytest.approx(expected | losses | odds_ratio, rel=1e-6)
