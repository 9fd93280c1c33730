"""A DPO training step beside TRL's, on equal work: seconds, real tokens a second, peak memory.

    python benchmarks/dpo_step.py                       # both shapes, into docs/benchmarks
    python benchmarks/dpo_step.py --shape tiny --steps 2 --repetitions 1 --out /tmp/out

This process only starts others, one for each measured run, and imports nothing heavy: a child's peak memory would begin
with its parent's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from machine import environment, load_average

HERE = Path(__file__).resolve().parent
PACKAGES = ("torch", "lightning", "transformers", "trl", "accelerate", "tokenizers", "datasets", "numpy")
GIB = 2**30
#: Bytes a weight of what training holds in fp32: the gradient and AdamW's two moments.
TRAINING_BYTES = 12
#: Equal work gives equal losses, up to rounding that a few updates carry on.
LOSS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Shape:
    """A model and the pairs that it is trained on.

    Attributes:
        config: Of a Llama.
        lengths: Tokens of prompt, chosen and rejected of each pair of a batch; every batch has the same.
        warmup: Steps that are not counted, at least 1.
        steps: Steps that are.
    """

    config: dict[str, Any]
    lengths: tuple[tuple[int, int, int], ...]
    warmup: int
    steps: int

    @property
    def real_tokens(self) -> int:
        """Tokens of a step that are no padding; a prompt counts once with each of its completions."""
        return sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in self.lengths)

    @property
    def padded_tokens(self) -> int:
        """Places of a step's rows."""
        return 2 * len(self.lengths) * max(prompt + max(sides) for prompt, *sides in self.lengths)


