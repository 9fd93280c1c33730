"""The train verb: a configuration becomes a run folder with a trained model in it."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import get_class, instantiate
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf

from alignment.data.datamodule import DataModule
from alignment.data.encoding import tokenizer_hash
from alignment.diagnostics.progress import shown_metrics
from alignment.methods.base import EndOfBatch, Method, Parts
from alignment.models.bundle import ModelBundle
from alignment.models.export import export
from alignment.models.logprob_model import num_parameters
from alignment.models.memory import available_bytes, count_parameters, plan_memory, require_memory
from alignment.pipeline.card import model_card
from alignment.pipeline.folder import run_folder
from alignment.pipeline.hardware import set_up_torch
from alignment.pipeline.manifest import Manifest
from alignment.pipeline.resume import Resume, find_resume
from alignment.rewards.base import Reward
from alignment.rewards.judge import is_relative
from alignment.utils.errors import ConfigError
from alignment.utils.launch import agreed_run_dir, children_join
from alignment.utils.logs import quiet_libraries

log = logging.getLogger(__name__)


def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> float | None:
    """Trains, exports the model, and leaves everything that is known about it in the run's folder.

    Args:
        cfg: The composed and validated configuration.
        run_dir: Where the run lives; a resumed run lives where it began.
        overrides: What the user typed, for the manifest.

    Returns:
        The value of the metric that ``objective`` names, for sweepers that optimise; ``None`` without one.
    """
    quiet_libraries()
    require_devices(cfg)
    resume = find_resume(cfg, agreed_run_dir(run_dir))
    if resume.finished:
        log.info("%s is already finished: nothing to do (resume=null trains anew)", resume.run_dir)
        return _objective(cfg, json.loads((resume.run_dir / "manifest.json").read_text(encoding="utf-8"))["metrics"])
    _leave_empty(run_dir, resume.run_dir)
    run_dir = resume.run_dir
    cfg.paths.run_dir = str(run_dir)
    cfg = cfg.copy()
    # Ranks that Lightning starts read what is saved: they go on from what this one has found, and look for nothing.
    cfg.resume = None if resume.checkpoint is None else str(resume.checkpoint.parent)
    goes_on = resume.checkpoint is not None
    is_writer = rank_zero_only.rank == 0
    if not is_writer:
        logging.getLogger("alignment").setLevel(logging.WARNING)
    with run_folder("train", cfg, run_dir, overrides, goes_on=goes_on, is_writer=is_writer) as (cfg, manifest):
        return _train(cfg, run_dir, resume, manifest)


def _train(cfg: DictConfig, run_dir: Path, resume: Resume, manifest: Manifest) -> float | None:
    set_up_torch(cfg.hardware)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    bundle = ModelBundle(
        source=instantiate(cfg.model, _convert_="all"),
        adapter=_adapter(cfg),
        reference=None if cfg.reference is None else instantiate(cfg.reference),
        seed=cfg.seed,
        head=get_class(cfg.method._target_).head,
        critic=None if cfg.critic is None else instantiate(cfg.critic),
    )
    require_enough_memory(cfg, bundle)
    parts = _parts(cfg, bundle)
    method: Method = instantiate(cfg.method, _convert_="all")(parts=parts)
    data: DataModule = instantiate(cfg.data, _convert_="all")(
        tokenizer=bundle.tokenizer,
        batch_type=method.batch_type,
        seed=cfg.seed,
        cache_dir=_cache_dir(cfg),
        score_prompt=method.scores_prompt,
        soft_labels=method.uses_soft_labels,
        mismatched=method.needs_mismatched,
        layout=bundle.layout,
        steps_a_batch=method.steps_a_batch,
    )
    data.setup("fit")
    check_records(cfg, bundle, data)
    trainer = build(cfg, run_dir, data, reward=parts.reward)
    manifest.update(**_inputs(cfg, bundle, data))
    _launch_argv(run_dir, trainer)
    before = dict(os.environ)
    try:
        trainer.fit(method, datamodule=data, ckpt_path=resume.checkpoint, weights_only=True)
        return _finish(cfg, run_dir, method, trainer, manifest)
    finally:
        _close_loggers(trainer)
        if trainer.strategy.launcher is not None:
            _leave_group(before)


def check_records(cfg: DictConfig, bundle: ModelBundle, data: DataModule) -> None:
    """Refuses, before any weight is read, records that the model cannot read and measurements without prompts.

    Raises:
        ConfigError: Naming the key to change.
    """
    context = getattr(bundle.source.config().get_text_config(), "max_position_embeddings", None)
    if context is not None and data.longest_tokens > context:
        raise ConfigError(
            "data.max_length",
            got=cfg.data.max_length,
            expected=f"at most {context}, the model's context",
            hint=f"the longest record has {data.longest_tokens} tokens",
        )
    if data.num_validation_records == 0 and (cfg.callbacks or {}).get("fresh_samples") is not None:
        raise ConfigError(
            "callbacks.fresh_samples",
            got="samples on held-out prompts",
            expected="null, because nothing is held out",
            hint="set callbacks.fresh_samples=null, or data.validation_size above 0",
        )


def build(cfg: DictConfig, run_dir: Path, data: DataModule, *, reward: Reward | None = None) -> pl.Trainer:
    """Builds the trainer with its callbacks and loggers; a callback without a reward of its own shares the run's.

    One that says only how a completion stands among the others of its prompt measures no policy, and is not shared.
    """
    hardware = instantiate(cfg.hardware, _convert_="all")
    callbacks = [EndOfBatch()] + [
        _complete(instantiate(node, **({"reward": _measure(reward)} if _takes_reward(node) else {})), folder)
        for name, node in cfg.callbacks.items()
        if node is not None
        for folder in [run_dir / "checkpoints" if name == "checkpoint" else run_dir]
    ]
    loggers = [_complete_logger(instantiate(node), run_dir) for node in cfg.logger.values() if node is not None]
    return instantiate(cfg.trainer, _convert_="all")(
        hardware=hardware,
        accumulate=data.accumulate(world_size(cfg)),
        run_dir=run_dir,
        callbacks=callbacks,
        loggers=loggers,
    )


def world_size(cfg: DictConfig) -> int:
    """Returns the number of processes that will train."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    devices = cfg.hardware.devices
    if isinstance(devices, ListConfig):
        a_node = len(devices)
    else:
        a_node = torch.cuda.device_count() if devices in (-1, "auto") and torch.cuda.is_available() else int(devices)
    return max(1, a_node) * int(cfg.hardware.num_nodes)


