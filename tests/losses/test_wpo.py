import math

import numpy as np
import pytest
import torch

from alignment.losses.wpo import wpo_weights

from loss_tester import LossTester

TESTER = LossTester(
    loss=wpo_weights,
    twin=lambda *, chosen_alignment_nats, rejected_alignment_nats: np.minimum(
        1, np.exp(chosen_alignment_nats) * np.exp(rejected_alignment_nats)
    ),
    inputs=("chosen_alignment_nats", "rejected_alignment_nats"),
    settings=({},),
    low=-3.0,
    high=1.0,
)


def test_proofs():
    TESTER.check_twin()
    TESTER.check_items_are_independent()


@pytest.mark.parametrize(
    ("chosen", "rejected", "weight"), [(0.0, 0.0, 1.0), (-1.0, 0.25, math.exp(-0.75)), (2.0, -1.0, 1.0)]
)
def test_the_product_is_capped_not_its_factors(chosen, rejected, weight):
    got = wpo_weights(chosen_alignment_nats=torch.tensor([chosen]), rejected_alignment_nats=torch.tensor([rejected]))
    assert got.item() == pytest.approx(weight, abs=1e-7)


def test_there_is_no_gradient():
    values = torch.tensor([-1.0], requires_grad=True)
    assert not wpo_weights(chosen_alignment_nats=values, rejected_alignment_nats=values).requires_grad
