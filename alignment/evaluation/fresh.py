"""The one protocol of measurement: fresh samples on held-out prompts, in the same way for every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from alignment.data.collate import TokenSequence, token_batch
from alignment.evaluation.intervals import Estimate, bootstrap_ratio
from alignment.evaluation.text import distinct_2, self_bleu
from alignment.models.logprob_model import LogprobModel
from alignment.ops.kl import k1
from alignment.rewards.base import Reward
from alignment.rewards.errors import checked_scores
from alignment.rollout.engine import EngineBuilder, TokenPrompt, draws_from_own_distribution, evaluating
from alignment.types import Layout, Rollout, Sampling, TokenBatch, TokenLogps
from alignment.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Scorer = Callable[[TokenBatch], TokenLogps]

RESAMPLES = 1000
BOOTSTRAP_SEED = 0
FILLER_ID = 0
"""Fills rows up on the right, where it is neither seen nor scored: any id would do."""

KL = "kl/policy_start_nats"
LOG_RATIO = "log_ratio/policy_start_nats"


@dataclass(frozen=True)
class Sample:
    """One fresh completion and what was measured on it.

    Attributes:
        rollout: The completion.
        reward: Its total, ``None`` without a reward.
        components: What the total was made from.
        policy_sum_logp: log policy(completion | prompt) at temperature 1, in nats.
        log_ratio_nats: log policy - log start, ``None`` without a start.
        score: What the scorer of a selection says, ``None`` without one.
    """

    rollout: Rollout
    reward: float | None
    components: dict[str, float]
    policy_sum_logp: float
    log_ratio_nats: float | None
    score: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and the samples that it was measured on.

    Attributes:
        metrics: Name -> estimate; a name holds its unit.
        samples: Prompt by prompt, in the order of the prompts.
        num_prompts: Prompts sampled from.
        tokens_generated: Completion tokens that were sampled.
    """

    metrics: dict[str, Estimate]
    samples: tuple[Sample, ...]
    num_prompts: int
    tokens_generated: int