def require_devices(cfg: DictConfig) -> None:
    """Refuses, before anything is loaded, hardware that this machine does not have.

    Raises:
        ConfigError: Naming what there is.
    """
    wanted = cfg.hardware.accelerator
    if wanted in ("cuda", "gpu") and not torch.cuda.is_available():
        raise ConfigError(
            "hardware.accelerator", got=wanted, expected="cpu", hint="torch sees no CUDA device here: use hardware=cpu"
        )


def require_enough_memory(cfg: DictConfig, bundle: ModelBundle) -> None:
    """Refuses, before any weight is read, a run whose weights and optimiser state cannot fit."""
    needs_copy = str(OmegaConf.select(cfg, "reference._target_", default="")).endswith("FrozenCopy")
    # The copy of the policy that writes while the policy trains.
    writes_ahead = bool(OmegaConf.select(cfg, "method.rollouts.one_step_off", default=False))
    needs_critic = str(OmegaConf.select(cfg, "critic._target_", default="")).endswith("SeparateCritic")
    quantised = cfg.model.get("quantization") is not None
    bytes_a_number = 4 if cfg.model.dtype == "float32" else 2
    # peft keeps an adapter in fp32 whatever the weights' type.
    bytes_a_trained_number = bytes_a_number if bundle.adapter is None else 4
    has_small_moments = str(OmegaConf.select(cfg, "optim._target_", default="")).endswith("adamw_8bit")
    sharded = "FSDP2" in str(OmegaConf.select(cfg, "hardware.strategy._target_", default=""))
    world = world_size(cfg)
    plan = plan_memory(
        parameters=count_parameters(bundle.source.config()),
        bytes_a_weight=0.5 if quantised else bytes_a_number,
        bytes_a_trained_number=bytes_a_trained_number,
        bytes_a_moment=1 if has_small_moments else bytes_a_trained_number,
        copies=1 + needs_copy + needs_critic + writes_ahead,
        trainable_share=(1.0 if bundle.adapter is None else 0.02) + needs_critic,
        shards=world if sharded else 1,
    )
    on_this_machine = world if cfg.hardware.accelerator == "cpu" else 1
    available = available_bytes(cfg.hardware.accelerator) // on_this_machine
    require_memory(plan, available=available, what=f"model {bundle.source.describe()} with method {cfg.name}")


def _cache_dir(cfg: DictConfig) -> Path:
    return Path(cfg.paths.cache).expanduser()


def _adapter(cfg: DictConfig) -> Any:
    return None if cfg.adapter is None else instantiate(cfg.adapter, _convert_="all")


