import numpy as np
import pytest
import torch

from alignment.losses.kto import kto_loss

from loss_tester import LossTester

SETTINGS = tuple(
    {"beta": beta, "desirable_weight": desirable, "undesirable_weight": undesirable, "z0": z0}
    for beta, desirable, undesirable, z0 in [(0.1, 1.0, 1.0, 0.0), (0.1, 1.0, 1.33, 4.0), (0.5, 0.7, 1.0, 12.5)]
)


def loss(*, policy, reference, sides, z0, **fields):
    """The loss with its labels as numbers below and above the middle of the tester's inputs."""
    z0 = torch.tensor(z0, dtype=policy.dtype)
    return kto_loss(policy_sum_logps=policy, reference_sum_logps=reference, labels=sides > -15.0, z0=z0, **fields)


def twin(*, policy, reference, sides, z0, beta, desirable_weight, undesirable_weight):
    """lambda_y - v(x, y), record by record, with the logistic function written out."""
    found = []
    for policy_logp, reference_logp, side in zip(policy, reference, sides, strict=True):
        surprise = np.log(np.exp(policy_logp) / np.exp(reference_logp)) - z0
        if side > -15.0:
            found.append(desirable_weight - desirable_weight / (1.0 + np.exp(-beta * surprise)))
        else:
            found.append(undesirable_weight - undesirable_weight / (1.0 + np.exp(beta * surprise)))
    return np.array(found)


TESTER = LossTester(loss=loss, twin=twin, inputs=("policy", "reference", "sides"), settings=SETTINGS)


def test_proofs():
    sides = TESTER.random_inputs()["sides"] > -15.0
    assert 0 < sides.sum() < len(sides)
    TESTER.check_all()


def make(x, labels, z0, **fields):
    settings = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0} | fields
    return kto_loss(
        policy_sum_logps=x,
        reference_sum_logps=torch.zeros_like(x),
        labels=torch.tensor(labels),
        z0=torch.as_tensor(z0, dtype=x.dtype),
        **settings,
    )


def test_values_by_hand():
    """x = 5, z0 = 3, beta = .5: sigma(1) = .7310586."""
    x = torch.tensor([5.0, 5.0], dtype=torch.float64)
    found = make(x, [True, False], 3.0, beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    assert found.tolist() == pytest.approx([2 * 0.2689414214, 3 * 0.7310585786], abs=1e-9)


def test_gradients_by_hand():
    """At x = z0 the slope is -lambda beta / 4 for a thumbs up and +lambda beta / 4 for a thumbs down."""
    x = torch.full((2,), 3.0, dtype=torch.float64, requires_grad=True)
    make(x, [True, False], 3.0, desirable_weight=1.0, undesirable_weight=1.5).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([-0.025, 0.0375], abs=1e-12)


def test_no_gradient_flows_through_z0():
    """T31: pushed through z0, half of the records would be pulled the wrong way."""
    x = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    z0 = x.sum() * 1.0 + 2.0
    (with_graph,) = torch.autograd.grad(make(x, [True, False], z0).sum(), x)
    (without,) = torch.autograd.grad(make(x, [True, False], z0.item()).sum(), x)
    assert torch.equal(with_graph, without)


def test_small_losses_keep_their_digits():
    """1 - sigma(40) is 4e-18; computed as a difference it would be 0, and its gradient too."""
    x = torch.tensor([400.0], requires_grad=True)
    found = make(x, [True], 0.0)
    found.sum().backward()
    assert found.item() == pytest.approx(np.exp(-40.0), rel=1e-4, abs=0)
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(-0.1 * np.exp(-40.0), rel=1e-4, abs=0)