def evaluate_policy(
    *,
    policy: LogprobModel,
    start: Scorer | None,
    tokenizer: PreTrainedTokenizerBase,
    engine: EngineBuilder,
    prompts: Sequence[TokenPrompt],
    sampling: Sampling,
    reward: Reward | None,
    start_rewards: Mapping[str, Sequence[float]] | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Evaluation:
    """Samples from the policy and measures what came out.

    The sequence KL(policy || start) is the mean over samples of sum_t [log policy(y_t) - log start(y_t)], the
    unbiased k1 estimator, over completions as they were cut off at ``max_new_tokens``. It is a KL only for
    samples of the policy itself: with another temperature, top-k or top-p the same mean is reported as
    ``log_ratio/policy_start_nats``, and no entropy is.

    Intervals are 95% bootstrap intervals over prompts. The process's random state is left as it was.

    Args:
        policy: The model to measure.
        start: Scores sequences with the model that training started from; ``None`` leaves the KL out.
        tokenizer: Turns completions into text.
        engine: Makes what draws completions.
        prompts: Held-out prompts; all of them on every rank.
        sampling: How to draw.
        reward: Judges the completions; ``None`` leaves rewards out.
        start_rewards: Rewards of the starting model's samples by prompt id, see :func:`rewards_by_prompt`; of the same
            prompts under the same reward. Adds ``win_rate/against_start`` and ``reward/gain_against_start``.
        rank: This process among those that share the work.
        world_size: Processes that share the work; each gets every result.

    Raises:
        UserError: There is no prompt, or one does not fit the model; ``start_rewards`` are of other prompts.
    """
    if not prompts:
        raise UserError("an evaluation needs at least one prompt: got none")
    mine = _share(prompts, rank=rank, world_size=world_size)
    with torch.no_grad(), evaluating(policy):
        rollouts = engine(model=policy, tokenizer=tokenizer).generate(mine, sampling)
        samples = _measure(
            rollouts,
            policy=policy,
            start=start,
            reward=reward,
            batch_size=sampling.batch_size,
        )
    if world_size > 1:
        samples = _gather(samples, world_size=world_size)
    order = {prompt.id: place for place, prompt in enumerate(prompts)}
    unique = {(order[sample.rollout.prompt_id], sample.rollout.sample): sample for sample in samples}
    samples = [unique[key] for key in sorted(unique)]
    metrics = summarize(samples, is_plain=draws_from_own_distribution(sampling))
    if start_rewards is not None and reward is not None:
        metrics |= against_start(samples, start_rewards)
    tokens = sum(len(sample.rollout.completion_ids) for sample in samples)
    metrics["budget/tokens_generated"] = Estimate(float(tokens), float(tokens), float(tokens), len(samples))
    return Evaluation(metrics=metrics, samples=tuple(samples), num_prompts=len(prompts), tokens_generated=tokens)


def summarize(samples: Sequence[Sample], *, is_plain: bool) -> dict[str, Estimate]:
    """Turns samples into named estimates.

    Args:
        samples: Prompt by prompt.
        is_plain: Whether they were drawn from the policy's own distribution.
    """
    tokens = [float(len(sample.rollout.completion_ids)) for sample in samples]
    metrics = {
        "length/completion_tokens": _mean(samples, tokens),
        "length/truncated_share": _mean(samples, [float(s.rollout.finish_reason == "length") for s in samples]),
    }
    if all(sample.reward is not None for sample in samples):
        metrics["reward/total"] = _mean(samples, [sample.reward or 0.0 for sample in samples])
        # A failed completion may lack some.
        for name in dict.fromkeys(name for sample in samples for name in sample.components):
            metrics[f"reward/{name}"] = _mean(samples, [sample.components.get(name, 0.0) for sample in samples])
    if all(sample.log_ratio_nats is not None for sample in samples):
        values = [sample.log_ratio_nats or 0.0 for sample in samples]
        metrics[KL if is_plain else LOG_RATIO] = _mean(samples, values)
    if is_plain:
        surprise = [-sample.policy_sum_logp for sample in samples]
        metrics["entropy/token_nats"] = _ratio(samples, surprise, tokens)
    return metrics | _diversity(samples)


def against_start(samples: Sequence[Sample], start: Mapping[str, Sequence[float]]) -> dict[str, Estimate]:
    """Compares rewards with the starting model's, prompt by prompt; every pair of samples of a prompt counts.

    A tie is half a win.

    Raises:
        UserError: The two are not of the same prompts, or a sample has no reward.
    """
    ours = rewards_by_prompt(samples)
    if ours.keys() != start.keys():
        raise UserError("win_rate/against_start needs samples of both models on the same prompts")
    wins, gains = [], []
    for prompt_id, totals in ours.items():
        pairs = [(a, b) for a in totals for b in start[prompt_id]]
        wins.append(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs))
        gains.append(sum(a - b for a, b in pairs) / len(pairs))
    ones = [1.0] * len(wins)
    return {
        "win_rate/against_start": _estimate(wins, ones, num=len(samples)),
        "reward/gain_against_start": _estimate(gains, ones, num=len(samples)),
    }


def _measure(
    rollouts: Sequence[Rollout],
    *,
    policy: LogprobModel,
    start: Scorer | None,
    reward: Reward | None,
    batch_size: int,
) -> list[Sample]:
    device = next(policy.parameters()).device
    scored = partial(score, rollouts, batch_size=batch_size, device=device, layout=policy.layout)
    policy_logps = scored(policy)
    start_logps = None if start is None else scored(start)
    rewards = None if reward is None else checked_scores(reward, rollouts)
    samples = []
    for place, rollout in enumerate(rollouts):
        log_ratio = None
        if start_logps is not None:
            log_ratio = k1(policy_logps[place] - start_logps[place]).sum().item()
        samples.append(
            Sample(
                rollout=rollout,
                reward=None if rewards is None else rewards.total[place],
                components={} if rewards is None else {n: v[place] for n, v in rewards.components.items()},
                policy_sum_logp=policy_logps[place].sum().item(),
                log_ratio_nats=log_ratio,
            )
        )
    return samples