def llama(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int) -> dict[str, Any]:
    """Returns the fields of a Llama's configuration, with a tied head."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }


SHAPES = {
    "tiny": Shape(llama(32, 2, 4, 2, 64, 128), ((5, 9, 4), (3, 4, 12), (8, 6, 6), (2, 5, 3)), warmup=1, steps=4),
    "stories15M": Shape(llama(288, 6, 6, 6, 768, 32_000), ((128, 128, 128),) * 4, warmup=2, steps=6),
    # The shape of SmolLM2-135M; lengths uneven as in dialogue, with means of 128.
    "135M": Shape(
        llama(576, 30, 9, 3, 1536, 49_152),
        ((64, 200, 96), (96, 64, 160), (160, 128, 48), (192, 148, 180)),
        warmup=1,
        steps=3,
    ),
}


@dataclass(frozen=True)
class Row:
    """A line of the table: a system and where its reference log-probs come from."""

    name: str
    system: str
    precomputed: bool


ROWS = (
    Row("TRL, frozen copy", "trl", precomputed=False),
    Row("ours, frozen copy", "ours", precomputed=False),
    Row("TRL, precomputed", "trl", precomputed=True),
    Row("ours, precomputed", "ours", precomputed=True),
)


def main() -> None:
    """Measures, and writes the table and the raw numbers."""
    args = arguments()
    start = time.time()
    result: dict[str, Any] = {"environment": environment(PACKAGES), "repetitions": args.repetitions, "shapes": {}}
    for name in args.shape:
        result["shapes"][name] = measure(name, args)
        result["minutes"] = round((time.time() - start) / 60, 1)
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "dpo_step.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (args.out / "dpo_step.md").write_text(page(result), encoding="utf-8")
    print(page(result))


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["stories15M", "135M"])
    parser.add_argument("--steps", type=int, help="measured steps of each run; each shape has its own number")
    parser.add_argument("--repetitions", type=int, default=3, help="how often all rows are measured, in turns")
    parser.add_argument("--threads", type=int, help="of each run; torch's own choice if not given")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks")
    return parser.parse_args()


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures all rows of a shape in alternating repetitions."""
    shape = SHAPES[name]
    steps = args.steps or shape.steps
    with tempfile.TemporaryDirectory() as folder:
        shared = {"model": f"{folder}/model", "pairs": f"{folder}/pairs.jsonl", "batch": len(shape.lengths)}
        lengths = shape.lengths * (shape.warmup + steps)
        child({"system": "prepare", "config": shape.config, "lengths": lengths, **shared})
        runs: list[dict[str, Any]] = []
        for repetition in range(args.repetitions):
            # Forwards, then backwards: a slow drift of the machine hits all rows alike.
            for row in ROWS if repetition % 2 == 0 else ROWS[::-1]:
                job = {
                    "system": row.system,
                    "precomputed": row.precomputed,
                    "threads": args.threads,
                    **shared,
                }
                load = load_average()
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    got = child(job | {"folder": own})
                runs.append({"row": row.name, "repetition": repetition, "load_before": load} | kept(got, shape))
                print(f"{name} {row.name} #{repetition}: {median(runs[-1]['step_seconds']):.3f} s", file=sys.stderr)
    check_equal_work(runs)
    facts = {"real_tokens": shape.real_tokens, "padded_tokens": shape.padded_tokens, "steps": steps}
    return asdict(shape) | facts | {"runs": runs}


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Runs a job in a process of its own and returns what it printed last."""
    command = [sys.executable, str(HERE / "dpo_step_run.py"), json.dumps(job)]
    # As `align train` sets it: threads that wait for one another sleep, so that a busy machine costs both the same.
    passive = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=passive)
    if done.returncode:
        raise RuntimeError(f"{job['system']} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def kept(got: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """Returns what is published of a run."""
    steps = list(pairwise(got.pop("ends")))[shape.warmup - 1 :]
    state = got["parameters"] * (4 * got["models"] + TRAINING_BYTES)
    wall, processor = ([round(later[i] - earlier[i], 5) for earlier, later in steps] for i in (0, 1))
    return {"step_seconds": wall, "step_cpu_seconds": processor, "state_bytes": state} | got


def check_equal_work(runs: list[dict[str, Any]]) -> None:
    """Refuses a comparison in which the systems did not see the same tokens and reach the same losses."""
    first = runs[0]
    for run in runs[1:]:
        if run["digest"] != first["digest"]:
            raise RuntimeError(f"{run['row']} was trained on other tokens than {first['row']}")
        for mine, theirs in zip(run["losses"], first["losses"], strict=True):
            if abs(mine - theirs) > LOSS_TOLERANCE * abs(theirs):
                raise RuntimeError(f"{run['row']} reached losses {run['losses']}, {first['row']} {first['losses']}")


def page(result: dict[str, Any]) -> str:
    """Writes the numbers as Markdown."""
    env = result["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items())
    lines = [
        "# A DPO training step beside TRL's",
        "",
        "Made by `python benchmarks/dpo_step.py`; benchmarks/README.md says what it measures and how, dpo_step.json",
        "has every step. On a CPU TRL's head scores every position, on a GPU completions only: the ratio is a CPU's.",
        "",
        f"{env['cpu']}, {env['cores']} cores, {env['memory_gib']} GiB, {env['system']}, fp32. Python {env['python']},",
        f"{versions}.",
        f"{result['repetitions']} alternating repetitions, {result['minutes']} minutes in all.",
    ]
    for name, shape in result["shapes"].items():
        lines += ["", *section(name, shape)]
    return "\n".join(lines) + "\n"


def section(name: str, shape: dict[str, Any]) -> list[str]:
    """Writes a shape's table."""
    rows = {row.name: [run for run in shape["runs"] if run["row"] == row.name] for row in ROWS}
    loads = [run["load_before"] for run in shape["runs"]]
    parameters = shape["runs"][0]["parameters"] / 1e6
    lines = [
        f"## {name}",
        "",
        f"{parameters:.1f}M parameters, {len(shape['lengths'])} pairs a step with {shape['real_tokens']} real tokens",
        f"({shape['padded_tokens']} with padding), {shape['steps']} measured steps a run after {shape['warmup']} of",
        f"warm-up, {shape['runs'][0]['threads']} threads. Load before the runs: {min(loads)} to {max(loads)}.",
        "",
        "| | step, s: median | quartiles | range | CPU s | real tokens/s | peak, GiB | weights and AdamW | the rest |",
        "|---|---|---|---|---|---|---|---|---|",
        *(table_line(row, runs, shape["real_tokens"]) for row, runs in rows.items()),
        "",
        "| time of ours / time of TRL's | median of repetitions | range | CPU time: median | range |",
        "|---|---|---|---|---|",
    ]
    for ours, trl in (("ours, frozen copy", "TRL, frozen copy"), ("ours, precomputed", "TRL, precomputed")):
        found = (ratios(rows[ours], rows[trl], what) for what in ("step_seconds", "step_cpu_seconds"))
        cells = (f"{median(values):.2f} | {min(values):.2f} to {max(values):.2f}" for values in found)
        lines.append(f"| {ours.split(', ')[1]} | {' | '.join(cells)} |")
    return lines


def table_line(name: str, runs: list[dict[str, Any]], real_tokens: int) -> str:
    """Writes a row: steps of all repetitions together, and the largest of the peaks."""
    seconds = sorted(value for run in runs for value in run["step_seconds"])
    low, middle, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    cpu = median(value for run in runs for value in run["step_cpu_seconds"])
    peak, state = max(run["peak_bytes"] for run in runs) / GIB, runs[0]["state_bytes"] / GIB
    return (
        f"| {name} | {middle:.3f} | {low:.3f} to {high:.3f} | {seconds[0]:.3f} to {seconds[-1]:.3f} "
        f"| {cpu:.3f} | {real_tokens / middle:,.0f} | {peak:.2f} | {state:.2f} | {peak - state:.2f} |"
    )


def ratios(ours: list[dict[str, Any]], trl: list[dict[str, Any]], what: str) -> list[float]:
    """Returns the ratio of medians of each repetition."""
    return [median(a[what]) / median(b[what]) for a, b in zip(ours, trl, strict=True)]


if __name__ == "__main__":
    main()
