"""One measured run of :mod:`training_step`, in a process of its own so that its peak memory is its own.

Called with one argument, a JSON object; the last line of its output is a JSON object.
"""

from __future__ import annotations

import csv
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

LEARNING_RATE, CLIP, SEED = 1e-5, 1.0, 1
#: More tokens than any sequence of a benchmark has.
NO_LIMIT = 4096


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Saves what every run reads: weights, also with a head that judges, the tokenizer, and records of each kind."""
    import numpy as np
    from equal_inputs import save_model, write_pairs, write_singles

    from alignment.data.mismatch import partners

    folder, lengths = Path(job["folder"]), [tuple(pair) for step in job["lengths"] for pair in step]
    dtype = getattr(torch, job["dtype"])
    for name in job["models"]:
        save_model(
            folder / name,
            architecture=job["architecture"],
            config=job["config"],
            seed=SEED,
            dtype=dtype,
            device=job["device"],
            judge=name == "judge",
        )
    words = {"lengths": lengths, "vocab_size": job["config"]["vocab_size"], "seed": SEED}
    write_pairs(folder / "pairs.jsonl", **words)
    write_singles(folder / "thumbs.jsonl", labels=True, **words)
    write_singles(folder / "demonstrations.jsonl", labels=False, **words)
    # Every prompt is there once: whatever numbers prompts have, the same records are put together.
    return {"partners": partners(np.arange(2 * len(lengths)), where="thumbs").tolist()}


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Runs this project as ``align train`` does, with a clock among the callbacks."""
    return clocked_run(our_config(job), Path(job["folder"]), clock="step_clock.LightningClock")


def clocked_run(cfg: Any, folder: Path, *, clock: str) -> dict[str, Any]:
    """Runs a configuration as ``align train`` does, and returns what the clock and the run itself have measured.

    Args:
        cfg: The run's configuration.
        folder: The run goes into ``run`` below it.
        clock: A callback by its class's path; it writes what it measured as JSON to ``path``.
    """
    from omegaconf import OmegaConf

    from alignment.pipeline.train import run

    node = {"_target_": clock, "path": str(folder / "clock.json")}
    OmegaConf.update(cfg, "callbacks.clock", node, force_add=True)
    before = resident_bytes("cpu" if cfg.hardware.accelerator == "cpu" else "cuda")
    run(cfg, folder / "run", [])
    measured = json.loads((folder / "clock.json").read_text(encoding="utf-8"))
    with next((folder / "run" / "metrics").glob("*/metrics.csv")).open(encoding="utf-8") as file:
        # The last step is logged too; of the norm only those that were due.
        rows = [row for row in csv.DictReader(file) if row.get("train/optim/grad_norm")]
    manifest = json.loads((folder / "run" / "manifest.json").read_text(encoding="utf-8"))
    return measured | {
        "losses": {row["step"]: float(row["train/loss/total"]) for row in rows},
        "gradient_norms": {row["step"]: float(row["train/optim/grad_norm"]) for row in rows},
        "resident_before": before,
        "parameters": manifest["model"]["parameters"],
        "models": manifest["model"]["loaded_models"],
    }


def our_config(job: dict[str, Any]) -> Any:
    """Returns the configuration of a run: this project's defaults, and what makes it short, quiet and repeatable."""
    logged = f"trainer.log_every_n_steps={job['log_every']}"
    return short_config(job, job["batch"], job["batch"], [*job["ours"], logged])


def short_config(job: dict[str, Any], batch_size: int, micro_batch_size: int, overrides: Sequence[str]) -> Any:
    """Returns the configuration of a run on a job's model and records, without what belongs to no step.

    Args:
        job: The run's.
        batch_size: Records a step.
        micro_batch_size: Records a pass.
        overrides: What else it is.
    """
    from alignment.config.compose import compose, task_config

    on_gpu = ["hardware=single_gpu", "hardware.precision=32-true"] if job["device"] == "cuda" else []
    return task_config(
        compose(
            "train",
            [
                "model=pretrained",
                f"model.path={job['model']}",
                f"model.dtype={job['dtype']}",
                "data=jsonl",
                f"data.train.path={job['records']}",
                "data.validation_size=0",
                f"data.batch_size={batch_size}",
                f"data.micro_batch_size={micro_batch_size}",
                f"data.max_length={NO_LIMIT}",
                "data.max_prompt_length=null",
                "data.shuffle=false",
                "data.num_workers=0",
                *on_gpu,
                *overrides,
                f"optim.lr={LEARNING_RATE}",
                "optim.fused=true",
                "schedule.warmup=0",
                f"trainer.gradient_clip_val={CLIP}",
                "callbacks.fresh_samples=null",
                "callbacks.checkpoint=null",
                "export=null",
                f"hardware.threads={job['threads'] or 'null'}",
                f"paths.cache={job['folder']}/cache",
            ],
        )
    )


