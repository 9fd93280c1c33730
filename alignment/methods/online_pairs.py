"""Methods that rank what the policy writes and learn from the pairs as from any other preferences."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from alignment.advantages.online_dpo import ranked_pairs
from alignment.data.collate import TokenSequence, token_batch
from alignment.data.plan import MicroBatchPlan
from alignment.methods.base import Parts
from alignment.methods.kl import KLPenalty
from alignment.methods.online import OnlineMethod
from alignment.methods.rollout_plan import RolloutPlan
from alignment.rewards.shaping import Shaping
from alignment.rollout.engine import draws_from_own_distribution
from alignment.rollout.experience import Experience
from alignment.types import PreferenceBatch, Role, TokenLogps
from alignment.utils.errors import ConfigError

Pairing = Literal["best_worst", "all"]


class OnlinePairs(OnlineMethod):
    """What online DPO and online IPO have in common; the objective is that of the offline method.

    Guo et al. 2024, arXiv 2402.04792 (direct alignment from online feedback), with any reward as the ranker.
    Completions of one prompt that are equally good make no pair; prompts without a pair are left out, and counted in
    ``advantage/used_groups``. Log-probs are taken at temperature 1, whatever that of sampling.

    Attributes:
        pairing: ``best_worst`` makes one pair a prompt, ``all`` one of every two completions.
        min_margin: Least difference of a pair's rewards.
    """

    roles = frozenset({Role.POLICY, Role.REFERENCE})
    least_group_size = 2
    pairing: Pairing
    min_margin: Annotated[float, "[0, inf)"]

    @property
    def scoring_temperature(self) -> float:
        """As in the offline objective."""
        return 1.0

    def set_up(self, *, rollouts: RolloutPlan, kl: KLPenalty | None, shaping: Shaping, parts: Parts) -> None:
        """Takes over what every online method has; these have no importance ratios to watch.

        Raises:
            ConfigError: Steps are to be skipped by a KL that nothing here computes.
        """
        if rollouts.max_kl_nats is not None:
            expected, hint = "null, because pairs have no importance ratio", "lower method.rollouts.epochs"
            raise ConfigError("method.rollouts.max_kl_nats", got=rollouts.max_kl_nats, expected=expected, hint=hint)
        if rollouts.importance_cap is not None:
            expected, hint = "null, because pairs have no importance weights", "who is better stays as it is"
            raise ConfigError(
                "method.rollouts.importance_cap", got=rollouts.importance_cap, expected=expected, hint=hint
            )
        super().set_up(rollouts=rollouts, kl=kl, shaping=shaping, parts=parts)

    @property
    def needs_old_logps(self) -> bool:
        """The engine's log-probs will do only where they are of the policy's own distribution, as it is now."""
        return self.rollouts.one_step_off or not draws_from_own_distribution(self.parts.rollout.sampling)

    def advantages(self, experience: Experience) -> Experience:
        """Leaves it as it is: who is better is all that counts."""
        return experience

    def useful_groups(self, experience: Experience) -> list[int]:
        """Those with a pair."""
        chosen, _ = self.pairs(experience, torch.arange(experience.num_groups))
        return sorted({place // experience.group_size for place in chosen.tolist()})

    def pairs(self, experience: Experience, groups: Int[Tensor, "some"]) -> tuple[Tensor, Tensor]:
        """Returns the chosen and the rejected completions of some groups: where they are."""
        learnt = experience.grouped(experience.weights)[groups] > 0
        rewards = experience.grouped(experience.rewards)[groups]
        # A masked completion makes no pair: with the mean of the others it is neither the best nor the worst.
        mean = torch.where(learnt, rewards, 0.0).sum(1, keepdim=True) / learnt.sum(1, keepdim=True).clamp_min(1)
        rewards = torch.where(learnt, rewards, mean)
        inside = ranked_pairs(rewards=rewards, pairing=self.pairing, min_margin=self.min_margin)
        kept = learnt.flatten()[inside[0]] & learnt.flatten()[inside[1]]
        places = experience.places(groups)
        return places[inside[0][kept]], places[inside[1][kept]]

    def counted(self, experience: Experience) -> dict[str, np.ndarray]:
        """What each group adds to the denominators of its step."""
        chosen, rejected = self.pairs(experience, torch.arange(experience.num_groups))
        prompts, lengths = experience.prompt_lengths, experience.lengths
        values = {
            "pairs": torch.ones_like(chosen),
            "tokens": lengths[chosen] + lengths[rejected],
            "chosen_tokens": lengths[chosen],
            "real_tokens": 2 * prompts[chosen] + lengths[chosen] + lengths[rejected],
        }
        group = chosen // experience.group_size
        nothing = torch.zeros(experience.num_groups, dtype=torch.long)
        return {name: nothing.index_add(0, group, value).numpy() for name, value in values.items()}

    def micro_batch(self, experience: Experience, plan: MicroBatchPlan) -> PreferenceBatch:
        """Makes the pairs of the groups that a plan names."""
        groups = torch.tensor(plan.indices, dtype=torch.long)
        chosen, rejected = self.pairs(experience, groups)
        weight_of = dict(zip(plan.indices, plan.weights, strict=True))
        places = torch.cat([chosen, rejected])
        rollouts = [experience.rollouts[place] for place in places.tolist()]
        assert experience.reference_logps is not None
        return PreferenceBatch(
            ids=tuple(rollout.prompt_id for rollout in rollouts[: len(chosen)]),
            weights=torch.tensor([weight_of[place // experience.group_size] for place in chosen.tolist()]),
            counts=plan.counts | {"records": plan.counts["pairs"]},
            tokens=token_batch(
                [TokenSequence(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts],
                pad_id=self.pad_id,
                layout=self.policy.layout,
            ),
            margins=experience.rewards[chosen] - experience.rewards[rejected],
            reference_token_logps=experience.reference_logps[experience.token_places(places)],
        )

    def reference_logps(self, batch: PreferenceBatch) -> TokenLogps:
        """Returns what the reference said when the completions were written."""
        assert batch.reference_token_logps is not None
        return TokenLogps(batch.reference_token_logps, batch.tokens.sequence_index, batch.tokens.num_sequences)
