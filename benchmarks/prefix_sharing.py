"""What holding a prompt once for all of its completions saves: packed rows against prefix-shared ones.

python benchmarks/prefix_sharing.py                                # into docs/benchmarks
python benchmarks/prefix_sharing.py --prompts 1 --group 8 --name prefix_sharing_groups
python benchmarks/prefix_sharing.py --shape tiny --repetitions 1 --out /tmp/out
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from statistics import median
from typing import get_args

import torch
from shapes import SHAPES
from suite import Result, between, heading, in_turns, parser, table
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.data.collate import TokenSequence, token_batch
from alignment.models.kernels import Kernel
from alignment.models.logprob_model import LogprobModel
from alignment.types import Layout, TokenBatch

RATIOS = ("1/4", "1", "2", "4", "8")
LAYOUTS = (Layout.PACKED, Layout.PREFIX_SHARED)
#: Of log-probs in nats, relative to their size: the layouts differ in rounding only.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def main() -> None:
    """Measures, and writes the table and the raw numbers."""
    made = parser(__doc__, repetitions=5)
    made.add_argument("--shape", choices=SHAPES, default="stories15M")
    made.add_argument("--completion", type=int, default=128, help="tokens of each completion")
    made.add_argument("--prompts", type=int, default=2)
    made.add_argument("--group", type=int, default=2, help="completions of a prompt: 2 are a pair")
    made.add_argument("--kernel", choices=get_args(Kernel), default="sdpa", help="of a row's attention, on a GPU")
    made.add_argument("--cudnn", action="store_true", help="let sdpa take cuDNN's kernel, as no run does")
    made.add_argument("--name", default="prefix_sharing", help="of the two files")
    args = made.parse_args()
    set_up_torch(args)
    torch.backends.cuda.enable_cudnn_sdp(args.cudnn)
    shape = SHAPES[args.shape]
    torch.manual_seed(1)
    config = AutoConfig.for_model(shape.architecture, **(shape.config | {"max_position_embeddings": 16384}))
    backbone = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype))
    model = LogprobModel(backbone.to(args.device), chunk_tokens=1024, layout=Layout.PREFIX_SHARED, kernel=args.kernel)
    result = Result(args, "ratios")
    for ratio in RATIOS:
        prompt = max(1, round(Fraction(ratio) * args.completion))
        lengths = (prompt, *[args.completion] * args.group)
        batches = group_batches(args.prompts, lengths, vocab=shape.config["vocab_size"], device=args.device)
        check_equal(model, batches, tolerance=TOLERANCE[args.dtype])
        result["ratios"][ratio] = {"prompt": prompt, "runs": measure(model, batches, args.repetitions)}
        result.write(args.out, args.name, page)
        print(f"prompt/completion {ratio}", file=sys.stderr)
    print("\n".join(page(result)))


def set_up_torch(args: argparse.Namespace) -> None:
    """Sets threads and kernels as ``align train`` does."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cuda.enable_cudnn_sdp(False)


def group_batches(prompts: int, lengths: tuple[int, ...], *, vocab: int, device: str) -> dict[Layout, TokenBatch]:
    """Returns the same prompts and completions in both layouts.

    Args:
        prompts: How many.
        lengths: Tokens of a prompt and of each of its completions.
        vocab: Tokens to draw from.
        device: Where they go.
    """
    draw = random.Random(1)
    prompt, *sides = lengths
    words = [[draw.randrange(3, vocab) for _ in range(prompt)] for _ in range(prompts)]
    sequences = [TokenSequence(ids, [draw.randrange(3, vocab) for _ in range(side)]) for side in sides for ids in words]
    return {layout: token_batch(sequences, pad_id=0, layout=layout).to(device) for layout in LAYOUTS}


def check_equal(model: LogprobModel, batches: dict[Layout, TokenBatch], *, tolerance: float) -> None:
    """Refuses to compare layouts that give different log-probs.

    Raises:
        RuntimeError: With the largest difference.
    """
    with torch.no_grad():
        packed, shared = (model(batches[layout]).token_logps for layout in LAYOUTS)
    error = ((packed - shared).abs() / packed.abs()).max().item()
    if not error <= tolerance:
        raise RuntimeError(f"the layouts' log-probs differ by {error:.2g} of their size")


def without_head(model: LogprobModel, batch: TokenBatch) -> Tensor:
    """Runs the trunk alone; squares, because the gradient of a sum would be the same for every place."""
    return model.last_hidden(batch)[batch.predictor_index].float().square().sum()


def with_head(model: LogprobModel, batch: TokenBatch) -> Tensor:
    """Runs the whole log-prob path."""
    return model(batch).token_logps.sum()


PARTS: dict[str, Callable[[LogprobModel, TokenBatch], Tensor]] = {"trunk": without_head, "trunk and head": with_head}


def measure(
    model: LogprobModel, batches: dict[Layout, TokenBatch], repetitions: int
) -> dict[str, dict[str, list[float]]]:
    """Returns seconds of forward and backward passes, by part of the path and layout, after one of warm-up each."""
    runs: dict[str, dict[str, list[float]]] = {part: {layout: [] for layout in LAYOUTS} for part in PARTS}
    todo = [(part, layout) for part in PARTS for layout in LAYOUTS]
    for repetition, (part, layout) in in_turns(todo, 1 + repetitions):
        model.zero_grad()
        start = now(model)
        PARTS[part](model, batches[layout]).backward()
        if repetition:
            runs[part][layout].append(now(model) - start)
    return runs


def now(model: LogprobModel) -> float:
    """Returns the time in seconds, when the device is done."""
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def bound(prompt: int, completion: int, group: int) -> float:
    """Returns how many times fewer tokens a prompt with G completions has when it is held once: (Gr + G) / (r + G).

    Args:
        prompt: Tokens of the prompt, r times as many as a completion has.
        completion: Tokens of each completion.
        group: Completions, G.

    >>> bound(128, 128, 2), bound(128, 128, 8)
    (1.3333333333333333, 1.7777777777777777)
    """
    return group * (prompt + completion) / (prompt + group * completion)


def page(result: Result) -> list[str]:
    """Writes the numbers as Markdown."""
    asked = result["arguments"]
    about = (
        "Forward and backward passes of the log-prob path over the same sequences, each with a prompt of its own\n"
        "(packed) or the prompt once for all completions (prefix_shared). The bound is the ratio of tokens; the head\n"
        "scores the completions' tokens in both, which no sharing saves."
    )
    lines = heading("Sharing a prompt", "python benchmarks/prefix_sharing.py", result, about)
    kernel = asked["kernel"] + (" with cuDNN's kernels" if asked["cudnn"] else "")
    lines += [f"{asked['shape']}, attention by {kernel}, {asked['prompts']} prompts with {asked['group']} completions"]
    lines += [f"of {asked['completion']} tokens each, median of {asked['repetitions']} repetitions."]
    rows: list[str] = []
    for ratio, found in result["ratios"].items():
        most = bound(found["prompt"], asked["completion"], asked["group"])
        for part, runs in found["runs"].items():
            packed, shared = (runs[layout] for layout in LAYOUTS)
            gains = [a / b for a, b in zip(packed, shared, strict=True)]
            times = f"{median(packed):.4g} | {median(shared):.4g}"
            rows.append(f"{ratio} | {part} | {times} | {between(gains)} | {most:.2f} | {median(gains) / most:.0%}")
    header = (
        "prompt/completion | measured | packed, s | prefix_shared, s | speed-up: median | range | bound | share of it"
    )
    return lines + table(header, rows)


if __name__ == "__main__":
    main()
