"""What every method is: a LightningModule over one model bundle."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from alignment.data.datamodule import DataModule
from alignment.data.reference_cache import ReferenceCache, cache_key
from alignment.methods.metrics import MetricSums, with_prefix
from alignment.models.bundle import ModelBundle, TrainedModel
from alignment.models.logprob_model import LogprobModel
from alignment.models.references import Precomputed, fill_cache
from alignment.models.score_model import SequenceScorer, StepScorer
from alignment.models.sharding import whole
from alignment.rewards.base import Reward
from alignment.rollout.engine import RolloutOptions
from alignment.types import Batch, Head, Role
from alignment.utils.errors import UserError


@dataclass(frozen=True)
class Parts:
    """What the run hands to its method.

    Attributes:
        bundle: Not built yet.
        optimizer: Builds the optimiser from parameter groups.
        schedule: Builds the schedule from the optimiser and the number of steps, or ``None``.
        cache_dir: Where the reference cache lives.
        reward: Judges completions; ``None`` without one.
        rollout: How completions are drawn.
        seed: Of the run.
    """

    bundle: ModelBundle
    optimizer: Callable[[Iterable[dict[str, Any]]], Optimizer]
    schedule: Callable[..., LRScheduler] | None
    cache_dir: Path
    reward: Reward | None
    rollout: RolloutOptions
    seed: int


#: What a run uses up: prompts met, tokens trained on, generated to train on and generated to measure, and seconds of
#: training.
BUDGET: tuple[str, ...] = ("prompts", "tokens_trained", "tokens_generated", "tokens_measured", "seconds")


class Method(pl.LightningModule):
    """Base of all methods.

    A subclass declares facts: the batch that it eats and the roles that it needs. It trains the policy, or, where
    that is none of its roles, the reward model; the trained module's attribute is named by its role.

    Attributes:
        batch_type: The typed batch.
        roles: The models that are loaded, and no others.
        head: What sits on the trained model's trunk.
        uses_soft_labels: Whether a preference may be a tie or a divided vote.
        optional_roles: Models that are loaded where the configuration has them.
    """

    batch_type: ClassVar[type[Batch]]
    roles: ClassVar[frozenset[Role]]
    head: ClassVar[Head] = Head.LANGUAGE
    uses_soft_labels: ClassVar[bool] = False
    optional_roles: ClassVar[frozenset[Role]] = frozenset()

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        self.bundle = parts.bundle
        self.policy: LogprobModel
        self.reward: SequenceScorer | StepScorer
        self.train_sums = MetricSums()
        self.budget = dict.fromkeys(BUDGET, 0.0)
        # With an adapter only the adapter is saved: the rest of the model is missing from a checkpoint by design.
        self.strict_loading = parts.bundle.adapter is None
        self._clock = self._paused = 0.0
        self._last_log = (0.0, 0.0)
        self._step_facts: dict[str, float] = {}
        self._last_sums: MetricSums | None = None
        self._loaded_metrics: dict[str, Tensor] = {}
        self._logged_step = 0

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's tokens are scored too, beside the completion's; of pairs those of the chosen side."""
        return False

    @property
    def needs_mismatched(self) -> bool:
        """Whether batches carry prompts with completions of other prompts."""
        return False

    @property
    def steps_a_batch(self) -> int:
        """Optimiser steps for which records are read at once."""
        return 1

    @property
    def trained_role(self) -> Role:
        """The role of the model that trains."""
        return Role.POLICY if Role.POLICY in self.roles else Role.REWARD

    @property
    def trained(self) -> TrainedModel:
        """The model that trains."""
        return getattr(self, self.trained_role)

    def configure_model(self) -> None:
        """Builds the bundle, once; under FSDP2 sharded over the data-parallel mesh."""
        if self.trained_role in self._modules:
            return
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
        self.add_module(self.trained_role, self.bundle.build(self.roles, optional=self.optional_roles, mesh=mesh))
        critic = self.bundle.critic
        if critic is not None and critic.model is not None:
            self.add_module(Role.CRITIC, critic.model)
        if self.bundle.adapter is not None:
            self.register_state_dict_post_hook(_keep_trainable)

    def configure_optimizers(self) -> Any:
        """Builds one optimiser over what trains: matrices decay, vectors do not; a critic may have its own rate."""
        named = [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]
        critic = self.bundle.critic
        own: dict[str, float] = {} if critic is None or critic.lr is None else {"lr": critic.lr}
        groups: list[dict[str, Any]] = []
        for is_critic, extra in ((False, dict[str, float]()), (True, own)):
            some = [parameter for name, parameter in named if of_critic(name) == is_critic]
            groups.append({"params": [parameter for parameter in some if parameter.ndim >= 2], **extra})
            groups.append({"params": [p for p in some if p.ndim < 2], "weight_decay": 0.0, **extra})
        optimizer = self.parts.optimizer([group for group in groups if group["params"]])
        if self.parts.schedule is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = self.parts.schedule(optimizer, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def shares(self) -> int:
        """Micro-batches an optimiser step times ranks: what Lightning divides a loss by."""
        return self.trainer.accumulate_grad_batches * self.trainer.world_size

    def on_fit_start(self) -> None:
        """Makes the reference ready: a frozen copy on this rank's device, or the cache beside the data."""
        reference = self.bundle.reference
        if isinstance(reference, Precomputed):
            self._attach_cached_reference()
        elif reference is not None and reference.frozen is not None and self.device_mesh is None:
            reference.frozen.to(self.device)

    def on_train_start(self) -> None:
        """Starts the clock of the budget, and brings back what a resumed run had measured."""
        self.trainer.callback_metrics.update(self._loaded_metrics)
        self._clock = time.perf_counter()
        self._last_log = (self.budget["seconds"], self.budget["tokens_trained"])

    def on_validation_start(self) -> None:
        """Stops the clock of the budget: an evaluation is no training."""
        self._paused = time.perf_counter()

    def on_validation_end(self) -> None:
        """Starts it again."""
        self.leave_out(time.perf_counter() - self._paused)

    def leave_out(self, seconds: float) -> None:
        """Keeps time that was spent on something else than training out of the budget."""
        self._clock += seconds

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Notes this step's learning rate and, when the step is logged, its gradient's norm before clipping."""
        self._step_facts = {"train/optim/learning_rate": float(optimizer.param_groups[0]["lr"])}
        if self.is_logged:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
            whole_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            self._step_facts["train/optim/grad_norm"] = whole_norm.item()

    @property
    def is_logged(self) -> bool:
        """Whether what is computed now will be in the logs by its turn: in validation, and every so many steps."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return not self.trainer.training or (every > 0 and (self.global_step + 1) % every == 0)

    def end_batch(self, batch: Batch) -> None:
        """Counts the budget, and logs at the end of an optimiser step."""
        # Counts of the whole step, all ranks together, are known on every rank: none has to ask the others.
        accumulate = self.trainer.accumulate_grad_batches
        self.budget["prompts"] += batch.counts.get("new_prompts", batch.counts["records"]) / accumulate
        self.budget["tokens_trained"] += batch.counts["real_tokens"] / accumulate
        now = time.perf_counter()
        self.budget["seconds"] += now - self._clock
        self._clock = now
        if not self.trainer.fit_loop._should_accumulate():
            if self.bundle.reference is not None:
                self.bundle.reference.after_step(self.global_step)
            every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
            if every and self.global_step % every == 0:
                self._log_train()
            else:
                self._last_sums, self.train_sums = self.train_sums, MetricSums()

    def end_training(self) -> None:
        """Logs the last step when the interval has not: a short run has metrics too."""
        if self.global_step and self._logged_step != self.global_step and self._last_sums is not None:
            self.train_sums = self._last_sums
            self._log_train()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the budget, the last metrics, and a reference that has changed, beside the weights."""
        checkpoint["budget"] = dict(self.budget)
        checkpoint["metrics"] = dict(self.trainer.callback_metrics)
        checkpoint["reference"] = None if self.bundle.reference is None else self.bundle.reference.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores them."""
        self.budget = dict(checkpoint["budget"])
        self._loaded_metrics = dict(checkpoint["metrics"])
        if self.bundle.reference is not None:
            self.bundle.reference.load_state_dict(checkpoint["reference"])

    def total_budget(self) -> dict[str, float]:
        """Returns what the run has used so far."""
        return dict(self.budget)

    def means(self, sums: MetricSums) -> dict[str, float]:
        """Returns the means of what was collected, over all ranks."""
        return sums.pop_means()

    def publish(self, metrics: Mapping[str, float]) -> None:
        """Sends metrics to every logger at the number of optimiser steps done, and to callbacks by name."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(metrics), step=self.global_step)
        for name, value in metrics.items():
            self.trainer.callback_metrics[name] = torch.tensor(value, dtype=torch.float64)

    def _attach_cached_reference(self) -> None:
        """Fills the cache with the policy while it still is the reference, or finds it filled."""
        data: DataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        meta = self.bundle.reference_key(data, precision=str(self.trainer.precision))
        path = self.parts.cache_dir / "reference" / cache_key(**meta)
        if self.trainer.ckpt_path is not None and not ReferenceCache.exists(path):
            raise UserError(
                f"{path}: the reference cache of the run that is resumed is gone, and the policy has moved on from "
                "what the reference was. Restore the folder, or begin anew with resume=null"
            )
        rank, world_size = self.trainer.global_rank, self.trainer.world_size

        def batches(part: int, parts: int) -> Iterable[Any]:
            shown = data.reference_batches(part, parts)
            return tqdm(shown, desc="reference log-probs", unit=" batches", disable=None if rank == 0 else True)

        # In the precision of training: under bf16-mixed an fp32 reference would differ from the policy at step 0.
        with whole(self.policy), self.trainer.precision_plugin.forward_context():
            cache = fill_cache(
                path,
                meta=meta,
                batches=batches,
                score=self.policy,
                device=self.device,
                rank=rank,
                world_size=world_size,
            )
        data.attach_reference(cache)

    def _log_train(self) -> None:
        seconds, tokens = self.budget["seconds"], self.budget["tokens_trained"]
        seconds_then, tokens_then = self._last_log
        metrics = with_prefix("train", self.means(self.train_sums))
        metrics |= self._step_facts
        metrics["train/speed/tokens_per_second"] = (tokens - tokens_then) / max(seconds - seconds_then, 1e-9)
        metrics |= with_prefix("train/budget", self.budget)
        self.publish(metrics)
        self._last_log = (seconds, tokens)
        self._logged_step, self._last_sums = self.global_step, None


def of_critic(name: str) -> bool:
    """Whether a parameter of the method is a critic's."""
    return name.startswith(f"{Role.CRITIC}.") or ".value_head." in name


class EndOfBatch(Callback):
    """Has the method count and log. The first of all callbacks: the others then see the metrics of this very step.

    Lightning calls a module's own hook only after every callback, when a checkpoint was saved already.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Ends the batch."""
        assert isinstance(pl_module, Method)
        pl_module.end_batch(batch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends the training."""
        assert isinstance(pl_module, Method)
        pl_module.end_training()


def _keep_trainable(module: torch.nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any) -> None:
    """Drops frozen weights from a state dict: a checkpoint holds exactly what trains."""
    frozen = {
        prefix + name
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }
    for name in frozen & state.keys():
        del state[name]
