"""One measured run of :mod:`grpo_step`, in a process of its own so that its peak memory is its own.

Called with one argument, a JSON object; the last line of its output is a JSON object.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from step_clock import now
from training_step_run import CLIP, LEARNING_RATE, SEED, clocked_run, main, resident_bytes, short_config

#: Bytes that are read to measure how fast memory is: many times what a cache holds.
STREAM_BYTES = 2**30
#: Rows and columns of a product that is large enough to be as fast as any.
MATRIX = {"cpu": 1024, "cuda": 8192}
#: Of continuous batching: tokens of a block of its cache, and tokens of a forward pass.
PAGE, BATCH_TOKENS = 64, 512
#: Prompts and the most new tokens in, the lengths of completions out.
Generate = Callable[[list[list[int]], int], list[int]]


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Saves what every run reads: weights, the tokenizer, prompts."""
    from equal_inputs import save_endless_model, write_prompts

    folder, config = Path(job["folder"]), job["config"]
    save_endless_model(folder / "model", architecture=job["architecture"], config=config, seed=SEED)
    for tokens in job["prompt_tokens"]:
        words = {"steps": job["steps"], "prompts": job["prompts"], "vocab_size": config["vocab_size"], "seed": SEED}
        write_prompts(folder / f"prompts_{tokens}.jsonl", tokens=tokens, **words)
    return {}


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Runs this project as ``align train`` does, with a clock among the callbacks."""
    from transformers import LlamaForCausalLM  # noqa: F401  (a library of both: not part of what a run adds)

    from alignment.methods.grpo import GRPO  # noqa: F401

    os.environ["ALIGNMENT_ALLOW_TARGETS"] = "equal_inputs"
    overrides = [
        "method=grpo",
        "method/kl=none",
        "reference=none",
        f"method.rollouts.group_size={job['group']}",
        "reward=callable",
        "reward.function=equal_inputs.even_tokens",
        f"rollout.sampling.max_new_tokens={job['completion_tokens']}",
    ]
    cfg = short_config(job, job["prompts"], job["prompts_a_pass"], overrides)
    return clocked_run(cfg, Path(job["folder"]), clock="rollout_clock.LightningRolloutClock")


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """Runs TRL's trainer.

    With ``replay``, a folder, on completions of a run of ours instead of its own. With ``completions_only`` its head
    scores completions only, which without Triton it does not: one of its functions is replaced.
    """
    from equal_inputs import even_tokens
    from rollout_clock import TRLRolloutClock
    from transformers import AutoTokenizer
    from trl import GRPOTrainer  # noqa: F401  (a library: not part of what a run adds)
    from trl_peer import peer_config, peer_trainer, score_completions_only

    if job.get("completions_only"):
        score_completions_only()
    before = resident_bytes(job["device"])
    rows_a_pass = job["prompts_a_pass"] * job["group"]
    config = peer_config(
        "GRPO",
        Path(job["folder"]),
        use_cpu=job["device"] == "cpu",
        model_init_kwargs={"dtype": job["dtype"], "attn_implementation": "sdpa"},
        per_device_train_batch_size=rows_a_pass,
        gradient_accumulation_steps=job["prompts"] // job["prompts_a_pass"],
        num_generations=job["group"],
        max_completion_length=job["completion_tokens"],
        shuffle_dataset=False,
        num_train_epochs=1,
        learning_rate=LEARNING_RATE,
        max_grad_norm=CLIP,
        optim="adamw_torch_fused",
        loss_type="grpo",
        scale_rewards="group",
        beta=0.0,
        temperature=1.0,
        **job["options"],
    )
    replayed = {"rollout_func": replay(Path(job["replay"]), job["group"])} if job.get("replay") else {}
    trainer = peer_trainer(
        "GRPO",
        model=job["model"],
        tokenizer=AutoTokenizer.from_pretrained(job["model"]),
        records=Path(job["records"]),
        config=config,
        reward_funcs=even_tokens,
        **replayed,
    )
    clock = TRLRolloutClock(trainer)
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    return clock.clock.measured() | {
        "losses": {str(row["step"]): row["loss"] for row in logged},
        "gradient_norms": {str(row["step"]): row["grad_norm"] for row in logged},
        "resident_before": before,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
    }


def replay(folder: Path, group: int) -> Callable[[list[str], Any], dict[str, Any]]:
    """Returns what gives TRL's trainer the completions that a run of ours has kept.

    Args:
        folder: The other run's ``rollouts``.
        group: Completions of each prompt.
    """
    from pyarrow import parquet

    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(folder.glob("[0-9]*.parquet")):
        for row in parquet.read_table(path).to_pylist():
            found[json.loads(row["prompt"])].append(row)

    def completions(prompts: list[str], _trainer: Any) -> dict[str, Any]:
        rows = [row for prompt in prompts[::group] for row in found[prompt]]
        assert [json.loads(row["prompt"]) for row in rows] == prompts
        ids = {name: [list(row[name]) for row in rows] for name in ("prompt_ids", "completion_ids")}
        return ids | {"logprobs": None}

    return completions


def machine(job: dict[str, Any]) -> dict[str, Any]:
    """Measures what bounds decoding: bytes a second that memory gives, and operations a second of a product."""
    size, kind = MATRIX[job["device"]], {"device": job["device"], "dtype": getattr(torch, job["dtype"])}
    numbers = torch.ones(STREAM_BYTES // kind["dtype"].itemsize // size, size, **kind)
    one, other = torch.ones(size, **kind), torch.empty_like(numbers)
    left, right = torch.ones(job["rows"], size, **kind), torch.ones(size, size, **kind)
    read, copied, tall, square = (
        fastest(work)
        for work in (
            lambda: torch.mv(numbers, one),
            lambda: other.copy_(numbers),
            lambda: torch.mm(left, right),
            lambda: torch.mm(right, right),
        )
    )
    return {
        "read_bytes_per_second": STREAM_BYTES / read,
        # What is copied is read once and written once.
        "copy_bytes_per_second": 2 * STREAM_BYTES / copied,
        "operations_per_second": max(2 * job["rows"] * size**2 / tall, 2 * size**3 / square),
    }


def fastest(work: Callable[[], Any]) -> float:
    """Returns the seconds of the fastest of some calls: a bound is what the machine can do."""
    return min(timed(work)[0] for _ in range(10))


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Returns the wall and the processor seconds of a call."""
    start = now()
    work()
    end = now()
    return end[0] - start[0], end[1] - start[1]


