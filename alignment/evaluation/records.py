"""Evaluations and their samples, as lines of JSON in a run's folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignment.evaluation.fresh import Evaluation, Sample
from alignment.utils.files import append_json_line, write_json_lines_atomic

EVALUATIONS_FILE = "evaluations.jsonl"
SAMPLES_FOLDER = "samples"


def record_evaluation(evaluation: Evaluation, run_dir: Path, *, step: int, policy: str) -> Path:
    """Writes the samples of an evaluation, then adds its metrics to the run's evaluations.

    Args:
        evaluation: What to write.
        run_dir: The run's folder.
        step: Optimiser steps that the policy was trained for in this run.
        policy: Names the policy in words.

    Returns:
        The file that the samples were written to.
    """
    path = samples_path(run_dir, step)
    write_json_lines_atomic(path, map(sample_row, evaluation.samples))
    append_json_line(run_dir / EVALUATIONS_FILE, evaluation_row(evaluation, step=step, policy=policy))
    return path


def samples_path(run_dir: Path, step: int) -> Path:
    """Where the samples of a step are kept.

    >>> samples_path(Path("run"), 100).as_posix()
    'run/samples/step=000100.jsonl'
    """
    return run_dir / SAMPLES_FOLDER / f"step={step:06d}.jsonl"


def evaluation_row(evaluation: Evaluation, *, step: int, policy: str) -> dict[str, Any]:
    """Returns the line of ``evaluations.jsonl`` for an evaluation."""
    return {
        "step": step,
        "policy": policy,
        "num_prompts": evaluation.num_prompts,
        "num_samples": len(evaluation.samples),
        "metrics": {name: asdict(estimate) for name, estimate in evaluation.metrics.items()},
    }


def sample_row(sample: Sample) -> dict[str, Any]:
    """Returns the line of a samples file for a sample."""
    rollout = sample.rollout
    reward = None if sample.reward is None else {"total": sample.reward, "components": sample.components}
    score = {} if sample.score is None else {"score": sample.score}
    return {
        "prompt_id": rollout.prompt_id,
        "prompt": rollout.prompt,
        "sample": rollout.sample,
        "completion": rollout.completion,
        "finish_reason": rollout.finish_reason,
        "num_tokens": len(rollout.completion_ids),
        "kl_nats": sample.log_ratio_nats,
        "reward": reward,
        **score,
    }
