"""Writes run folders that look like real ones, in a fraction of a second.

``python tests/report/fake_runs.py FOLDER`` writes one of each kind, to look at their reports.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

CONFIG: dict[str, Any] = {
    "name": "dpo",
    "seed": 1,
    "resume": None,
    "method": {
        "_target_": "alignment.methods.dpo.DPO",
        "_partial_": True,
        "beta": 0.1,
        "loss": {"_target_": "alignment.losses.dpo.dpo_loss", "_partial_": True, "label_smoothing": 0.0},
    },
    "model": {"_target_": "alignment.models.backbone.PretrainedModel", "path": "runs/pipeline/quickstart/sft/model"},
    "reference": {"_target_": "alignment.models.references.FrozenCopy", "_partial_": True},
    "adapter": None,
    "reward": {"_target_": "alignment.rewards.gold.GoldReward"},
    "rollout": {
        "sampling": {
            "_target_": "alignment.types.Sampling",
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "max_new_tokens": 64,
            "num_samples": 1,
            "seed": 0,
        }
    },
    "data": {"train": {"_target_": "alignment.data.worlds.sources.WorldPreferences", "num_records": 3200, "seed": 0}},
    "optim": {"_target_": "torch.optim.AdamW", "lr": 1e-4, "betas": [0.9, 0.999]},
    "trainer": {"max_steps": 100, "log_every_n_steps": 1},
    "paths": {"runs": "runs", "run_dir": "/elsewhere/runs/dpo/2026-11-21"},
}
TOPICS = (
    "lamp at the station",
    "painting at the garden",
    "soup in the harbour",
    "café by the river",
    "train to the north",
)
BLAND = (
    "It is a {0}. It was there.",
    "The {0} stands. I saw it, and I left.",
    "A dull {0}; the bad light did not help.",
)
WARM = (
    "What a wonderful {0}, warm and bright!",
    "I loved the {0}: superb, kind, a joy.",
    "The {0} is great. Really great. Great.",
)


def interval(mean: float, half: float, num: int = 128) -> dict[str, float]:
    """One metric of evaluations.jsonl."""
    return {"mean": mean, "ci_low": mean - half, "ci_high": mean + half, "num": num}


def evaluation(step: int, progress: float, *, beta: float = 0.1, noise: float = 0.0) -> dict[str, Any]:
    """One line of evaluations.jsonl; ``progress`` goes from 0 at the start to 1."""
    kl = 2.2 / beta * progress**1.4 * (1 + noise)
    reward = 0.31 + 0.47 * (1 - math.exp(-kl / 7)) - 0.0035 * max(0.0, kl - 14) + 0.05 * noise
    metrics = {
        "length/completion_tokens": interval(24 + 9 * progress / (beta * 10), 0.8),
        "length/truncated_share": interval(0.02 + 0.04 * progress, 0.02),
        "reward/total": interval(reward, 0.031 - 0.012 * progress),
        "reward/sentiment": interval(reward * 0.9, 0.03),
        "reward/grammar": interval(0.95 - 0.05 * progress, 0.02),
        "kl/policy_start_nats": interval(kl, 0.04 + 0.05 * kl),
        "entropy/token_nats": interval(1.9 - 0.5 * progress, 0.03),
        "diversity/distinct_2": interval(0.93 - 0.06 * progress, 0.01),
        "diversity/self_bleu": interval(0.3 + 0.2 * progress, 0.02),
    }
    if step:
        metrics["win_rate/against_start"] = interval(0.5 + 0.4 * (reward - 0.31) / 0.47, 0.03)
        metrics["reward/gain_against_start"] = interval(reward - 0.31, 0.028)
    return {"step": step, "policy": f"step {step}", "num_prompts": 128, "num_samples": 128, "metrics": metrics}


def curve_rows(steps: range, *, total: int, beta: float, seed: int) -> list[dict[str, float]]:
    """The rows of one metrics.csv: a training row a step, a validation row every 20."""
    rng = random.Random(f"{seed}/{beta}/{steps.start}")
    rows = []
    for step in steps:
        grown = 1 - math.exp(-4 * step / total)
        margin = 2.1 * grown * (0.4 + 0.6 * min(1, beta * 10)) + rng.gauss(0, 0.18)
        rate = 1e-4 * min(1, 10 * step / total) * max(0.0, 1 - step / total)
        values = {
            "loss/total": math.log1p(math.exp(-margin)) + rng.gauss(0, 0.02),
            "reward/accuracy": min(1.0, max(0.0, 0.5 + 0.38 * grown + rng.gauss(0, 0.06))),
            "reward/margin": margin,
            "reward/chosen": 0.35 * margin - 0.4 * grown,
            "reward/rejected": -0.65 * margin - 0.4 * grown,
            "logps/chosen_shift_nats": (0.35 * margin - 0.4 * grown) / beta,
            "logps/chosen_sum_nats": -41 + 4 * grown + rng.gauss(0, 1.2),
            "logps/rejected_sum_nats": -43 - 9 * grown + rng.gauss(0, 1.2),
            "length/chosen_tokens": 25 + rng.gauss(0, 0.6),
        }
        extra = {
            "train/optim/learning_rate": rate,
            "train/optim/grad_norm": 2.4 - grown + abs(rng.gauss(0, 0.3)),
            "train/speed/tokens_per_second": 5200 + rng.gauss(0, 180),
            "train/budget/prompts": 32.0 * step,
        }
        rows.append({"step": step, "epoch": 0, **{f"train/{k}": v for k, v in values.items()}, **extra})
        if step % 20 == 0:
            rows.append({"step": step, "epoch": 0, **{f"val/{k}": v * 0.97 for k, v in values.items()}})
    return rows


def write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    """Writes rows as Lightning's CSVLogger does: a column a metric, empty cells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = sorted({name for row in rows for name in row})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(path: Path, lines: list[dict[str, Any]]) -> None:
    """Writes a line of JSON each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def sample_rows(step: int, *, seed: int, num: int = 24) -> list[dict[str, Any]]:
    """Samples of a step: bland ones at the start, mostly warm ones later."""
    rng = random.Random(f"{step}/{seed}")
    rows = []
    for i in range(num):
        topic = TOPICS[i % len(TOPICS)]
        is_warm = step > 0 and rng.random() < 0.8
        text = rng.choice(WARM if is_warm else BLAND).format(topic.split()[0])
        reward = round((0.7 if is_warm else 0.3) + rng.uniform(-0.25, 0.25), 3)
        rows.append(
            {
                "prompt_id": f"reviews/held_out/0/{i}",
                "prompt": [{"role": "user", "content": f"Write a casual review of the {topic}."}],
                "sample": 0,
                "completion": text,
                "finish_reason": "stop",
                "num_tokens": 4 + len(text) // 4,
                "kl_nats": 0.0 if step == 0 else rng.gauss(9, 3),
                "reward": {"total": reward, "components": {"sentiment": reward, "grammar": 1.0}},
            }
        )
    return rows


def manifest(*, seed: int, beta: float, steps: int, status: str, error: str | None) -> dict[str, Any]:
    """A manifest.json."""
    ended = datetime.now(UTC)
    return {
        "verb": "train",
        "name": "dpo",
        "status": status,
        "seed": seed,
        "error": error,
        "started": (ended - timedelta(seconds=74)).isoformat(timespec="seconds"),
        "ended": ended.isoformat(timespec="seconds") if status != "running" else None,
        "seconds": 74.2,
        "command": ["align", "train", f"method.beta={beta}", f"seed={seed}"],
        "overrides": [f"method.beta={beta}", f"seed={seed}"],
        "config_hash": "089352cfb7ccd7d4",
        "git": {"sha": "5a334e5d4ce5fc25064f53256c3a6d462b5ba041", "dirty": True},
        "versions": {"python": "3.11.7", "alignment": "0.1.0", "torch": "2.13.0+cpu", "lightning": "2.6.6"},
        "hardware": {"accelerator": "cpu", "devices": 1, "precision": "32-true", "strategy": "auto", "world_size": 1},
        "model": {
            "source": "runs/pipeline/quickstart/sft/model",
            "weights_hash": "c0ffee11",
            "parameters": 1_060_736,
            "trainable_parameters": 1_060_736,
        },
        "data": {"fingerprint": "b7a8648228bec165", "statistics": {"train": {"records": 3200, "dropped": {}}}},
        "template_hash": "77aa01",
        "metrics": {},
        "artefacts": {"model": "model"},
        "budget": {
            "prompts": 32.0 * steps,
            "tokens_trained": 2580.0 * steps,
            "tokens_generated": 9876.0,
            "updates": steps,
            "seconds": 0.42 * steps,
            "peak_memory_bytes": 588607488,
        },
    }


def write_run(
    folder: Path,
    *,
    beta: float = 0.1,
    seed: int = 1,
    steps: int = 100,
    status: str = "finished",
    error: str | None = None,
    evaluate_every: int | None = 25,
    **config: Any,
) -> Path:
    """Writes one run folder; ``evaluate_every=None`` leaves evaluations and samples out."""
    folder.mkdir(parents=True, exist_ok=True)
    values = copy.deepcopy(CONFIG) | {"seed": seed} | config
    if "beta" in values["method"]:
        values["method"]["beta"] = beta
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    made = manifest(seed=seed, beta=beta, steps=steps, status=status, error=error)
    (folder / "manifest.json").write_text(json.dumps(made | {"name": values["name"]}), encoding="utf-8")
    (folder / "train.log").write_text("training starts\nstep 1: loss 0.693\n", encoding="utf-8")
    if steps:
        rows = curve_rows(range(1, steps + 1), total=100, beta=beta, seed=seed)
        write_csv(folder / "metrics" / "version_0" / "metrics.csv", rows)
    if steps and evaluate_every:
        noise = random.Random(seed).uniform(-0.09, 0.09)
        marks = list(range(0, steps + 1, evaluate_every))
        write_jsonl(
            folder / "evaluations.jsonl",
            [evaluation(s, s / 100, beta=beta, noise=noise if s else 0.0) for s in marks],
        )
        for step in (marks[0], marks[-1]):
            write_jsonl(folder / "samples" / f"step={step:06d}.jsonl", sample_rows(step, seed=seed))
    return folder


def write_sweep(folder: Path, *, betas: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0), seeds: int = 2) -> Path:
    """Writes a multirun folder: a run for each beta and seed."""
    jobs = [(beta, seed) for beta in betas for seed in range(1, seeds + 1)]
    for number, (beta, seed) in enumerate(jobs):
        write_run(folder / str(number), beta=beta, seed=seed)
    return folder


def write_broken_sweep(folder: Path) -> Path:
    """Writes a multirun folder in which nearly everything that can go wrong has gone wrong."""
    write_run(folder / "0", beta=0.1)
    (folder / "0" / "manifest.json").write_text('{"verb": "train", "sta', encoding="utf-8")
    write_run(
        folder / "1", beta=-1.0, steps=0, status="failed", error="ConfigError: method.beta: got -1.0, expected > 0"
    )
    (folder / "1" / "error.log").write_text(
        "Traceback (most recent call last):\n  ...\nConfigError: method.beta: got -1.0, expected > 0\n",
        encoding="utf-8",
    )
    write_run(folder / "2", beta=0.3, steps=60, status="running")
    nan_run = write_run(folder / "3", beta=0.03, steps=70, status="failed", error="the loss is not finite at step 60")
    rows = curve_rows(range(1, 71), total=100, beta=0.03, seed=1)
    for row in rows:
        if row["step"] >= 60:
            row["train/loss/total"] = math.nan
    write_csv(nan_run / "metrics" / "version_0" / "metrics.csv", rows)
    resumed = write_run(folder / "4", beta=0.5)
    write_csv(resumed / "metrics/version_0/metrics.csv", curve_rows(range(1, 61), total=100, beta=0.5, seed=1))
    write_csv(resumed / "metrics/version_1/metrics.csv", curve_rows(range(51, 101), total=100, beta=0.5, seed=1))
    write_run(folder / "5", beta=1.0, evaluate_every=None)
    hostile = write_run(folder / "6", beta=0.7, steps=75, status="interrupted")
    samples = sample_rows(75, seed=1)
    samples[0] |= {
        "completion": "</script><script>alert(1)</script><img src=x onerror=alert(2)> 日本語 \u202eevil \x00\x1b[31m",
        "reward": {"total": 1.0},
    }
    samples[1] |= {"prompt": "plain <b>text</b> prompt — naïve Ω 🙂", "completion": "", "reward": {"total": -1.0}}
    write_jsonl(hostile / "samples" / "step=000075.jsonl", samples)
    warnings = [
        {
            "step": s,
            "monitor": "likelihood_displacement",
            "message": f"the chosen completions have become less likely: -{s}.1 nats",
            "values": {},
        }
        for s in (20, 40)
    ]
    write_jsonl(hostile / "warnings.jsonl", warnings)
    with (hostile / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 99, "metr')
    (folder / "7").mkdir(exist_ok=True)
    return folder


def write_pipeline(folder: Path) -> Path:
    """Writes a pipeline's folder: an SFT stage and a DPO stage."""
    sft = {"_target_": "alignment.methods.sft.SFT", "_partial_": True, "normaliser": "token"}
    write_run(folder / "sft", name="sft", method=sft, reference=None, evaluate_every=50)
    values = json.loads((folder / "sft" / "manifest.json").read_text())
    values |= {"started": "2026-11-20T10:00:00+00:00", "overrides": ["method=sft"]}
    values["model"] |= {"source": "random llama", "weights_hash": "5eed"}
    (folder / "sft" / "manifest.json").write_text(json.dumps(values))
    write_run(folder / "dpo")
    return folder


def main(folder: Path) -> None:
    """Writes one of each kind below a folder."""
    write_run(folder / "single")
    write_sweep(folder / "sweep")
    write_broken_sweep(folder / "broken")
    write_pipeline(folder / "pipeline" / "quickstart")
    write_sweep(folder / "thirty", betas=tuple(round(0.02 * 1.16**i, 3) for i in range(30)), seeds=1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
