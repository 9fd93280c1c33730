"""Methods that learn from what the policy writes: prompts, completions, rewards, advantages, minibatches.

The policy writes completions of a batch of prompts, they are judged and measured, and the method turns what was
measured into a weight for each token. From there on it is training like any other: micro-batches with the denominators
of their whole step, one loss each, Lightning's own loop.
"""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from alignment.advantages.grpo import has_spread
from alignment.data.datamodule import DataModule
from alignment.data.loader import PlannedLoader
from alignment.data.plan import MicroBatchPlan, epoch_order, plan_epoch
from alignment.diagnostics.rollouts import RolloutObserver, rollout_metrics, value_metrics
from alignment.methods.base import Parts
from alignment.methods.experience_loader import ExperienceLoader, Peekable
from alignment.methods.kl import KLPenalty, check_reference
from alignment.methods.metrics import MetricSums
from alignment.methods.rollout_log import RolloutLog
from alignment.methods.rollout_plan import RolloutPlan
from alignment.methods.terms import TermsMethod
from alignment.methods.writer import Writer
from alignment.ops.kl import k1
from alignment.rewards.shaping import Shaping
from alignment.rollout.ahead import Ahead
from alignment.rollout.engine import encoded_prompts
from alignment.rollout.experience import Experience, gathered
from alignment.types import Batch, Layout, PromptBatch, Role, Sampling
from alignment.utils.errors import ConfigError, UserError

log = logging.getLogger(__name__)

#: Batches of prompts in a row that may give nothing to learn from before a run is stopped.
_MOST_EMPTY = 20


