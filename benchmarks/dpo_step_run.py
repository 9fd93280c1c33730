"""One measured run of :mod:`dpo_step`, in a process of its own so that its peak memory is its own.

Called with one argument, a JSON object; the last line of its output is a JSON object.
"""

from __future__ import annotations

import csv
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

BETA, LEARNING_RATE, CLIP = 0.1, 1e-5, 1.0


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Saves the weights, the tokenizer and the pairs that every run reads."""
    from equal_inputs import save_model, write_pairs

    save_model(Path(job["model"]), architecture="llama", config=job["config"], seed=1)
    write_pairs(Path(job["pairs"]), lengths=job["lengths"], vocab_size=job["config"]["vocab_size"], seed=1)
    return {}


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Runs this project as ``align train`` does, with a clock among the callbacks."""
    from omegaconf import OmegaConf

    from alignment.config.compose import compose, task_config
    from alignment.pipeline.train import run

    folder = Path(job["folder"])
    cfg = task_config(compose("train", our_overrides(job)))
    clock = {"_target_": "step_clock.LightningClock", "path": str(folder / "clock.json")}
    OmegaConf.update(cfg, "callbacks.clock", clock, force_add=True)
    before = resident_bytes()
    run(cfg, folder / "run", [])
    measured = json.loads((folder / "clock.json").read_text(encoding="utf-8"))
    with next((folder / "run" / "metrics").glob("*/metrics.csv")).open(encoding="utf-8") as file:
        losses = [float(row["train/loss/total"]) for row in csv.DictReader(file) if row.get("train/loss/total")]
    manifest = json.loads((folder / "run" / "manifest.json").read_text(encoding="utf-8"))
    parameters, models = manifest["model"]["parameters"], manifest["model"]["loaded_models"]
    return measured | {"losses": losses, "resident_before": before, "parameters": parameters, "models": models}


def our_overrides(job: dict[str, Any]) -> list[str]:
    """Returns what is overridden in this project's own defaults."""
    return [
        "model=pretrained",
        f"model.path={job['model']}",
        "data=jsonl",
        f"data.train.path={job['pairs']}",
        "data.validation_size=0",
        f"data.batch_size={job['batch']}",
        f"data.micro_batch_size={job['batch']}",
        "data.shuffle=false",
        f"reference={'precomputed' if job['precomputed'] else 'frozen_copy'}",
        f"method.beta={BETA}",
        f"optim.lr={LEARNING_RATE}",
        "optim.fused=true",
        "schedule.warmup=0",
        f"trainer.gradient_clip_val={CLIP}",
        "trainer.log_every_n_steps=1",
        "callbacks.fresh_samples=null",
        "callbacks.checkpoint=null",
        "export=null",
        f"hardware.threads={job['threads'] or 'null'}",
        f"paths.cache={job['folder']}/cache",
    ]


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """Runs TRL's DPOTrainer."""
    from step_clock import TRLClock, tokens_digest
    from transformers import AutoTokenizer
    from trl_peer import dpo_config, dpo_trainer

    clock, before = TRLClock(), resident_bytes()
    config = dpo_config(
        Path(job["folder"]),
        per_device_train_batch_size=job["batch"],
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        beta=BETA,
        max_grad_norm=CLIP,
        precompute_ref_log_probs=job["precomputed"],
        optim="adamw_torch_fused",
    )
    trainer = dpo_trainer(
        model=job["model"],
        tokenizer=AutoTokenizer.from_pretrained(job["model"]),
        pairs=Path(job["pairs"]),
        config=config,
        callbacks=[clock],
    )
    trainer.train()
    sequences = [
        row["prompt_ids"] + row[side] for row in trainer.train_dataset for side in ("chosen_ids", "rejected_ids")
    ]
    width = 2 * job["batch"]
    steps = [sequences[start : start + width] for start in range(0, len(sequences), width)]
    return {
        "ends": clock.ends,
        "digest": tokens_digest(steps),
        "losses": [row["loss"] for row in trainer.state.log_history if "rewards/margins" in row],
        "resident_before": before,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "models": 1 + (trainer.ref_model is not None),
    }


def resident_bytes() -> int:
    """Returns what this process holds now: libraries, before any weight."""
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * resource.getpagesize()


def main() -> None:
    """Does what the argument says."""
    job = json.loads(sys.argv[1])
    start = time.perf_counter()
    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    result = {"prepare": prepare, "ours": ours, "trl": trl}[job["system"]](job)
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result["threads"] = torch.get_num_threads()
    result["process_seconds"] = time.perf_counter() - start
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
