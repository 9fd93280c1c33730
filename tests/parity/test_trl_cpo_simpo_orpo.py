"""CPO, SimPO and ORPO against TRL's trainers on the same weights and tokens: loss, gradients and what is logged.

Where the two define something differently:

- Likelihood. TRL's is the mean over a micro-batch's tokens: ``nll_normaliser=token``. ORPO's is over prompts too:
  ``nll_over=prompt_and_completion``. CPO's and SimPO's are over completions in both.
- SimPO is a loss type of TRL's CPO. It gives the margin as gamma itself.
- Averages. On one micro-batch both average alike. Over several, TRL averages the micro-batches' averages and ours
  divides by the pairs, or the tokens, of the whole step.
- Rounding. TRL casts ORPO's log-probs to fp32 even in a float64 model. The float64 cases run all of TRL but that cast.
- Certainty. At a chosen completion of probability 1 TRL's ORPO has a gradient of NaN; ours is finite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from peer_case import (
    ACCURACY,
    REWARDS,
    SUMS,
    Case,
    Result,
    assert_same,
    make_case,
    ours,
    result,
    trl_inputs,
    trl_trainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from alignment.losses.orpo import orpo_loss

MEANS = {"logps/chosen_mean_nats": "logps/chosen", "logps/rejected_mean_nats": "logps/rejected"}
NLL = {"loss/nll": "nll_loss"}


@dataclass(frozen=True)
class Pair:
    """A method of ours, by its overrides, and what it is called in TRL."""

    overrides: tuple[str, ...]
    trainer: Any
    config: Any
    fields: dict[str, Any]
    metrics: dict[str, str]


def cpo(*, beta: float, alpha: float, smoothing: float) -> Pair:
    values = f"method.beta={beta}", f"method.nll_coefficient={alpha}", f"method.label_smoothing={smoothing}"
    fields = {"beta": beta, "cpo_alpha": alpha, "label_smoothing": smoothing, "loss_type": "sigmoid"}
    metrics = REWARDS | ACCURACY | SUMS | (NLL if alpha else {})
    return Pair(("method=cpo", "method.nll_normaliser=token", *values), CPOTrainer, CPOConfig, fields, metrics)


def simpo(*, beta: float, gamma: float, alpha: float) -> Pair:
    values = f"method.beta={beta}", f"method.gamma_beta_ratio={gamma / beta}", f"method.nll_coefficient={alpha}"
    fields = {"beta": beta, "simpo_gamma": gamma, "cpo_alpha": alpha, "loss_type": "simpo"}
    metrics = REWARDS | ACCURACY | MEANS | (NLL if alpha else {})
    return Pair(("method=simpo", "method.length_normalised=true", *values), CPOTrainer, CPOConfig, fields, metrics)


def orpo(*, weight: float) -> Pair:
    normaliser = "method.nll_over=prompt_and_completion", "method.nll_normaliser=token"
    metrics = REWARDS | ACCURACY | MEANS | NLL | {"odds/log_ratio_nats": "log_odds_chosen"}
    overrides = ("method=orpo", f"method.odds_ratio_coefficient={weight}", *normaliser)
    return Pair(overrides, ORPOTrainer, ORPOConfig, {"beta": weight}, metrics)


PAIRS = {
    "cpo": cpo(beta=0.1, alpha=1.0, smoothing=0.0),
    "cpo_without_nll": cpo(beta=0.5, alpha=0.0, smoothing=0.0),
    "cpo_smoothed": cpo(beta=0.5, alpha=0.3, smoothing=0.2),
    "simpo": simpo(beta=2.0, gamma=1.0, alpha=0.0),
    "simpo_no_margin": simpo(beta=2.5, gamma=0.0, alpha=0.0),
    "simpo_with_nll": simpo(beta=2.0, gamma=1.6, alpha=1.0),
    "orpo": orpo(weight=0.1),
    "orpo_strong": orpo(weight=1.0),
}


def trl_pair(case: Case, pair: Pair) -> Result:
    trainer = trl_trainer(case, pair.trainer, pair.config, **pair.fields)
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, trl_inputs(trainer), "train")
    return result(loss, metrics, trainer.model)


class KeepsFloat64(ORPOTrainer):
    """TRL's ORPO without its cast of log-probs to fp32."""

    def odds_ratio_loss(self, policy_chosen_logps, policy_rejected_logps):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            return super().odds_ratio_loss(policy_chosen_logps, policy_rejected_logps)


@pytest.mark.parametrize("name", PAIRS)
def test_float64(tmp_path, name):
    case, pair = make_case(tmp_path, torch.float64), PAIRS[name]
    if pair.trainer is ORPOTrainer:
        pair = replace(pair, trainer=KeepsFloat64)
    our, peer = ours(case, *pair.overrides), trl_pair(case, pair)
    # Llama's norms stay in fp32
    assert_same(our, peer, pair.metrics, loss=(1e-7, None), metric=(1e-7, 1e-7), gradient=1e-6)
    if "log_odds_ratio" in peer.metrics:
        assert our.metrics["loss/odds_ratio"] == pytest.approx(-peer.metrics["log_odds_ratio"], rel=1e-7)


@pytest.mark.parametrize("name", ["cpo_smoothed", "simpo_with_nll", "orpo"])
def test_fp32_as_trl_ships(tmp_path, name):
    case, pair = make_case(tmp_path, torch.float32), PAIRS[name]
    our, peer = ours(case, *pair.overrides), trl_pair(case, pair)
    assert_same(our, peer, pair.metrics, loss=(1e-5, None), metric=(1e-5, 1e-5), gradient=1e-5)


def test_trls_orpo_is_not_the_papers(tmp_path):
    """The reason for ``nll_over``: over completions alone the likelihood is another one."""
    case, pair = make_case(tmp_path, torch.float32), PAIRS["orpo"]
    our, peer = ours(case, *pair.overrides, "method.nll_over=completion"), trl_pair(case, pair)
    assert our.metrics["loss/nll"] != pytest.approx(peer.metrics["nll_loss"], rel=1e-3)
    assert our.metrics["odds/log_ratio_nats"] == pytest.approx(peer.metrics["log_odds_chosen"], rel=1e-5)


def test_at_certainty_ours_is_finite_where_trls_is_not(tmp_path):
    trainer = trl_trainer(make_case(tmp_path, torch.float32), ORPOTrainer, ORPOConfig, **PAIRS["orpo"].fields)
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.tensor([-1.0])
    our = orpo_loss(policy_chosen_mean_logps=chosen, policy_rejected_mean_logps=rejected)
    peer, *_ = trainer.odds_ratio_loss(chosen, rejected)
    gradients = [torch.autograd.grad(losses.sum(), chosen)[0].item() for losses in (our, peer)]
    assert gradients[0] == pytest.approx(0, abs=1)
    assert gradients[1] != gradients[1]