def score(
    rollouts: Sequence[Rollout], scorer: Scorer, *, batch_size: int, device: torch.device, layout: Layout
) -> list[torch.Tensor]:
    """Returns the log-probs at temperature 1 of each roll-out's completion tokens, in nats.

    Args:
        rollouts: Completions as they were sampled.
        scorer: The log-prob path of one model.
        batch_size: Sequences scored at a time.
        device: Where the model is.
        layout: How sequences lie in rows; the model must take it.
    """
    # Sequences of like length share a batch.
    order = sorted(range(len(rollouts)), key=lambda i: len(rollouts[i].prompt_ids) + len(rollouts[i].completion_ids))
    logps: dict[int, torch.Tensor] = {}
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        sequences = [
            TokenSequence(rollouts[place].prompt_ids, rollouts[place].completion_ids, None) for place in places
        ]
        scored = scorer(token_batch(sequences, pad_id=FILLER_ID, layout=layout).to(device))
        lengths = [len(rollouts[place].completion_ids) for place in places]
        pieces = scored.token_logps.detach().double().cpu().split(lengths)
        logps |= dict(zip(places, pieces, strict=True))
    return [logps[place] for place in range(len(rollouts))]


def _share(prompts: Sequence[TokenPrompt], *, rank: int, world_size: int) -> list[TokenPrompt]:
    """Every rank gets equally many prompts: where they do not divide, the first ones are sampled twice.

    A sharded model needs every rank at every forward; the copies are equal and count once.
    """
    per_rank = -(-len(prompts) // world_size)
    return [prompts[(rank + turn * world_size) % len(prompts)] for turn in range(per_rank)]


def _gather(samples: list[Sample], *, world_size: int) -> list[Sample]:
    parts: list[list[Sample] | None] = [None] * world_size
    dist.all_gather_object(parts, samples)
    return [sample for part in parts for sample in part or []]


def _diversity(samples: Sequence[Sample]) -> dict[str, Estimate]:
    shares, counted = [], []
    for _, group in groupby(samples, key=lambda sample: sample.rollout.prompt_id):
        share = distinct_2([sample.rollout.completion for sample in group])
        shares.append(share or 0.0)
        counted.append(float(share is not None))
    metrics = {}
    if any(counted):
        metrics["diversity/distinct_2"] = _estimate(shares, counted, num=len(samples))
    if len(samples) > 1:
        metrics["diversity/self_bleu"] = _mean(samples, self_bleu([s.rollout.completion for s in samples]))
    return metrics


def _mean(samples: Sequence[Sample], values: Sequence[float]) -> Estimate:
    return _ratio(samples, values, [1.0] * len(samples))


def _ratio(samples: Sequence[Sample], values: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Sums values and weights by prompt: a prompt with all its samples is what is resampled."""
    tops: dict[str, float] = {}
    bottoms: dict[str, float] = {}
    for sample, value, weight in zip(samples, values, weights, strict=True):
        prompt_id = sample.rollout.prompt_id
        tops[prompt_id] = tops.get(prompt_id, 0.0) + value
        bottoms[prompt_id] = bottoms.get(prompt_id, 0.0) + weight
    return _estimate(list(tops.values()), list(bottoms.values()), num=len(samples))


def _estimate(tops: Sequence[float], bottoms: Sequence[float], *, num: int) -> Estimate:
    return Estimate(*bootstrap_ratio(tops, bottoms, resamples=RESAMPLES, seed=BOOTSTRAP_SEED), num)


def rewards_by_prompt(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Returns the rewards of each prompt's samples, by the prompt's id.

    Raises:
        UserError: A sample has no reward.
    """
    rewards: dict[str, list[float]] = {}
    for sample in samples:
        if sample.reward is None:
            raise UserError("win_rate/against_start needs a reward for the samples of both models")
        rewards.setdefault(sample.rollout.prompt_id, []).append(sample.reward)
    return rewards