class OnlineMethod(TermsMethod):
    """Base of the methods that write what they learn from.

    A subclass says what a completion's tokens are worth (:meth:`advantages`) and how that becomes a loss (``terms``).

    Args:
        rollouts: How much is written at a time, and how often it is learnt from.
        kl: What holds the policy near its reference, or ``None``.
        shaping: From rewards as they were given to rewards that are learnt from.
        parts: From the run.

    Attributes:
        least_group_size: Completions of a prompt that the method needs.

    Raises:
        ConfigError: There is no reward, a reference without a penalty or the other way round, or completions would be
            greedy.
    """

    batch_type = PromptBatch
    roles = frozenset({Role.POLICY})
    optional_roles = frozenset({Role.REFERENCE})
    least_group_size = 1

    def __init__(self, *, rollouts: RolloutPlan, kl: KLPenalty | None, shaping: Shaping, parts: Parts) -> None:
        super().__init__(parts)
        self.set_up(rollouts=rollouts, kl=kl, shaping=shaping, parts=parts)

    def set_up(self, *, rollouts: RolloutPlan, kl: KLPenalty | None, shaping: Shaping, parts: Parts) -> None:
        """Takes over what every online method has; the arguments are the constructor's."""
        if parts.reward is None:
            hint = "completions must be judged: reward=answer, reward=model, reward=vader, ..."
            raise ConfigError("reward", got=None, expected="a reward", hint=hint)
        temperature = parts.rollout.sampling.temperature
        if temperature <= 0:
            hint = "greedy completions explore nothing"
            raise ConfigError("rollout.sampling.temperature", got=temperature, expected="more than 0", hint=hint)
        rollouts.check(least_group_size=self.least_group_size, has_critic=Role.CRITIC in self.roles)
        is_compared = kl is not None or Role.REFERENCE in self.roles
        check_reference(is_compared=is_compared, has_reference=parts.bundle.has_reference)
        self.rollouts, self.kl, self.shaping = rollouts, kl, shaping
        self.temperature = temperature
        self.kl_sums = MetricSums()
        self._num_empty = 0
        self._loader: ExperienceLoader | None = None
        self._writer: Writer | None = None
        self._ahead: Ahead | None = None
        self._rollout_log: RolloutLog | None = None

    @abstractmethod
    def advantages(self, experience: Experience) -> Experience:
        """Fills in the advantage of each token, from shaped rewards and what was measured."""

    @property
    def scoring_temperature(self) -> float:
        """What logits are divided by where completions are scored: as when they were drawn (T16)."""
        return self.temperature

    @property
    def steps_a_batch(self) -> int:
        """Prompts are read for all minibatches at once."""
        return self.rollouts.minibatches

    @property
    def needs_old_logps(self) -> bool:
        """Whether the policy scores what was written: it does where steps follow the first, or another one wrote."""
        return self.rollouts.steps > 1 or self.rollouts.one_step_off or self.rollouts.importance_cap is not None

    @property
    def data(self) -> DataModule:
        """The run's data."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Puts experiences between the prompts and the training loop."""
        super().setup(stage)
        if self.kl is not None:
            self.kl.check_batch(self.data.batch_size * self.rollouts.minibatches * self.rollouts.group_size)
        self.data.wrap_training(self._make_loader)

    def collect(self, prompts: Peekable, number: int) -> Experience | None:
        """Writes completions of the next prompts, measures them, and computes their advantages."""
        wanted = self.data.batch_size * self.rollouts.minibatches
        most = self.rollouts.dynamic_sampling or 1
        experience: Experience | None = None
        left_out: Experience | None = None
        for attempt, batch in enumerate(prompts):
            written = self._write(batch, number, attempt)
            useful = self.useful_groups(written)
            self._note(written, num_useful=len(useful))
            room = wanted - (0 if experience is None else experience.num_groups)
            # Which ones have to go is left to chance: not always the same prompts.
            order = epoch_order(len(useful), seed=self.parts.seed, epoch=number, shuffle=len(useful) > room)
            taken = [useful[place] for place in sorted(order[:room].tolist())]
            kept, rest = written.only(taken), written.only(sorted(set(range(written.num_groups)) - set(taken)))
            experience = kept if experience is None else experience.and_then(kept)
            left_out = rest if left_out is None else left_out.and_then(rest)
            self._num_empty = 0 if useful else self._num_empty + 1
            if self._num_empty == _MOST_EMPTY:
                self._nothing_to_learn()
                break
            if experience.num_groups >= wanted or (experience.num_groups and attempt + 1 >= most):
                break
        observers = [c for c in self.trainer.callbacks if isinstance(c, RolloutObserver)]  # type: ignore[attr-defined]
        if left_out is not None and left_out.num_groups:
            for observer in observers:
                observer.on_left_out(self.trainer, left_out, number)
        if experience is None or not experience.num_groups:
            return None
        self._write_ahead(prompts, number + 1)
        experience = self.advantages(experience)
        self.rollout_log.add(value_metrics(experience), device=self.device)
        self._adapt(experience)
        for observer in observers:
            observer.on_rollouts(self.trainer, experience, number)
        return experience

    def penalty(self, experience: Experience) -> Float[Tensor, "tokens"]:
        """What the KL takes off each token's reward, where its place is the reward; else 0."""
        if self.kl is None or self.kl.place != "reward":
            return torch.zeros_like(experience.sampler_logps)
        return self.kl.coefficient * k1(experience.log_ratios)

    def useful_groups(self, experience: Experience) -> list[int]:
        """Which groups are learnt from: all, or with dynamic sampling those whose rewards differ.

        Both before shaping, which alone tells right from wrong, and after it, which is what is learnt from.
        """
        if self.rollouts.dynamic_sampling is None:
            return list(range(experience.num_groups))
        differ = [has_spread(rewards=experience.grouped(some)) for some in (experience.raw_rewards, experience.rewards)]
        counts = experience.grouped(experience.weights).sum(1) > 0
        return (differ[0] & differ[1] & counts).nonzero()[:, 0].tolist()

    def plan(self, experience: Experience, number: int) -> list[MicroBatchPlan]:
        """Cuts all steps on an experience into this rank's micro-batches."""
        lengths, counted = experience.row_tokens(self.policy.layout), self.counted(experience)
        plans: list[MicroBatchPlan] = []
        for epoch in range(self.rollouts.epochs):
            planned = plan_epoch(
                lengths=lengths,
                counted=counted,
                geometry=self.data.step_geometry,
                rank=self.trainer.global_rank,
                seed=self.parts.seed,
                epoch=number * self.rollouts.epochs + epoch,
                shuffle=self.rollouts.minibatches > 1,
                packed=self.policy.layout is not Layout.PADDED,
            )
            plans += [replace(item, counts=_counts(item.counts, is_first=epoch == 0)) for item in planned]
        return plans

    def counted(self, experience: Experience) -> dict[str, np.ndarray]:
        """What each group adds to the denominators of its step."""
        learnt = experience.weights > 0
        values = {
            "sequences": learnt,
            "tokens": torch.where(learnt, experience.lengths, 0),
            "real_tokens": experience.prompt_lengths + experience.lengths,
        }
        return {name: experience.grouped(value).sum(1).numpy() for name, value in values.items()}

    def micro_batch(self, experience: Experience, plan: MicroBatchPlan) -> Batch:
        """Makes the micro-batch that a plan describes."""
        return experience.batch(plan, pad_id=self.pad_id, layout=self.policy.layout)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Is never called: prompts have no loss, and what is held out is for fresh samples."""

    def end_batch(self, batch: Batch) -> None:
        """Counts and logs; beyond the largest KL goes on to new completions."""
        limit = self.rollouts.max_kl_nats
        if (
            limit is not None
            and self._loader is not None
            and not self.trainer.fit_loop._should_accumulate()
            and self.kl_sums.pop_means().get("kl", 0.0) > limit
        ):
            self._loader.leave()
        super().end_batch(batch)

    def means(self, sums: MetricSums) -> dict[str, float]:
        """Returns what was collected in training, and on the completions written since the line before."""
        written = self.rollout_log.pop(seconds=self.writer.seconds, budget=self.budget)
        return super().means(sums) | written

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves what shaping and the penalty's coefficient have come to."""
        super().on_save_checkpoint(checkpoint)
        kl = None if self.kl is None else self.kl.state_dict()
        checkpoint["online"] = {
            "shaping": self.shaping.state_dict(),
            "kl": kl,
            "rollout_sums": self.rollout_log.state_dict(),
            "ahead": None if self.ahead is None else self.ahead.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores it."""
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["online"]
        self.shaping.load_state_dict(state["shaping"])
        self.rollout_log.load_state_dict(state["rollout_sums"], budget=self.budget)
        if self.kl is not None and state["kl"] is not None:
            self.kl.load_state_dict(state["kl"])
        if self.ahead is not None and state["ahead"] is not None:
            self.ahead.load_state_dict(state["ahead"])

    @property
    def rollout_log(self) -> RolloutLog:
        """What is logged of completions; made when the trainer knows which process this is."""
        if self._rollout_log is None:
            self._rollout_log = RolloutLog(is_first_rank=self.trainer.is_global_zero)
        return self._rollout_log

    @property
    def ahead(self) -> Ahead | None:
        """What writes the next completions meanwhile; ``None`` where writing and training take turns."""
        if self._ahead is None and self.rollouts.one_step_off:
            self._ahead = Ahead(
                self.policy,
                engine=self.parts.rollout.engine,
                tokenizer=self.bundle.tokenizer,
                precision=self.trainer.precision_plugin.forward_context,
            )
        return self._ahead

    @property
    def pad_id(self) -> int:
        """Fills rows."""
        return self.bundle.tokenizer.pad_token_id  # type: ignore[return-value]

    @property
    def writer(self) -> Writer:
        """What writes and measures completions; made when models are where they belong."""
        if self._writer is None:
            assert self.parts.reward is not None
            critic = self.bundle.critic
            self._writer = Writer(
                policy=self.policy,
                engine=self.parts.rollout.engine(model=self.policy, tokenizer=self.bundle.tokenizer),
                reward=self.parts.reward,
                reference=self.bundle.reference,
                critic=None if critic is None else critic.model,
                needs_old_logps=self.needs_old_logps,
                temperature=self.scoring_temperature,
                pad_id=self.pad_id,
                sequences_a_pass=self.data.micro_batch_size * self.rollouts.group_size,
                precision=self.trainer.precision_plugin.forward_context,
            )
        return self._writer

    def _make_loader(self, prompts: PlannedLoader) -> ExperienceLoader:
        steps = self.data.step_geometry.num_micro_batches(self.data.num_train_records)
        settings = {f"data.{name}": value for name, value in asdict(self.data.step_geometry).items()}
        settings |= {f"method.rollouts.{name}": value for name, value in asdict(self.rollouts).items()}
        self._loader = ExperienceLoader(
            prompts,
            learner=self,
            length=steps * self.rollouts.epochs,
            settings=settings,
            in_flight=self.data.in_flight,
        )
        return self._loader

    def _write(self, batch: PromptBatch, number: int, attempt: int) -> Experience:
        """Has this rank's prompts completed and measured, and puts all ranks' together."""
        sampling = self._sampling(number, attempt)
        # Attempts after the first take prompts that nobody had seen.
        mine = self.writer.write(encoded_prompts(batch), sampling, ahead=None if attempt else self.ahead)
        everything = gathered(mine, order=lambda item: (item.rollout.prompt_id, item.rollout.sample))
        experience = Experience.of(everything, group_size=self.rollouts.group_size)
        rewards = self.shaping(
            rewards=experience.raw_rewards,
            truncated=experience.truncated,
            lengths=experience.lengths,
            max_new_tokens=sampling.max_new_tokens,
        )
        is_learnt = torch.ones_like(experience.truncated)
        if self.rollouts.truncated == "mask":
            is_learnt = ~experience.truncated
        return replace(experience, rewards=rewards, weights=is_learnt.float())

    def _write_ahead(self, prompts: Peekable, number: int) -> None:
        """Begins to write what the next experience is made of, where that is wanted and there are prompts for it."""
        if self.ahead is not None and (batch := prompts.peek()) is not None:
            self.ahead.start(encoded_prompts(batch), self._sampling(number, 0))

    def _sampling(self, number: int, attempt: int) -> Sampling:
        """How the completions of an experience are drawn."""
        options = self.parts.rollout.sampling
        seed = _seed(options.seed, self.parts.seed, number, attempt)
        return replace(options, num_samples=self.rollouts.group_size, seed=seed)

    def _note(self, experience: Experience, *, num_useful: int) -> None:
        """Counts what was written, and collects what is logged about it."""
        self.budget["tokens_generated"] += int(experience.lengths.sum())
        metrics = rollout_metrics(experience)
        metrics["advantage/used_groups"] = torch.tensor([num_useful / experience.num_groups])
        if self.kl is not None:
            metrics["kl/coefficient"] = torch.tensor([self.kl.coefficient])
        self.rollout_log.add(metrics, device=self.device)

    def _adapt(self, experience: Experience) -> None:
        """Tells the penalty how far the policy was from its reference when it wrote this."""
        if self.kl is not None:
            kl = experience.sums(experience.log_ratios)
            self.kl.after_batch(sequence_kl_nats=kl.mean().item(), num_sequences=len(kl))

    def _nothing_to_learn(self) -> None:
        """Ends a run whose policy has learnt all that its reward can tell, and refuses one that never began to."""
        words = (
            f"{_MOST_EMPTY} batches of prompts in a row gave nothing to learn from: all completions of a prompt "
            "had the same reward"
        )
        if self.global_step == 0:
            raise UserError(
                f"{words}. The task is too hard or too easy for this policy, or the reward does not tell its "
                "completions apart"
            )
        log.warning("%s: training ends at step %d", words, self.global_step)
        self.trainer.should_stop = True


def _counts(counts: dict[str, float], *, is_first: bool) -> dict[str, float]:
    """A step's denominators; where all its completions are masked a mean is over nothing, and 0 instead of 0 / 0."""
    return {name: max(count, 1.0) for name, count in counts.items()} | {"new_prompts": counts["records"] * is_first}


def _seed(*parts: int) -> int:
    """One seed from several: the sampling's, the run's, the experience's and the attempt's."""
    name = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:6])
