import numpy as np
import pytest
import torch

from alignment.losses.reward_model import centering_penalty, reward_model_loss

from loss_tester import LossTester

REWARDS = ("chosen_rewards", "rejected_rewards")


def twin(*, chosen_rewards, rejected_rewards, margins, probabilities):
    won = 1 / (1 + np.exp(rejected_rewards + margins - chosen_rewards))
    return -(probabilities * np.log(won) + (1 - probabilities) * np.log1p(-won))


def loss(*, chosen_rewards, rejected_rewards, margin, probability):
    return reward_model_loss(
        chosen_rewards=chosen_rewards,
        rejected_rewards=rejected_rewards,
        margins=torch.full_like(chosen_rewards, margin),
        probabilities=torch.full_like(chosen_rewards, probability),
    )


def loss_twin(*, chosen_rewards, rejected_rewards, margin, probability):
    return twin(
        chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards, margins=margin, probabilities=probability
    )


SETTINGS = tuple({"margin": m, "probability": p} for m in (0.0, 0.7) for p in (0.5, 0.8, 1.0))


def test_proofs():
    LossTester(loss=loss, twin=loss_twin, inputs=REWARDS, settings=SETTINGS, low=-6.0, high=6.0).check_all()
    LossTester(
        loss=centering_penalty,
        twin=lambda *, chosen_rewards, rejected_rewards: (chosen_rewards + rejected_rewards) ** 2,
        inputs=REWARDS,
        settings=({},),
        low=-6.0,
        high=6.0,
    ).check_all()


@pytest.mark.parametrize("probability", [0.6, 0.9])
def test_the_best_difference_is_the_log_odds(probability):
    """At d = m + log(p / (1 - p)) the gradient is zero: the model's preference is the annotators'."""
    best = 0.3 + np.log(probability / (1 - probability))
    chosen = torch.tensor([best + 1.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([1.0], dtype=torch.float64)
    loss(chosen_rewards=chosen, rejected_rewards=rejected, margin=0.3, probability=probability).sum().backward()
    assert abs(chosen.grad.item()) < 1e-12


def test_a_tie_is_symmetric():
    one, other = torch.tensor([0.3]), torch.tensor([-1.2])
    left = loss(chosen_rewards=one, rejected_rewards=other, margin=0.0, probability=0.5)
    right = loss(chosen_rewards=other, rejected_rewards=one, margin=0.0, probability=0.5)
    torch.testing.assert_close(left, right)
