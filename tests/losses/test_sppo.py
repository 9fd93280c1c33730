import pytest
import torch

from alignment.losses.sppo import sppo_loss

from loss_tester import LossTester


def twin(*, chosen_log_ratio, rejected_log_ratio, beta):
    """(log-ratio - eta (P(win) - 1/2))^2 of both sides."""
    eta = 1 / beta
    return sum((ratio - eta * (wins - 0.5)) ** 2 for ratio, wins in ((chosen_log_ratio, 1), (rejected_log_ratio, 0)))


TESTER = LossTester(
    loss=sppo_loss,
    twin=twin,
    inputs=("chosen_log_ratio", "rejected_log_ratio"),
    settings=tuple({"beta": b} for b in (0.001, 0.1, 1.0)),
    low=-8.0,
    high=8.0,
)
VALUES = [
    # chosen, rejected, settings, expected
    (0.0, 0.0, {"beta": 0.5}, 2.0),
    (1.0, -1.0, {"beta": 0.5}, 0.0),
    (2.0, 0.0, {"beta": 0.5}, 2.0),
]


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(("chosen", "rejected", "settings", "expected"), VALUES)
def test_values_derived_by_hand(chosen, rejected, settings, expected):
    sides = {"chosen_log_ratio": torch.tensor([chosen], dtype=torch.float64)}
    sides["rejected_log_ratio"] = torch.tensor([rejected], dtype=torch.float64)
    assert sppo_loss(**sides, **settings).item() == pytest.approx(expected, abs=1e-12)
