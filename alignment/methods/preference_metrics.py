"""The metrics that every method on pairs logs, under the same names with the same meaning."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from alignment.methods.terms import Weighted
from alignment.types import TokenLogps


def preference_metrics(
    *,
    chosen_rewards: Float[Tensor, "pairs"],
    rejected_rewards: Float[Tensor, "pairs"],
    policy: TokenLogps,
    weights: Float[Tensor, "pairs"],
) -> Weighted:
    """Returns implicit rewards, their margin and accuracy, log-probs and lengths, each with its weights.

    Args:
        chosen_rewards: The method's implicit reward of each chosen completion.
        rejected_rewards: The same for the rejected.
        policy: Log-probs of chosen then rejected completions.
        weights: 0 for fillers.
    """
    chosen_sums, rejected_sums = policy.sum_logps.detach().chunk(2)
    chosen_lengths, rejected_lengths = policy.num_tokens.chunk(2)
    values = {
        "reward/chosen": chosen_rewards,
        "reward/rejected": rejected_rewards,
        "reward/margin": chosen_rewards - rejected_rewards,
        # A tie is not a correct order: at step 0, where all are ties, accuracy reads 0.
        "reward/accuracy": (chosen_rewards > rejected_rewards).float(),
        "logps/chosen_sum_nats": chosen_sums,
        "logps/rejected_sum_nats": rejected_sums,
        "logps/chosen_mean_nats": chosen_sums / chosen_lengths,
        "logps/rejected_mean_nats": rejected_sums / rejected_lengths,
        "length/chosen_tokens": chosen_lengths,
        "length/rejected_tokens": rejected_lengths,
    }
    return {name: (value.detach(), weights) for name, value in values.items()}
