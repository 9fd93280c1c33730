"""The generate verb: prompts become completions, and with a reward and a pairing preference data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from alignment.data.chat import prompt_text
from alignment.data.datamodule import DataModule
from alignment.data.encoding import Encoder, tokenizer_hash
from alignment.feedback.pairing import Pairing, write_pairs
from alignment.pipeline.folder import run_folder
from alignment.pipeline.inference import Loaded, load, precision
from alignment.pipeline.manifest import Manifest
from alignment.rewards.base import Reward
from alignment.rewards.errors import checked_scores
from alignment.rollout.engine import EncodedPrompt, RolloutOptions, TokenPrompt, encoded_prompts
from alignment.types import PromptBatch, Rewards, Rollout
from alignment.utils.errors import ConfigError, UserError
from alignment.utils.files import write_json_lines_atomic

log = logging.getLogger(__name__)

ROLLOUTS_FILE = "rollouts.jsonl"
PAIRS_FILE = "pairs.jsonl"
_CHUNK_BATCHES = 4  # batches between two steps of the progress bar


def run(cfg: DictConfig, run_dir: Path, overrides: list[str]) -> None:
    """Samples from a model, judges and pairs what came out, and writes it to the run's folder.

    Args:
        cfg: The composed and validated configuration.
        run_dir: Where the run lives.
        overrides: What the user typed, for the manifest.
    """
    _check(cfg)
    with run_folder("generate", cfg, run_dir, overrides) as (cfg, manifest):
        reward: Reward | None = None if cfg.reward is None else instantiate(cfg.reward, _convert_="all")
        options: RolloutOptions = instantiate(cfg.rollout, _convert_="all")
        loaded = load(cfg.model, cfg.hardware)
        prompts = [typed_prompt(cfg.prompt, loaded)] if cfg.prompt is not None else _data_prompts(cfg, loaded, manifest)
        with precision(cfg.hardware):
            rollouts = sample(loaded, prompts, options)
        if reward is not None:  # an error in a reward must not lose the samples
            write_rollouts(rollouts, None, run_dir / ROLLOUTS_FILE)
        rewards = None if reward is None else checked_scores(reward, rollouts)
        write_rollouts(rollouts, rewards, run_dir / ROLLOUTS_FILE)
        manifest.update(
            model=loaded.describe(),
            metrics=_metrics(rollouts, rewards),
            budget={"prompts": len(prompts), "tokens_generated": sum(len(r.completion_ids) for r in rollouts)},
            artefacts={"rollouts": ROLLOUTS_FILE},
        )
        if cfg.pairing is not None and rewards is not None:
            _write_pairs(cfg, rollouts, rewards, run_dir, manifest, tokenizer_hash(loaded.tokenizer))
        _show(rollouts, rewards, run_dir, whole=cfg.prompt is not None)


def sample(loaded: Loaded, prompts: Sequence[TokenPrompt], options: RolloutOptions) -> list[Rollout]:
    """Draws every completion, with a progress bar."""
    engine, sampling = options.engine(model=loaded.model, tokenizer=loaded.tokenizer), options.sampling
    size = max(1, _CHUNK_BATCHES * sampling.batch_size // sampling.num_samples)
    chunks = [prompts[first : first + size] for first in range(0, len(prompts), size)]
    console = Console(stderr=True)
    bar = track(chunks, description="Sampling", console=console, disable=not console.is_terminal or len(chunks) < 2)
    return [rollout for chunk in bar for rollout in engine.generate(chunk, sampling)]


def typed_prompt(text: str, loaded: Loaded) -> EncodedPrompt:
    """Encodes a prompt from the command line: a user's message for a chat model, plain text for any other."""
    prompt: Any = [{"role": "user", "content": text}] if loaded.tokenizer.chat_template else text
    encoder = Encoder(loaded.tokenizer)
    rendered = prompt_text(loaded.tokenizer, prompt)
    ids = encoder.prompt(encoder.encode([rendered])[rendered])
    return EncodedPrompt("prompt", prompt, tuple(ids))


def write_rollouts(rollouts: Sequence[Rollout], rewards: Rewards | None, path: Path) -> None:
    """Writes roll-outs as JSON lines, all of them or nothing."""
    write_json_lines_atomic(path, (_row(rollout, rewards, place) for place, rollout in enumerate(rollouts)))


def _data_prompts(cfg: DictConfig, loaded: Loaded, manifest: Manifest) -> list[TokenPrompt]:
    data: DataModule = instantiate(cfg.data, _convert_="all")(
        tokenizer=loaded.tokenizer,
        batch_type=PromptBatch,
        seed=cfg.seed,
        cache_dir=Path(cfg.paths.cache).expanduser(),
    )
    data.setup()
    manifest.update(data={"fingerprint": data.fingerprint, "statistics": data.statistics})
    if cfg.split == "held_out":
        return list(data.held_out_prompts(cfg.num_prompts))
    return list(islice(_train_prompts(data), cfg.num_prompts))


