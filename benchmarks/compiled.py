"""What torch.compile is worth: forward and backward passes over batches of many lengths, compiled and not.

python benchmarks/compiled.py                                     # into docs/benchmarks
python benchmarks/compiled.py --shape tiny --steps 2 --repetitions 1 --out /tmp/out
"""

from __future__ import annotations

import argparse
import copy
import random
import sys
import time
from statistics import median

import torch
from prefix_sharing import now, set_up_torch, with_head
from shapes import SHAPES
from suite import Result, between, heading, parser, table
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.data.collate import TokenSequence, token_batch
from alignment.models.logprob_model import LogprobModel
from alignment.types import Layout, TokenBatch

LAYOUTS = (Layout.PADDED, Layout.PREFIX_SHARED)


def main() -> None:
    """Measures, and writes the table and the raw numbers."""
    made = parser(__doc__, repetitions=3)
    made.add_argument("--shape", choices=SHAPES, default="stories15M")
    made.add_argument("--steps", type=int, default=6, help="batches, each with lengths of its own")
    made.add_argument("--longest", type=int, default=128, help="tokens of a prompt or a completion at most")
    made.add_argument("--name", default="compiled", help="of the two files")
    args = made.parse_args()
    set_up_torch(args)
    shape = SHAPES[args.shape]
    torch.manual_seed(1)
    config = AutoConfig.for_model(shape.architecture, **(shape.config | {"max_position_embeddings": 4096}))
    backbone = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype)).to(args.device)
    result = Result(args, "layouts")
    for layout in LAYOUTS:
        result["layouts"][layout] = measure(backbone, layout, args)
        result.write(args.out, args.name, page)
        print(layout, file=sys.stderr)
    print("\n".join(page(result)))


def measure(backbone: torch.nn.Module, layout: Layout, args: argparse.Namespace) -> dict[str, object]:
    """Returns seconds of a pass over each batch, plain and compiled, and what compiling took.

    Raises:
        RuntimeError: The two give other log-probs.
    """
    vocab = SHAPES[args.shape].config["vocab_size"]
    batches = [pairs(number, layout, vocab=vocab, args=args) for number in range(args.steps)]
    torch._dynamo.reset()
    counters.clear()
    models = {
        name: LogprobModel(copy.deepcopy(backbone), chunk_tokens=1024, layout=layout) for name in ("plain", "compiled")
    }
    models["compiled"].hf_model.base_model.compile(dynamic=True)
    first: dict[str, float] = {}
    for name, model in models.items():
        begin = time.perf_counter()
        for batch in batches:
            passed(model, batch)
        first[name] = time.perf_counter() - begin
    graphs = counters["stats"]["unique_graphs"]
    # With gradients, as above: without them it would be another graph to compile.
    plain, compiled = (model(batches[0]).token_logps.detach() for model in models.values())
    if not torch.allclose(plain, compiled, rtol=1e-2, atol=1e-2):
        raise RuntimeError(f"{layout}: log-probs differ by {(plain - compiled).abs().max():.2g} nats")
    runs: dict[str, list[float]] = {name: [] for name in models}
    for repetition in range(args.repetitions):
        for number, batch in enumerate(batches):
            for name in list(models)[:: 1 if (repetition + number) % 2 else -1]:
                runs[name].append(passed(models[name], batch))
    return {"first_pass": first, "graphs": graphs, "runs": runs}


def pairs(seed: int, layout: Layout, *, vocab: int, args: argparse.Namespace) -> TokenBatch:
    """Returns four pairs whose lengths no other batch has."""
    draw = random.Random(seed)

    def some() -> list[int]:
        return [draw.randrange(3, vocab) for _ in range(draw.randint(args.longest // 4, args.longest))]

    prompts = [some() for _ in range(4)]
    sequences = [TokenSequence(prompt, some()) for _ in range(2) for prompt in prompts]
    return token_batch(sequences, pad_id=0, layout=layout).to(args.device)


def passed(model: LogprobModel, batch: TokenBatch) -> float:
    """Runs a forward and a backward pass and returns its seconds."""
    model.zero_grad()
    start = now(model)
    with_head(model, batch).backward()
    return now(model) - start


def page(result: Result) -> list[str]:
    """Writes the numbers as Markdown."""
    asked = result["arguments"]
    about = (
        "Forward and backward passes of the log-prob path over batches that all have other lengths; the head is never\n"
        "compiled. Graphs are those that torch.compile made for all of them."
    )
    lines = heading("Compiling the decoder", "python benchmarks/compiled.py", result, about)
    lines += [f"{asked['shape']}, 4 pairs a batch of at most {asked['longest']} + {asked['longest']} tokens,"]
    lines += [f"{asked['steps']} batches, {asked['repetitions']} repetitions, in turns."]
    rows: list[str] = []
    for layout, found in result["layouts"].items():
        plain, compiled = found["runs"]["plain"], found["runs"]["compiled"]
        gains = [a / b for a, b in zip(plain, compiled, strict=True)]
        extra = found["first_pass"]["compiled"] - found["first_pass"]["plain"]
        times = f"{median(plain):.4g} | {median(compiled):.4g}"
        rows.append(f"{layout} | {times} | {between(gains)} | {extra:.0f} | {found['graphs']}")
    return lines + table("layout | plain, s | compiled, s | speed-up: median | range | compiling, s | graphs", rows)


if __name__ == "__main__":
    main()
