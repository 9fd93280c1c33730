"""KTO, Ethayarajh et al. 2024, arXiv 2402.01306."""

from __future__ import annotations

import logging
import math
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from alignment.data.datamodule import DataModule
from alignment.losses.kto import kto_loss
from alignment.methods.base import Parts
from alignment.methods.metrics import MetricSums
from alignment.methods.offline import OfflineMethod
from alignment.methods.terms import Term, Terms, Weighted
from alignment.types import BinaryBatch, Mismatched, Role, TokenLogps
from alignment.utils.errors import DataError

log = logging.getLogger(__name__)

_MAX_RATIO = 3 / 2  # of the weighted numbers of thumbs up and down; at least 1


class KTO(OfflineMethod):
    """Kahneman-Tversky optimisation: a completion's log-ratio to the reference against what is usual, z0.

    Deviations:
        The paper's code pairs each prompt of a batch with the next one's completion. Here the pairs are fixed for the
        whole data set, never of one prompt, and z0 is the mean over the whole optimiser step, all micro-batches and
        ranks together: it does not depend on how a step is cut up, and the reference cache can hold it.

    Args:
        beta: How fast the value of a completion saturates.
        desirable_weight: lambda_D.
        undesirable_weight: lambda_U.
        z0: ``mismatched`` estimates the KL to the reference on mismatched pairs, ``zero`` is APO-zero-unpaired.
        parts: From the run.
    """

    batch_type = BinaryBatch
    roles = frozenset({Role.POLICY, Role.REFERENCE})

    def __init__(
        self,
        *,
        beta: Annotated[float, "(0, inf)"],
        desirable_weight: Annotated[float, "(0, inf)"],
        undesirable_weight: Annotated[float, "(0, inf)"],
        z0: Literal["mismatched", "zero"],
        parts: Parts,
    ) -> None:
        super().__init__(parts)
        self.beta, self.desirable_weight, self.undesirable_weight = beta, desirable_weight, undesirable_weight
        self.z0 = z0
        self._step_z0: Tensor

    @property
    def needs_mismatched(self) -> bool:
        """Whether z0 is estimated."""
        return self.z0 == "mismatched"

    def setup(self, stage: str) -> None:
        """Looks at the labels before any weight is loaded.

        Raises:
            DataError: All labels are the same.
        """
        data: DataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        desirable = int(data.train_labels.sum())
        undesirable = len(data.train_labels) - desirable
        if not desirable or not undesirable:
            label = "desirable" if desirable else "undesirable"
            todo = "add records of the other label, or learn from good completions alone with method=sft"
            raise DataError("train data", f"all {len(data.train_labels)} completions are {label}: {todo}")
        if self.trainer.is_global_zero:
            self._check_balance(desirable, undesirable)

    def terms(self, batch: BinaryBatch) -> Terms:
        """Computes equation 7 on a micro-batch of labelled completions."""
        z0 = self._baseline(batch)
        policy, reference = self._score(batch)
        losses = kto_loss(
            policy_sum_logps=policy.sum_logps,
            reference_sum_logps=reference.sum_logps,
            labels=batch.labels,
            z0=z0,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        values = {
            "reward/{}": self.beta * (policy.sum_logps - reference.sum_logps),
            "logps/{}_sum_nats": policy.sum_logps,
            "logps/{}_mean_nats": policy.mean_logps,
            "length/{}_tokens": policy.num_tokens,
        }
        sides = {"chosen": batch.weights * batch.labels, "rejected": batch.weights * ~batch.labels}
        metrics: Weighted = {n.format(side): (v.detach(), w) for side, w in sides.items() for n, v in values.items()}
        metrics |= {"kl/z0_nats": (z0.expand(len(batch.weights)), batch.weights)}
        return Terms(loss={"kto": Term(losses, "records", batch.weights)}, metrics=metrics)

    def means(self, sums: MetricSums) -> dict[str, float]:
        """Returns what was collected and the margin; what has no record of its label is left out."""
        means = super().means(sums)
        means = {name: mean for name, mean in means.items() if name.startswith("loss/") or not math.isnan(mean)}
        if {"reward/chosen", "reward/rejected"} <= means.keys():
            means["reward/margin"] = means["reward/chosen"] - means["reward/rejected"]
        return means

    @torch.no_grad()
    def _baseline(self, batch: BinaryBatch) -> Float[Tensor, ""]:
        """Returns the step's z0 in nats, estimated on its first micro-batch; validations come between steps."""
        if not self.needs_mismatched:
            return batch.weights.new_zeros(())
        if batch.mismatched:
            scored = [(pairs.weights, *self._score(pairs)) for pairs in batch.mismatched]
            total = torch.stack([(w * (p.sum_logps - r.sum_logps)).sum() for w, p, r in scored]).sum()
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
            self._step_z0 = (total / batch.counts["records"]).clamp(min=0)
        return self._step_z0

    def _score(self, batch: BinaryBatch | Mismatched) -> tuple[TokenLogps, TokenLogps]:
        assert self.bundle.reference is not None
        reference_logps = self.bundle.reference.batch_logps(batch)
        policy = self.policy(batch.tokens)
        return policy, TokenLogps(reference_logps, policy.sequence_index, policy.num_sequences)

    def _check_balance(self, desirable: int, undesirable: int) -> None:
        ratio = self.desirable_weight * desirable / (self.undesirable_weight * undesirable)
        if 0.99 < ratio < 1.01 * _MAX_RATIO:  # the advice below is rounded
            return
        up, down = self.desirable_weight / ratio, self.undesirable_weight * ratio
        log.warning(
            "%d thumbs up and %d down: weighted, there are %.3g times as many up, and the paper asks for 1 to 1.5. "
            "Set method.desirable_weight between %.3g and %.3g, or method.undesirable_weight between %.3g and %.3g",
            *(desirable, undesirable, ratio, up, up * _MAX_RATIO, down / _MAX_RATIO, down),
        )
