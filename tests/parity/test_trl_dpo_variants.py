"""DPO's variants against TRL 1.16's DPOTrainer on the same weights and tokens: loss, gradients, logged rewards.

Every ``loss_type`` of TRL, every ``f_divergence_type``, ``use_weighting``, and mixtures. Where the two define something
differently:

- Names. ``sigmoid_norm`` is ``method.length_normalised=true``; ``sft`` is ``method.nll_coefficient`` with
  ``nll_normaliser=token`` (formerly TRL's ``rpo_alpha``); ``loss_weights`` are a mixture's.
- IPO is a method of its own here. TRL's beta is our tau, and its loss is ours with ``reduction=mean``; it has no other.
  It logs rewards all the same as beta times the sum of log-ratios: those are ours with ``reduction=sum``.
- BCO. TRL's ``bco_pair`` has no reward shift: 0 in our terms, which is what ours has in the first step and what is
  compared. Other shifts are held against a NumPy twin only.
- Logged rewards. Ours are the rewards that the loss reads: means a token with ``length_normalised``, beta f'(u) under
  another divergence. TRL always logs beta times the sum of log-ratios. Log-probs are compared instead.
- A divergence of ratios that are normalised by length: TRL divides f'(u) by the length, we take f' of the mean. Not
  compared.
- alpha-divergence. TRL's coefficient is 1 - alpha, and its code knows no float64: compared in fp32.
- WPO. We cap the product of weights at 1, as the authors' code does; TRL has no cap. All weights here are below 1.
  TRL's weights do not go with its ``hinge``: it multiplies in place what the backward pass still needs.
- Paired AOT sorts the whole batch in both: one batch, compared whole.
- DPOP is in none of TRL's losses.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from peer_case import ACCURACY, REWARDS, SUMS, Case, Result, assert_same, make_case, ours, trl, trl_inputs, trl_trainer
from trl import DPOConfig, DPOTrainer

SMOOTHED = ("method.loss.label_smoothing=0.2",)
HINGE_TOO = ("+method/loss@method.loss.losses.hinge=hinge", "+method.loss.weights.hinge=0.3")
#: Our overrides -> TRL's settings, with the metrics that both define alike.
SAME = {
    "hinge": (("method/loss=hinge",), {"loss_type": ["hinge"]}),
    "robust": (("method/loss=robust", *SMOOTHED), {"loss_type": ["robust"], "label_smoothing": 0.2}),
    "exo": (("method/loss=exo",), {"loss_type": ["exo_pair"], "label_smoothing": 0.001}),
    "exo smoothed": (("method/loss=exo", *SMOOTHED), {"loss_type": ["exo_pair"], "label_smoothing": 0.2}),
    "nca": (("method/loss=nca",), {"loss_type": ["nca_pair"]}),
    "bco": (("method/loss=bco",), {"loss_type": ["bco_pair"]}),
    "sppo": (("method/loss=sppo",), {"loss_type": ["sppo_hard"]}),
    "aot": (("method/loss=aot",), {"loss_type": ["aot"]}),
    "aot smoothed": (("method/loss=aot", *SMOOTHED), {"loss_type": ["aot"], "label_smoothing": 0.2}),
    "aot unpaired": (("method/loss=aot_unpaired",), {"loss_type": ["aot_unpaired"]}),
    "aot unpaired smoothed": (
        ("method/loss=aot_unpaired", *SMOOTHED),
        {"loss_type": ["aot_unpaired"], "label_smoothing": 0.2},
    ),
    "apo zero": (("method/loss=apo_zero",), {"loss_type": ["apo_zero"]}),
    "apo down": (("method/loss=apo_down",), {"loss_type": ["apo_down"]}),
    "discopop": (("method/loss=discopop",), {"loss_type": ["discopop"]}),
    "discopop at tau 0.5": (
        ("method/loss=discopop", "method.loss.tau=0.5"),
        {"loss_type": ["discopop"], "discopop_tau": 0.5},
    ),
    "nll": (
        ("method.nll_coefficient=0.7", "method.nll_normaliser=token"),
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
    ),
    "mpo": (
        ("method/loss=mpo", "method.nll_normaliser=token"),
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    ),
    "mixture of three": (
        ("method/loss=mpo", *HINGE_TOO, "method.nll_coefficient=0"),
        {"loss_type": ["sigmoid", "bco_pair", "hinge"], "loss_weights": [0.8, 0.2, 0.3]},
    ),
    "wpo": (("method.weighting=wpo",), {"use_weighting": True}),
    "wpo and robust": (
        ("method.weighting=wpo", "method/loss=robust", *SMOOTHED),
        {"use_weighting": True, "loss_type": ["robust"], "label_smoothing": 0.2},
    ),
    "wpo and a mixture": (
        ("method.weighting=wpo", "method/loss=mpo", "method.nll_coefficient=0"),
        {"use_weighting": True, "loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2]},
    ),
}
OTHER_REWARDS = {
    "length": (("method.length_normalised=true",), {"loss_type": ["sigmoid_norm"]}),
    "forward kl": (("method/divergence=forward_kl",), {"f_divergence_type": "forward_kl"}),
    "js": (("method/divergence=js",), {"f_divergence_type": "js_divergence"}),
    "js and hinge": (
        ("method/divergence=js", "method/loss=hinge"),
        {"f_divergence_type": "js_divergence", "loss_type": ["hinge"]},
    ),
    "forward kl and exo": (
        ("method/divergence=forward_kl", "method/loss=exo"),
        {"f_divergence_type": "forward_kl", "loss_type": ["exo_pair"], "label_smoothing": 0.001},
    ),
}
IPO = {"loss_type": ["ipo"]}
ALPHA = [(0.3, 0.7), (0.5, 0.5), (0.7, 0.3)]


def both(case: Case, overrides: tuple[str, ...], fields: dict[str, Any]) -> tuple[Result, Result]:
    trainer = trl_trainer(case, DPOTrainer, DPOConfig, has_reference=True, **fields)
    return ours(case, "method=dpo", *overrides), trl(trainer, trl_inputs(trainer))


@pytest.mark.parametrize("beta", [0.1, 0.5])
@pytest.mark.parametrize("name", [*SAME, *OTHER_REWARDS])
def test_float64(tmp_path, name, beta):
    overrides, fields = (SAME | OTHER_REWARDS)[name]
    case = make_case(tmp_path, torch.float64, moved=True)
    our, peer = both(case, (f"method.beta={beta}", *overrides), {"beta": beta} | fields)
    metrics = REWARDS | ACCURACY | SUMS if name in SAME else SUMS
    assert_same(our, peer, metrics, loss=(1e-7, 1e-7), metric=(1e-7, 1e-7), gradient=1e-6)
    assert our.metrics.get("policy/wpo_weight", 0.0) < 1


@pytest.mark.parametrize(("alpha", "coefficient"), ALPHA)
def test_alpha_divergence_in_fp32(tmp_path, alpha, coefficient):
    case = make_case(tmp_path, torch.float32, moved=True)
    overrides = ("method/divergence=alpha", f"method.divergence.alpha={alpha}")
    fields = {"beta": 0.1, "f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": coefficient}
    our, peer = both(case, overrides, fields)
    assert_same(our, peer, SUMS, loss=(1e-5, 1e-5), metric=(1e-5, 1e-5), gradient=1e-5)


@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_ipo_in_float64(tmp_path, tau):
    case = make_case(tmp_path, torch.float64, moved=True)
    trainer = trl_trainer(case, DPOTrainer, DPOConfig, has_reference=True, beta=tau, **IPO)
    peer = trl(trainer, trl_inputs(trainer))
    mean, total = (ours(case, "method=ipo", f"method.tau={tau}", f"method.reduction={r}") for r in ("mean", "sum"))
    assert_same(mean, peer, SUMS, loss=(1e-7, 1e-7), metric=(1e-7, 1e-7), gradient=1e-6)
    for name, peer_name in (REWARDS | ACCURACY).items():
        assert total.metrics[name] == pytest.approx(peer.metrics[peer_name], 1e-7, 1e-7), name
    assert total.loss != pytest.approx(peer.loss, rel=1e-3)
    assert mean.metrics["reward/margin"] != pytest.approx(peer.metrics["rewards/margins"], rel=1e-3)


def test_every_loss_of_trl_is_held_against_ours():
    """If TRL adds one, this says so."""
    known = set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(DPOTrainer._compute_loss)))
    settings = [IPO, *(fields for _, fields in (SAME | OTHER_REWARDS).values())]
    assert known == {loss for fields in settings for loss in fields.get("loss_type", ["sigmoid"])}