def bare(job: dict[str, Any]) -> dict[str, Any]:
    """Trains DPO in a plain loop on the batches, the model and the loss of the same configuration, made beforehand."""
    from hydra.utils import instantiate
    from step_clock import now, prompts_of, sequences_of, tokens_digest

    from alignment.losses.dpo import dpo_loss
    from alignment.models.bundle import ModelBundle
    from alignment.types import PreferenceBatch, Role

    cfg, before = our_config(job), resident_bytes(job["device"])
    torch.manual_seed(cfg.seed)
    bundle = ModelBundle(
        source=instantiate(cfg.model, _convert_="all"),
        adapter=None,
        reference=instantiate(cfg.reference),
        seed=cfg.seed,
    )
    policy = bundle.build(frozenset({Role.POLICY, Role.REFERENCE})).to(job["device"])
    assert bundle.reference is not None
    if bundle.reference.frozen is not None:
        bundle.reference.frozen.to(job["device"])
    layout = {"layout": bundle.layout} if "layout" in cfg.model else {}
    data = instantiate(cfg.data, _convert_="all")(
        tokenizer=bundle.tokenizer, batch_type=PreferenceBatch, seed=0, cache_dir=Path(job["folder"]), **layout
    )
    batches = [batch.to(job["device"]) for batch in data.train_dataloader()]
    optimizer = instantiate(cfg.optim, _convert_="all")(policy.parameters())
    schedule = instantiate(cfg.schedule)(optimizer, total_steps=len(batches))
    ends, losses, norms = [], [], []
    policy.train()
    for batch in batches:
        scored = policy(batch.tokens)
        log_ratio = scored.sum_by_sequence(scored.token_logps - bundle.reference.batch_logps(batch))
        chosen, rejected = log_ratio.chunk(2)
        values = dpo_loss(
            chosen_log_ratio=chosen, rejected_log_ratio=rejected, beta=cfg.method.beta, label_smoothing=0.0
        )
        loss = values.mean()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        ends.append(now())
    prompts = prompts_of(data)
    logged = range(job["log_every"], len(losses) + 1, job["log_every"])
    return {
        "ends": ends,
        "digest": tokens_digest(sequences_of(batch, prompts) for batch in batches),
        # Of the steps that this project logs, with both.
        "losses": {str(step): losses[step - 1].item() for step in logged},
        "gradient_norms": {str(step): norms[step - 1].item() for step in logged},
        "resident_before": before,
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "models": bundle.loaded_models,
    }


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """Runs TRL's trainer."""
    from step_clock import TRLClock, tokens_digest
    from transformers import AutoTokenizer
    from trl_peer import pair_as, peer_config, peer_trainer, score_completions_only, steps_of

    if job["completions_only"]:
        score_completions_only()
    name, clock, before = job["trainer"], TRLClock(), resident_bytes(job["device"])
    settings = {
        "use_cpu": job["device"] == "cpu",
        "model_init_kwargs": {"dtype": job["dtype"], "attn_implementation": "sdpa"},
        "per_device_train_batch_size": job["batch"],
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": CLIP,
        "max_length": NO_LIMIT,
        "optim": "adamw_torch_fused",
    }
    trainer = peer_trainer(
        name,
        model=job["model"],
        tokenizer=AutoTokenizer.from_pretrained(job["model"]),
        records=Path(job["records"]),
        config=peer_config(name, Path(job["folder"]), **(settings | job["options"])),
        callbacks=[clock],
    )
    if name == "KTO":
        pair_as(trainer, job["partners"])
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return {
        "ends": clock.ends,
        "digest": tokens_digest(steps_of(name, trainer, job["batch"])),
        "losses": {str(row["step"]): row["loss"] for row in logged},
        "gradient_norms": {str(row["step"]): row["grad_norm"] for row in logged},
        "resident_before": before,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "models": 1 + (getattr(trainer, "ref_model", None) is not None),
    }


def matmul(job: dict[str, Any]) -> dict[str, Any]:
    """Measures how many operations a second the device does in a matrix product of the weights' type."""
    from step_clock import now

    size = job["size"]
    left, right = (torch.randn(size, size, dtype=getattr(torch, job["dtype"]), device=job["device"]) for _ in range(2))
    seconds = []
    for _ in range(13):
        start = now()[0]
        torch.mm(left, right)
        seconds.append(now()[0] - start)
    return {"operations_per_second": 2 * size**3 / sorted(seconds[3:])[5]}


def resident_bytes(device: str) -> int:
    """Returns what this process holds before any weight: libraries, and on a GPU nothing."""
    if device == "cuda":
        return 0
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * resource.getpagesize()


def peak_bytes(device: str) -> int:
    """Returns the most that was held: on the GPU by tensors, on the CPU by the process, libraries included."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


SYSTEMS = {"prepare": prepare, "ours": ours, "bare": bare, "trl": trl, "matmul": matmul}


def result_of(
    job: dict[str, Any], systems: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = SYSTEMS
) -> dict[str, Any]:
    """Does a job, profiled if that is wanted."""
    if not job.get("profile"):
        return systems[job["system"]](job)
    import step_clock
    from operation_times import StepProfile

    step_clock.profiled = StepProfile()
    try:
        return systems[job["system"]](job) | {"operation_seconds": step_clock.profiled.seconds()}
    finally:
        step_clock.profiled = None


def main(systems: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = SYSTEMS) -> None:
    """Does what the argument says, with one of these."""
    job = json.loads(sys.argv[1])
    start = time.perf_counter()
    if job.get("threads"):
        torch.set_num_threads(job["threads"])
    result = result_of(job, systems)
    result["peak_bytes"] = peak_bytes(job["device"])
    result["threads"] = torch.get_num_threads()
    result["process_seconds"] = time.perf_counter() - start
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
