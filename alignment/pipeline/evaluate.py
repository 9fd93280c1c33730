"""The evaluate verb: a finished model, measured on fresh samples."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from alignment.data.datamodule import DataModule
from alignment.evaluation.fresh import Evaluation, evaluate_policy, rewards_by_prompt
from alignment.evaluation.intervals import Estimate
from alignment.evaluation.records import EVALUATIONS_FILE, record_evaluation
from alignment.evaluation.selection import Selection, selection_sizes, summarize_selection
from alignment.pipeline.folder import run_folder
from alignment.pipeline.inference import Loaded, load, precision, start_model
from alignment.pipeline.manifest import Manifest
from alignment.rewards.base import Reward
from alignment.rewards.errors import checked_scores
from alignment.rollout.engine import RolloutOptions
from alignment.types import PromptBatch, Sampling
from alignment.utils.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selector:
    """Measures a choice among samples.

    Attributes:
        selection: How to choose.
        scorer: What it asks, ``None`` where it asks nothing.
        sizes: From how many samples.
    """

    selection: Selection
    scorer: Reward | None
    sizes: list[int]

    def __call__(self, evaluation: Evaluation) -> Evaluation:
        """Adds the scores to the samples, and what the choice came to to the metrics."""
        samples = evaluation.samples
        if self.scorer is not None:
            with _scorer_keys():
                scores = checked_scores(self.scorer, [sample.rollout for sample in samples], name="scorer").total
            samples = tuple(replace(item, score=score) for item, score in zip(samples, scores, strict=True))
        metrics = evaluation.metrics | summarize_selection(samples, self.selection, sizes=self.sizes)
        return replace(evaluation, samples=samples, metrics=metrics)


def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
    """Measures a model, and beside it the model that it started from where one is named.

    Args:
        cfg: The composed and validated configuration.
        run_dir: Where the run lives.
        overrides: What the user typed, for the manifest.
    """
    _check(cfg)
    with run_folder("evaluate", cfg, run_dir, overrides) as (cfg, manifest):
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
    options: RolloutOptions = instantiate(cfg.rollout, _convert_="all")
    sampling = options.sampling
    selector = _selector(cfg, sampling)
    reward: Reward | None = None if cfg.reward is None else instantiate(cfg.reward, _convert_="all")
    scorer = None if start is None else start.model
    before: Evaluation | None = None
    if start is not None:
        log.info("sampling from the start, %s", start.source.describe())
        before = evaluate_policy(
            policy=start.model,
            start=scorer,
            tokenizer=start.tokenizer,
            engine=options.engine,
            prompts=prompts,
            sampling=sampling,
            reward=reward,
        )
        before = before if selector is None else selector(before)
        record_evaluation(before, run_dir, step=0, policy=f"start: {start.source.describe()}")
    log.info("sampling from %s", policy.source.describe())
    after = evaluate_policy(
        policy=policy.model,
        start=scorer,
        tokenizer=policy.tokenizer,
        engine=options.engine,
        prompts=prompts,
        sampling=sampling,
        reward=reward,
        start_rewards=None if before is None or reward is None else rewards_by_prompt(before.samples),
    )
    after = after if selector is None else selector(after)
    record_evaluation(after, run_dir, step=0 if before is None else 1, policy=policy.source.describe())
    return before, after


def table(before: Evaluation | None, after: Evaluation) -> Table:
    """Lays the metrics out beside one another, each with its 95% interval."""
    grid = Table(title="Fresh samples on held-out prompts (95% intervals over prompts)")
    grid.add_column("metric")
    if before is not None:
        grid.add_column("start", justify="right")
    grid.add_column("model", justify="right")
    for name, estimate in sorted(after.metrics.items(), key=_by_name):
        cells = [] if before is None else [_cell(before.metrics.get(name))]
        grid.add_row(name, *cells, _cell(estimate))
    return grid


def _by_name(item: tuple[str, Estimate]) -> list[str | int]:
    """Sorts numbers in names by their value: a curve over n stays in order."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", item[0])]


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if estimate.ci_low == estimate.ci_high:
        return f"{estimate.mean:g}"
    return f"{estimate.mean:.3f} ({estimate.ci_low:.3f} to {estimate.ci_high:.3f})"


def _selector(cfg: DictConfig, sampling: Sampling) -> Selector | None:
    if cfg.selection is None:
        return None
    selection: Selection = instantiate(cfg.selection, _convert_="all")
    with _scorer_keys():
        scorer: Reward | None = None if cfg.scorer is None else instantiate(cfg.scorer, _convert_="all")
    return Selector(selection, scorer, selection_sizes(selection, sampling.num_samples))


@contextmanager
def _scorer_keys() -> Iterator[None]:
    """Names the scorer's own keys in what goes wrong with it: a scorer is a reward under another name."""
    try:
        yield
    except (ConfigError, InstantiationException) as error:
        cause = error if isinstance(error, ConfigError) else error.__cause__
        if not isinstance(cause, ConfigError):
            raise
        key = cause.key.replace("reward.", "scorer.", 1)
        raise ConfigError(key, got=cause.got, expected=cause.expected, hint=cause.hint) from error


def _check(cfg: DictConfig) -> None:
    if cfg.num_prompts is not None and cfg.num_prompts < 1:
        raise ConfigError("num_prompts", got=cfg.num_prompts, expected="at least 1, or null for all")
