from __future__ import annotations

import numpy as np
import pytest
import torch

from alignment.losses.value import clipped_value_loss

from loss_tester import LossTester


def twin(*, values, old_values, returns, clip):
    """Token by token, on the number line."""
    losses = []
    for value, old, target in zip(values, old_values, returns, strict=True):
        errors = [abs(value - target)]
        if clip is not None:
            errors.append(abs(min(max(value, old - clip), old + clip) - target))
        losses.append(max(errors) ** 2 / 2)
    return np.array(losses)


TESTER = LossTester(
    loss=clipped_value_loss,
    twin=twin,
    inputs=("values", "old_values", "returns"),
    settings=tuple({"clip": clip} for clip in (None, 0.2, 1.0)),
    frozen=("old_values", "returns"),
    low=-2.0,
    high=2.0,
    items=60,
)
VALUES = [
    # value, old value, return, clip, loss, gradient on the value
    (1.0, 0.0, 3.0, None, 2.0, -2.0),  # (1 - 3)^2 / 2
    (0.1, 0.0, 1.0, 0.2, 0.405, -0.9),  # within the clip: .9^2 / 2
    (0.9, 0.0, 1.0, 0.2, 0.32, 0.0),  # too far towards the return: (.2 - 1)^2 / 2, held
    (-0.9, 0.0, 1.0, 0.2, 1.805, -1.9),  # away from it: 1.9^2 / 2 > 1.2^2 / 2, pulled back
    (1.5, 1.0, 0.0, 0.2, 1.125, 1.5),  # away, upwards: 1.5^2 / 2 > 1.2^2 / 2
    (0.2, 1.0, 0.0, 0.2, 0.32, 0.0),  # too far, downwards: .8^2 / 2
    (2.0, 2.0, 2.0, 0.2, 0.0, 0.0),
]


def test_proofs():
    TESTER.check_all()


@pytest.mark.parametrize(("value", "old", "target", "clip", "loss", "gradient"), VALUES)
def test_values_derived_by_hand(value, old, target, clip, loss, gradient):
    values = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    found = clipped_value_loss(
        values=values,
        old_values=torch.tensor([old], dtype=torch.float64),
        returns=torch.tensor([target], dtype=torch.float64),
        clip=clip,
    )
    found.sum().backward()
    assert found.item() == pytest.approx(loss, abs=1e-12)
    assert values.grad.item() == pytest.approx(gradient, abs=1e-12)


def test_it_is_never_below_the_plain_loss():
    values = TESTER.random_inputs()
    clipped, plain = clipped_value_loss(**values, clip=0.2), clipped_value_loss(**values, clip=None)
    assert (clipped >= plain).all()
    assert (clipped > plain + 0.01).any()