def _parts(cfg: DictConfig, bundle: ModelBundle) -> Parts:
    return Parts(
        bundle=bundle,
        optimizer=instantiate(cfg.optim, _convert_="all"),
        schedule=None if cfg.schedule is None else instantiate(cfg.schedule),
        cache_dir=_cache_dir(cfg),
        reward=None if cfg.reward is None else instantiate(cfg.reward, _convert_="all"),
        rollout=instantiate(cfg.rollout, _convert_="all"),
        seed=cfg.seed,
    )


def _takes_reward(node: DictConfig) -> bool:
    """Whether a callback judges with the run's reward, having none of its own."""
    return "reward" in node and node.reward is None


def _measure(reward: Reward | None) -> Reward | None:
    """Returns the run's reward where its values can be compared from step to step."""
    if reward is None or not is_relative(reward):
        return reward
    log.info(
        "fresh samples have no reward: the run's own compares completions of one prompt with one another, and the "
        "policies of two steps not at all (+reward@callbacks.fresh_samples.reward=NAME takes another)"
    )
    return None


def _complete(callback: Any, folder: Path) -> pl.Callback:
    return callback(folder=folder) if isinstance(callback, functools.partial) else callback


def _complete_logger(logger: Any, run_dir: Path) -> Any:
    return logger(save_dir=run_dir) if isinstance(logger, functools.partial) else logger


def _close_loggers(trainer: pl.Trainer) -> None:
    """Ends W&B's run, which would otherwise go on into the next job of a sweep."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.experiment.finish()


def _leave_group(environment: dict[str, str]) -> None:
    """Undoes what ranks that Lightning started leave behind: the next job of a sweep would take it for its own."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


def _inputs(cfg: DictConfig, bundle: ModelBundle, data: DataModule) -> dict[str, Any]:
    return {
        "hardware": {**dict(cfg.hardware), "world_size": world_size(cfg)},
        "data": {"fingerprint": data.fingerprint, "statistics": data.statistics},
        "model": {
            "source": bundle.source.describe(),
            "weights_hash": bundle.source.weights_hash(),
            "head": str(bundle.head),
            "layout": {"name": str(bundle.layout), "why": bundle.why_layout},
        },
        "tokenizer_hash": tokenizer_hash(bundle.tokenizer),
        "template_hash": hashlib.sha256(str(bundle.tokenizer.chat_template).encode()).hexdigest(),
    }


def _launch_argv(run_dir: Path, trainer: pl.Trainer) -> None:
    """Makes the processes that Lightning starts run this very job, and not compose and name it again."""
    if trainer.world_size > 1 and trainer.strategy.launcher is not None:
        children_join(run_dir)


def _finish(cfg: DictConfig, run_dir: Path, method: Method, trainer: pl.Trainer, manifest: Manifest) -> float | None:
    budget = method.total_budget() | {"updates": trainer.global_step, "peak_memory_bytes": peak_memory_bytes()}
    metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    values = manifest.values
    manifest.update(
        metrics=metrics,
        budget=budget,
        model=values["model"]
        | {
            "parameters": num_parameters(method.trained),
            "trainable_parameters": num_parameters(method.trained, trainable_only=True),
            "loaded_models": method.bundle.loaded_models,
        },
    )
    if cfg.export is not None:
        card = model_card(cfg, manifest.values)
        export(
            method.trained,
            method.bundle.tokenizer,
            run_dir / "model",
            adapter=cfg.export,
            card=card,
            is_writer=trainer.is_global_zero,
        )
        trainer.strategy.barrier()
        manifest.update(artefacts={"model": "model"})
        log.info("model: %s", run_dir / "model")
    log.info("run: %s  %s  (report: align report %s)", run_dir, _headline(metrics), run_dir)
    return _objective(cfg, metrics)


def _headline(metrics: dict[str, float]) -> str:
    return "  ".join(f"{label} {value}" for label, value in shown_metrics(metrics).items())


def _objective(cfg: DictConfig, metrics: dict[str, float]) -> float | None:
    return None if cfg.objective is None else metrics.get(cfg.objective, float("nan"))


def peak_memory_bytes() -> int:
    """Returns the most memory this process has held: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _leave_empty(run_dir: Path, resumed_dir: Path) -> None:
    """Removes the folder that Hydra made for a run that goes on elsewhere."""
    if resumed_dir.resolve() != run_dir.resolve() and run_dir.is_dir() and not any(run_dir.iterdir()):
        run_dir.rmdir()
