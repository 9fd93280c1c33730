"""The evaluate verb: a finished model, measured on fresh samples."""

from __future__ import annotations

import logging
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from alignment.data.datamodule import DataModule
from alignment.evaluation.fresh import Evaluation, evaluate_policy
from alignment.evaluation.intervals import Estimate
from alignment.evaluation.records import EVALUATIONS_FILE, record_evaluation
from alignment.pipeline.graph import resolve_artifacts
from alignment.pipeline.inference import Loaded, load, precision, start_model
from alignment.pipeline.manifest import Manifest, recorded, start_values
from alignment.rewards.base import Reward
from alignment.types import PromptBatch, Sampling
from alignment.utils.errors import ConfigError
from alignment.utils.logs import log_to
from alignment.utils.redact import save_config

log = logging.getLogger(__name__)


def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
    """Measures a model, and beside it the model that it started from where one is named.

    Args:
        cfg: The composed and validated configuration.
        run_dir: Where the run lives.
        overrides: What the user typed, for the manifest.
    """
    _check(cfg)
    run_dir.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(run_dir, start_values(verb="evaluate", cfg=cfg, overrides=overrides))
    with recorded(manifest), log_to(run_dir / "evaluate.log"):
        cfg = resolve_artifacts(cfg)
        save_config(cfg, run_dir / "config.yaml")
        policy = load(cfg.model, cfg.hardware)
        start = None if cfg.start.path is None else load(start_model(cfg), cfg.hardware)
        (run_dir / EVALUATIONS_FILE).unlink(missing_ok=True)
        with precision(cfg.hardware):
            before, after = measure(cfg, policy, start, run_dir, manifest)
        tokens = after.tokens_generated + (0 if before is None else before.tokens_generated)
        manifest.update(
            model=policy.describe(),
            start=None if start is None else start.describe(),
            metrics={name: estimate.mean for name, estimate in after.metrics.items()},
            budget={"prompts": after.num_prompts, "tokens_generated": tokens},
            artefacts={"evaluations": EVALUATIONS_FILE, "samples": "samples"},
        )
        console = Console(highlight=False)
        console.print(table(before, after))
        console.print(f"{after.num_prompts} held-out prompts, {len(after.samples)} samples: {run_dir}", soft_wrap=True)


def measure(
    cfg: DictConfig, policy: Loaded, start: Loaded | None, run_dir: Path, manifest: Manifest
) -> tuple[Evaluation | None, Evaluation]:
    """Measures the start, if there is one, and the policy on the same prompts; writes both.

    The start's line has step 0; the policy's has step 1, or 0 where it stands alone.
    """
    data: DataModule = instantiate(cfg.data, _convert_="all")(
        tokenizer=policy.tokenizer,
        batch_type=PromptBatch,
        seed=cfg.seed,
        cache_dir=Path(cfg.paths.cache).expanduser(),
    )
    prompts = data.held_out_prompts(cfg.num_prompts)
    manifest.update(data={"fingerprint": data.fingerprint, "statistics": data.statistics})
    sampling: Sampling = instantiate(cfg.rollout, _convert_="all").sampling
    reward: Reward | None = None if cfg.reward is None else instantiate(cfg.reward, _convert_="all")
    scorer = None if start is None else start.model
    before: Evaluation | None = None
    if start is not None:
        log.info("sampling from the start, %s", start.source.describe())
        before = evaluate_policy(
            policy=start.model,
            start=scorer,
            tokenizer=start.tokenizer,
            prompts=prompts,
            sampling=sampling,
            reward=reward,
        )
        record_evaluation(before, run_dir, step=0, policy=f"start: {start.source.describe()}")
    log.info("sampling from %s", policy.source.describe())
    after = evaluate_policy(
        policy=policy.model,
        start=scorer,
        tokenizer=policy.tokenizer,
        prompts=prompts,
        sampling=sampling,
        reward=reward,
        start_evaluation=before,
    )
    record_evaluation(after, run_dir, step=0 if before is None else 1, policy=policy.source.describe())
    return before, after


def table(before: Evaluation | None, after: Evaluation) -> Table:
    """Lays the metrics out beside one another, each with its 95% interval."""
    grid = Table(title="Fresh samples on held-out prompts (95% intervals over prompts)")
    grid.add_column("metric")
    if before is not None:
        grid.add_column("start", justify="right")
    grid.add_column("model", justify="right")
    for name, estimate in sorted(after.metrics.items()):
        cells = [] if before is None else [_cell(before.metrics.get(name))]
        grid.add_row(name, *cells, _cell(estimate))
    return grid


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if estimate.ci_low == estimate.ci_high:
        return f"{estimate.mean:g}"
    return f"{estimate.mean:.3f} ({estimate.ci_low:.3f} to {estimate.ci_high:.3f})"


def _check(cfg: DictConfig) -> None:
    if cfg.num_prompts is not None and cfg.num_prompts < 1:
        raise ConfigError("num_prompts", got=cfg.num_prompts, expected="at least 1, or null for all")
