"""RLOO, Ahmadian et al. 2024, arXiv 2402.14740."""

from __future__ import annotations

from dataclasses import replace

from alignment.advantages.rloo import leave_one_out
from alignment.methods.policy_gradient import PolicyGradientMethod
from alignment.rollout.experience import Experience


class RLOO(PolicyGradientMethod):
    """REINFORCE leave-one-out: the baseline of a completion is the mean reward of the others of its prompt.

    The penalty is part of the reward before the baseline is taken off.

    Args:
        policy_loss: As in :class:`~alignment.methods.policy_gradient.PolicyGradientMethod`.
        ratio: The same; ``sequence`` in the paper.
        normaliser: The same.
        rollouts: As in :class:`~alignment.methods.online.OnlineMethod`.
        kl: The same.
        shaping: The same.
        parts: The same.
    """

    least_group_size = 2

    def advantages(self, experience: Experience) -> Experience:
        """Gives each token of a completion the completion's advantage, equation 8 of the paper."""
        rewards = experience.rewards - experience.sums(self.penalty(experience))
        advantages = leave_one_out(rewards=experience.grouped(rewards))
        return replace(experience, advantages=experience.per_token(advantages.flatten()))