def _train_prompts(data: DataModule) -> Iterator[TokenPrompt]:
    """Every training prompt once, in the order of the records."""
    seen: set[tuple[int, ...]] = set()
    for batch in data.batches_once("train"):
        assert isinstance(batch, PromptBatch)
        for prompt in encoded_prompts(batch):
            if prompt.prompt_ids not in seen:
                seen.add(prompt.prompt_ids)
                yield prompt


def _check(cfg: DictConfig) -> None:
    if cfg.num_prompts is not None and cfg.num_prompts < 1:
        raise ConfigError("num_prompts", got=cfg.num_prompts, expected="at least 1, or null for all")
    if cfg.pairing is not None and cfg.reward is None:
        raise ConfigError(
            "reward", got=None, expected="a reward, for pairing to compare by", hint="set reward=vader, or pairing=none"
        )
    if cfg.pairing is not None and cfg.rollout.sampling.num_samples < 2:
        raise ConfigError(
            "rollout.sampling.num_samples",
            got=cfg.rollout.sampling.num_samples,
            expected="at least 2, for pairing to compare",
            hint="8 is usual for best against worst",
        )


def _write_pairs(
    cfg: DictConfig, rollouts: Sequence[Rollout], rewards: Rewards, run_dir: Path, manifest: Manifest, hash_: str
) -> None:
    pairing: Pairing = instantiate(cfg.pairing, _convert_="all")
    pairs = pairing(rollouts, rewards, tokenizer_hash=hash_)
    if not pairs.records:
        reasons = "; ".join(f"{count} x {reason}" for reason, count in sorted(pairs.dropped.items()))
        raise UserError(
            f"pairing: none of {pairs.dropped.total()} prompts gave a pair: {reasons}. Draw more samples "
            "(rollout.sampling.num_samples), or use a reward that tells these completions apart; they are in "
            f"{run_dir / ROLLOUTS_FILE}"
        )
    write_pairs(pairs, run_dir / PAIRS_FILE)
    manifest.update(
        metrics=manifest.values["metrics"] | {f"pairing/{name}": value for name, value in pairs.statistics.items()},
        artefacts=manifest.values["artefacts"] | {"pairs": PAIRS_FILE},
    )
    for reason, count in sorted(pairs.dropped.items()):
        log.warning("%d prompts gave no pair: %s", count, reason)
    log.info("%d pairs in %s", len(pairs.records), run_dir / PAIRS_FILE)


def _metrics(rollouts: Sequence[Rollout], rewards: Rewards | None) -> dict[str, float]:
    metrics = {
        "length/completion_tokens": fmean(len(rollout.completion_ids) for rollout in rollouts),
        "length/truncated_share": fmean(rollout.finish_reason == "length" for rollout in rollouts),
    }
    if rewards is not None:
        metrics["reward/total"] = fmean(rewards.total)
        metrics |= {f"reward/{name}": fmean(values) for name, values in rewards.components.items()}
    return metrics


def _row(rollout: Rollout, rewards: Rewards | None, place: int) -> dict[str, Any]:
    return {
        "prompt_id": rollout.prompt_id,
        "prompt": rollout.prompt,
        "sample": rollout.sample,
        "completion": rollout.completion,
        "finish_reason": rollout.finish_reason,
        "num_tokens": len(rollout.completion_ids),
        "prompt_ids": rollout.prompt_ids,
        "completion_ids": rollout.completion_ids,
        "answer": rollout.answer,
        "reward": None if rewards is None else _reward(rewards, place),
    }


def _reward(rewards: Rewards, place: int) -> dict[str, Any]:
    return {"total": rewards.total[place], "components": {n: v[place] for n, v in rewards.components.items()}}


def _show(rollouts: Sequence[Rollout], rewards: Rewards | None, run_dir: Path, *, whole: bool) -> None:
    """Prints completions: all of a prompt that was typed, a few of a data set's."""
    console = Console(highlight=False)
    for place, rollout in enumerate(rollouts if whole else rollouts[:4]):
        note = "" if rewards is None else f"  reward {rewards.total[place]:.3f}"
        cut = "  (cut off)" if rollout.finish_reason == "length" else ""
        text = f"[bold]{escape(_last(rollout.prompt))}[/bold]{escape(rollout.completion)}[dim]{note}{cut}[/dim]"
        console.print(text, soft_wrap=True)
    console.print(f"{len(rollouts)} completions: {run_dir / ROLLOUTS_FILE}", soft_wrap=True)


def _last(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else f"{prompt[-1]['content']}\n"
