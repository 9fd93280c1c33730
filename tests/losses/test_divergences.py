import math

import numpy as np
import pytest
import torch

from alignment.losses.divergences import MAX_EXPONENT, alpha, forward_kl, js, reverse_kl

from loss_tester import LossTester

#: Each divergence's generator f(u), written from its definition; the reward is f'(u) up to a constant.
GENERATORS = {
    reverse_kl: lambda u: u * np.log(u),
    forward_kl: lambda u: -np.log(u),
    js: lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2),
    alpha: lambda u, alpha: (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1)),
}
SETTINGS = {reverse_kl: ({},), forward_kl: ({},), js: ({},), alpha: ({"alpha": 0.3}, {"alpha": 0.7})}
ALL = pytest.mark.parametrize("divergence", GENERATORS, ids=lambda function: function.__name__)


def twin(divergence):
    """The generator's slope by complex step, from 1: rewards are 0 where policy and reference agree."""

    def slope(u, **setting):
        return np.imag(GENERATORS[divergence](u + 1e-30j, **setting)) / 1e-30

    return lambda *, log_ratio, **setting: slope(np.exp(log_ratio), **setting) - slope(np.ones(1), **setting)


@ALL
def test_proofs(divergence):
    LossTester(
        loss=divergence, twin=twin(divergence), inputs=("log_ratio",), settings=SETTINGS[divergence], low=-3.0, high=3.0
    ).check_all()


@ALL
def test_the_slope_at_the_reference_is_that_of_reverse_kl(divergence):
    """Near the start all divergences train alike, up to the generator's curvature: f''(1)."""
    for setting in SETTINGS[divergence]:
        log_ratio = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        divergence(log_ratio=log_ratio, **setting).sum().backward()
        assert log_ratio.grad.item() == pytest.approx(0.5 if divergence is js else 1.0, abs=1e-12)


def test_alpha_lies_between_forward_and_reverse_kl():
    log_ratio = torch.tensor([-2.0, -0.1, 0.4, 3.0], dtype=torch.float64)
    torch.testing.assert_close(alpha(log_ratio=log_ratio, alpha=1e-7), log_ratio, rtol=0, atol=1e-5)
    torch.testing.assert_close(alpha(log_ratio=log_ratio, alpha=1 - 1e-9), forward_kl(log_ratio=log_ratio))


def test_values_derived_by_hand():
    half = torch.tensor([-math.log(2)], dtype=torch.float64)
    assert forward_kl(log_ratio=half).item() == pytest.approx(-1.0)
    assert js(log_ratio=half).item() == pytest.approx(math.log(2 / 3))
    assert alpha(log_ratio=half, alpha=0.5).item() == pytest.approx(2 * (1 - math.sqrt(2)))


@pytest.mark.parametrize(("divergence", "end"), [(forward_kl, MAX_EXPONENT), (alpha, MAX_EXPONENT / 0.5)])
def test_a_completion_beyond_the_largest_exponent_has_no_gradient(divergence, end):
    setting = {"alpha": 0.5} if divergence is alpha else {}
    log_ratio = torch.tensor([-end - 1, -end + 1], requires_grad=True)
    divergence(log_ratio=log_ratio, **setting).sum().backward()
    assert log_ratio.grad[0] == 0
    assert torch.isfinite(log_ratio.grad[1])
    assert log_ratio.grad[1] > 1e30