def decode(job: dict[str, Any]) -> dict[str, Any]:
    """Times generation alone, ours and transformers' in turns: whole completions, and their first token."""
    prompts, engines = generators(job)
    engines = {name: engines[name] for name in job["rows_timed"]}
    runs: list[dict[str, Any]] = []
    for generate in engines.values():
        generate(prompts, 2)  # of warm-up
    for repeat in range(job["repeats"]):
        for name, generate in engines.items():
            found: dict[str, Any] = {"row": name, "repetition": repeat}
            for what, tokens in (("first", 1), ("whole", job["completion_tokens"])):
                found[what], lengths = written(generate, prompts, tokens)
                if lengths != [tokens] * job["prompts"] * job["group"]:
                    raise RuntimeError(f"{name} wrote {lengths} tokens, asked for {tokens}")
            runs.append(found)
    return {"runs": runs}


def uneven(job: dict[str, Any]) -> dict[str, Any]:
    """Times generation of completions that end early, each by chance: ours, and transformers' in two ways.

    One token in ``mean_tokens`` ends a completion. All draw from one distribution of lengths, not the same lengths:
    what is compared is tokens a second.
    """
    prompts, engines = generators(job, ends=job["config"]["vocab_size"] // job["mean_tokens"])
    generate = engines[job["row"]]
    runs: list[dict[str, Any]] = []
    for repeat in range(1 + job["repeats"]):
        seconds, lengths = written(generate, prompts, job["completion_tokens"])
        if repeat:
            runs.append({"seconds": seconds, "tokens": sum(lengths), "longest": max(lengths)})
    return {"runs": runs}


def written(generate: Generate, prompts: list[list[int]], tokens: int) -> tuple[tuple[float, float], list[int]]:
    """Returns wall and processor seconds of writing completions, and their lengths."""
    lengths: list[int] = []
    return timed(lambda: lengths.extend(generate(prompts, tokens))), lengths


def generators(job: dict[str, Any], *, ends: int = 0) -> tuple[list[list[int]], dict[str, Generate]]:
    """Returns a step's prompts, and by name what writes a group of completions for each.

    Args:
        job: The run's.
        ends: How many tokens end a completion; 0 leaves the one that is never written.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    lines = Path(job["records"]).read_text("utf-8").splitlines()[: job["prompts"]]
    prompts = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    stops = list(range(3, 3 + ends)) or [tokenizer.eos_token_id]

    def model() -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
        loaded.generation_config.eos_token_id = stops
        return loaded.to(job["device"]).eval()

    theirs = model()
    options: dict[str, Any] = {"group": job["group"], "stops": stops}
    return prompts, {
        "ours": our_generate(model(), tokenizer, group=job["group"]),
        "transformers": partial(their_generate, theirs, pad=tokenizer.pad_token_id, **options),
        "transformers, continuous batching": partial(
            their_continuous_batching, theirs, pad=tokenizer.pad_token_id, **options
        ),
    }


def our_generate(model: Any, tokenizer: Any, *, group: int) -> Generate:
    """Returns this project's engine as it samples for a step."""
    from alignment.models.logprob_model import LogprobModel
    from alignment.rollout.engine import EncodedPrompt
    from alignment.rollout.hf import HFEngine
    from alignment.types import Layout, Sampling

    # As a run's policy is: the layout decides which attention the model has.
    engine = HFEngine(LogprobModel(model, chunk_tokens=1024, layout=Layout.PREFIX_SHARED), tokenizer)

    def generate(prompts: list[list[int]], tokens: int) -> list[int]:
        sampling = Sampling(
            max_new_tokens=tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            stop=[],
            bad_words=[],
            num_samples=group,
            seed=SEED,
            batch_size=len(prompts) * group,
        )
        encoded = [EncodedPrompt(str(place), "", tuple(prompt)) for place, prompt in enumerate(prompts)]
        return [len(rollout.completion_ids) for rollout in engine.generate(encoded, sampling)]

    return generate


@torch.no_grad()
def their_generate(
    model: Any, prompts: list[list[int]], tokens: int, *, group: int, stops: list[int], pad: int
) -> list[int]:
    """Writes with transformers' ``generate``, as TRL calls it."""
    ids = torch.tensor([prompt for prompt in prompts for _ in range(group)], device=model.device)
    config = their_config(tokens, stops=stops, pad=pad)
    found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[:, ids.shape[1] :]
    before_end = (~torch.isin(found, torch.tensor(stops, device=found.device))).cumprod(1).sum(1)
    return (before_end + 1).clamp_max(found.shape[1]).tolist()


@torch.no_grad()
def their_continuous_batching(
    model: Any, prompts: list[list[int]], tokens: int, *, group: int, stops: list[int], pad: int
) -> list[int]:
    """Writes with transformers' continuous batching, as TRL calls it, in a cache that holds what is asked for."""
    from transformers.generation import ContinuousBatchingConfig

    ids = [prompt for prompt in prompts for _ in range(group)]
    config = their_config(tokens, stops=stops, pad=pad)
    # Its own choice would be to take most of the machine's memory for its cache.
    cache = ContinuousBatchingConfig(
        page_size=PAGE, num_blocks=sum((len(row) + tokens) // PAGE + 1 for row in ids), max_batch_tokens=BATCH_TOKENS
    )
    found = model.generate_batch(
        ids, generation_config=config, continuous_batching_config=cache, progress_bar=False
    ).values()
    lengths = [len(output.generated_tokens) for output in found]
    if len(lengths) != len(ids):
        raise RuntimeError(f"continuous batching wrote {len(lengths)} completions of {len(ids)}")
    return lengths


def their_config(tokens: int, *, stops: list[int], pad: int) -> Any:
    """Returns the settings that TRL makes for sampling."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=pad,
        eos_token_id=stops,
        disable_compile=True,
    )


SYSTEMS = {"prepare": prepare, "ours": ours, "trl": trl, "machine": machine, "decode": decode, "uneven": uneven}


if __name__ == "__main__":
    main(SYSTEMS)
