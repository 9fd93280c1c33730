"""Ten values of beta: one sweep that pays for its reference once, against runs that each pay for their own.

python benchmarks/beta_sweep.py                                    # into docs/benchmarks
python benchmarks/beta_sweep.py --shape tiny --steps 2 --betas 2 --repetitions 1 --out /tmp/out
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shapes import SHAPES, Shape, llama
from suite import Result, between, child, heading, in_turns, parser, table

#: Of final losses, relative: a cached reference is the frozen copy's, up to rounding.
TOLERANCE = 1e-4
_HALF = Shape(SHAPES["stories15M"].config, (((128, 128, 128),) * 2,), warmup=0, steps=4)
_SHAPES = {"tiny": Shape(llama(32, 2, 4, 2, 64, 128), SHAPES["tiny"].lengths, warmup=0, steps=2), "stories15M": _HALF}


@dataclass(frozen=True)
class Way:
    """A way to run all betas.

    Attributes:
        name: For the page.
        reference: The reference's strategy.
        sweep: Whether all betas are jobs of one command.
    """

    name: str
    reference: str
    sweep: bool


WAYS = (
    Way("one sweep, precomputed", "precomputed", sweep=True),
    Way("runs of their own, frozen copy", "frozen_copy", sweep=False),
    Way("runs of their own, precomputed, each with an empty cache", "precomputed", sweep=False),
    Way("one sweep, frozen copy", "frozen_copy", sweep=True),
)


def main() -> None:
    """Measures, and writes the table and the raw numbers."""
    made = parser(__doc__, repetitions=1)
    made.add_argument("--shape", choices=_SHAPES, default="stories15M")
    made.add_argument("--steps", type=int, help="of each run")
    made.add_argument("--betas", type=int, default=10, help="how many")
    args = made.parse_args()
    shape = _SHAPES[args.shape]
    betas = [round(0.05 * place, 2) for place in range(1, args.betas + 1)]
    result = Result(args, "runs")
    result["runs"], result["steps"] = [], args.steps or shape.steps
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), shape, args, steps=result["steps"])
        for repetition, way in in_turns(WAYS, args.repetitions):
            with tempfile.TemporaryDirectory(dir=folder) as own:
                overrides = run_overrides(Path(folder), shape, args)
                got = run_all(way, betas, [*overrides, f"reference={way.reference}"], Path(own))
            result["runs"].append({"way": way.name, "repetition": repetition} | got)
            print(f"{way.name} #{repetition}: {got['seconds']:.1f} s", file=sys.stderr)
            check_equal_work(result["runs"])
            result.write(args.out, "beta_sweep", page)
    print("\n".join(page(result)))


def prepare(folder: Path, shape: Shape, args: argparse.Namespace, *, steps: int) -> None:
    """Saves the weights, the tokenizer and the pairs."""
    files = {"system": "prepare", "folder": str(folder), "models": ["model"]}
    job = files | {"device": args.device, "dtype": args.dtype}
    model = {"architecture": shape.architecture, "config": shape.config}
    child("training_step_run.py", job | model | {"lengths": shape.all_lengths(steps)})


def run_overrides(folder: Path, shape: Shape, args: argparse.Namespace) -> list[str]:
    """Returns what is overridden in this project's own defaults, the same in every run."""
    on_gpu = ["hardware=single_gpu", "hardware.precision=32-true"] if args.device == "cuda" else []
    return [
        "method=dpo",
        "model=pretrained",
        f"model.path={folder}/model",
        f"model.dtype={args.dtype}",
        "data=jsonl",
        f"data.train.path={folder}/pairs.jsonl",
        "data.validation_size=0",
        f"data.batch_size={shape.pairs}",
        f"data.micro_batch_size={shape.pairs}",
        "optim.lr=1e-5",
        "trainer.log_every_n_steps=1",
        "callbacks.fresh_samples=null",
        "callbacks.checkpoint=null",
        "export=null",
        *on_gpu,
        f"hardware.threads={args.threads or 'null'}",
    ]


def run_all(way: Way, betas: list[float], overrides: list[str], folder: Path) -> dict[str, Any]:
    """Runs all betas from the command line, and returns what that took and each beta's final loss."""
    start, spent = time.perf_counter(), processor_seconds()
    if way.sweep:
        align(["-m", f"method.beta={','.join(map(str, betas))}", *overrides], folder)
    else:
        for place, beta in enumerate(betas):
            align([f"method.beta={beta}", *overrides], folder / str(place))
    seconds, cpu = time.perf_counter() - start, processor_seconds() - spent
    manifests = [json.loads(path.read_text("utf-8")) for path in folder.rglob("manifest.json")]
    caches = [path for path in folder.rglob("reference/*") if path.is_dir()]
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu, 3),
        "losses": {beta_of(found): found["metrics"]["train/loss/total"] for found in manifests},
        "caches": len(caches),
    }


def align(words: list[str], folder: Path) -> None:
    """Runs ``align train`` with runs and caches in a folder of its own.

    Raises:
        RuntimeError: It failed; the message ends with what it said.
    """
    paths = [f"paths.runs={folder}/runs", f"paths.cache={folder}/cache"]
    command = [sys.executable, "-m", "alignment.cli.main", "train", *words, *paths]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(f"align train {' '.join(words)} failed:\n{done.stderr[-4000:]}")


def beta_of(manifest: dict[str, Any]) -> str:
    """Returns the beta that a run was given."""
    return next(word.split("=")[1] for word in manifest["overrides"] if word.startswith("method.beta="))


def processor_seconds() -> float:
    """Returns the processor time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check_equal_work(runs: list[dict[str, Any]]) -> None:
    """Refuses to compare ways that trained other betas or reached other losses.

    Raises:
        RuntimeError: Naming the two.
    """
    first = runs[0]
    for run in runs[1:]:
        if run["losses"].keys() != first["losses"].keys():
            raise RuntimeError(
                f"{run['way']} trained {sorted(run['losses'])}, {first['way']} {sorted(first['losses'])}"
            )
        for beta, loss in run["losses"].items():
            if not abs(loss - first["losses"][beta]) <= TOLERANCE * abs(first["losses"][beta]):
                raise RuntimeError(f"{run['way']} and {first['way']} reached losses {loss} and {first['losses'][beta]}")


def page(result: Result) -> list[str]:
    """Writes the numbers as Markdown."""
    asked, runs = result["arguments"], result["runs"]
    about = (
        "From the first command to the end of the last one, with start-up. Runs of their own start a process each.\n"
        "All ways reached the same final loss for each beta."
    )
    lines = heading("A sweep over beta", "python benchmarks/beta_sweep.py", result, about)
    lines += [f"{asked['betas']} betas, {asked['shape']}, {result['steps']} steps a run."]
    sweep = [run for run in runs if run["way"] == WAYS[0].name]
    rows: list[str] = []
    for way in WAYS:
        found = [run for run in runs if run["way"] == way.name]
        if found:
            time_ratio, cpu_ratio = (
                between([a[what] / b[what] for a, b in zip(sweep, found, strict=False)])
                for what in ("seconds", "cpu_seconds")
            )
            seconds = between([run["seconds"] for run in found], 1)
            rows.append(f"{way.name} | {seconds} | {found[0]['caches']} | {time_ratio} | {cpu_ratio}")
    header = "way | seconds: median | range | caches | sweep / this: median | range | CPU time: median | range"
    return lines + table(header, rows)


if __name__ == "__main__":
    main()
