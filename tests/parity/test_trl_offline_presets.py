"""The presets of offline methods that are called TRL's, against TRL's trainers with TRL's own defaults.

No number is given to either side but what makes TRL's trainer the objective: its ``loss_type`` and ``loss_weights``.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="parity with TRL needs the extra `peers`: pip install -e '.[peers]'")

from omegaconf import OmegaConf
from peer_case import ACCURACY, REWARDS, SUMS, assert_same, make_case, ours, result, trl, trl_inputs, trl_trainer
from test_trl_cpo_simpo_orpo import MEANS, NLL, PAIRS, KeepsFloat64, simpo
from test_trl_dpo_variants import SAME
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig

from alignment.config.compose import compose, task_config

ORPO = ("method=orpo", "method/preset=orpo_trl")
SIMPO = ("method=simpo", "method/preset=simpo_trl")
RPO = ("method=dpo", "method/preset=dpo_rpo_trl")
IPO = ("method=ipo", "method/preset=ipo_authors")
WITHOUT_REFERENCE = {
    "orpo": (ORPO, KeepsFloat64, ORPOConfig, {}),
    "simpo": (SIMPO, CPOTrainer, CPOConfig, {"loss_type": "simpo"}),
}
WITH_REFERENCE: dict[str, tuple[tuple[str, ...], dict[str, Any], dict[str, str]]] = {
    "rpo": (RPO, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}, REWARDS | ACCURACY | SUMS),
    "mpo": (
        (*RPO, "method/loss=mpo"),
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        REWARDS | ACCURACY | SUMS,
    ),
    # TRL logs beta times sums whatever the loss reads; ours are tau times what it reads.
    "ipo": (IPO, {"loss_type": ["ipo"]}, SUMS),
}


def method(*overrides: str) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(task_config(compose("train", list(overrides))))
    return plain["method"]


def default(config: type, name: str) -> Any:
    return next(field.default for field in fields(config) if field.name == name)


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_without_a_reference(tmp_path, name):
    overrides, trainer, config, given = WITHOUT_REFERENCE[name]
    case = make_case(tmp_path, torch.float64)
    built = trl_trainer(case, trainer, config, **given)
    loss, metrics = built.get_batch_loss_metrics(built.model, trl_inputs(built), "train")
    our, peer = ours(case, *overrides), result(loss, metrics, built.model)
    assert_same(our, peer, REWARDS | ACCURACY | MEANS | NLL, loss=(1e-7, None), metric=(1e-7, 1e-7), gradient=1e-6)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_with_a_reference(tmp_path, name):
    overrides, given, metrics = WITH_REFERENCE[name]
    case = make_case(tmp_path, torch.float64, moved=True)
    built = trl_trainer(case, DPOTrainer, DPOConfig, has_reference=True, **given)
    our, peer = ours(case, *overrides), trl(built, trl_inputs(built))
    assert_same(our, peer, metrics, loss=(1e-7, 1e-7), metric=(1e-7, 1e-7), gradient=1e-6)


@pytest.mark.parametrize(
    ("name", "other"),
    [("rpo", "dpo_rpo_paper"), ("ipo", "ipo_paper"), ("orpo", "orpo_paper"), ("simpo", "simpo_paper")],
)
def test_the_other_preset_is_another_loss(tmp_path, name, other):
    """Each pair of presets differs on these inputs: the comparison above could have failed."""
    overrides = {"rpo": RPO, "ipo": IPO, "orpo": ORPO, "simpo": SIMPO}[name]
    case = make_case(tmp_path, torch.float64, moved=True)
    assert ours(case, *overrides).loss != pytest.approx(
        ours(case, overrides[0], f"method/preset={other}").loss, rel=1e-3
    )


def test_fields_are_those_with_which_parity_is_proven():
    """The settings of test_trl_cpo_simpo_orpo.py and test_trl_dpo_variants.py, at TRL's default numbers."""
    assert method(*ORPO) == method(*PAIRS["orpo"].overrides)
    assert method(*ORPO)["odds_ratio_coefficient"] == default(ORPOConfig, "beta")
    numbers = {"beta": "beta", "gamma": "simpo_gamma", "alpha": "cpo_alpha"}
    theirs = simpo(**{name: default(CPOConfig, field) for name, field in numbers.items()})
    assert theirs.fields == {name: default(CPOConfig, name) for name in numbers.values()} | {"loss_type": "simpo"}
    expected, got = method(*theirs.overrides), method(*SIMPO)
    # The margin is given as gamma here, and as its ratio to beta there.
    assert got["gamma"] == expected["beta"] * expected["gamma_beta_ratio"]
    margin = {"gamma": None, "gamma_beta_ratio": None}
    assert got | margin == expected | margin
    assert method(*RPO) == method("method=dpo", *SAME["nll"][0], "method.nll_coefficient=1.0")
    assert method(*RPO, "method/loss=mpo") == method("method=dpo", *SAME["mpo"][0])
    assert method(*RPO)["beta"] == method(*IPO)["tau"] == default(DPOConfig, "beta")
