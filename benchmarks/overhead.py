"""What a training step of `align train` costs beyond a plain PyTorch loop over the same batches.

python benchmarks/overhead.py                                      # into docs/benchmarks
python benchmarks/overhead.py --shape tiny --steps 10 --repetitions 1 --out /tmp/out
"""

from __future__ import annotations

import argparse
from typing import Any

from shapes import SHAPES
from suite import Result, between, heading, parser, spread, table
from training_step import METHODS, Row, measure, ratios, rows_found

METHOD = "dpo_frozen_copy"
OURS, BARE = "align train", "plain loop"
ROWS = [Row(METHOD, OURS, "ours", METHODS[METHOD].ours), Row(METHOD, BARE, "bare", METHODS[METHOD].ours)]
#: Steps between two lines of metrics: this project's default.
LOG_EVERY = 10


def main() -> None:
    """Measures, and writes the table and the raw numbers."""
    made = parser(__doc__, repetitions=3)
    made.add_argument("--shape", nargs="+", choices=SHAPES, default=["1M", "stories15M"])
    made.add_argument("--steps", type=int, help="measured steps of each run; each shape has its own number")
    args = made.parse_args()
    result = Result(args, "shapes")
    for name in args.shape:
        shape = SHAPES[name]
        # At least two lines of metrics: runs are compared by them.
        steps = args.steps or max(shape.steps, 2 * LOG_EVERY - shape.warmup)
        of_shape = argparse.Namespace(**vars(args) | {"steps": steps})
        for found in measure(name, shape, ROWS, of_shape, log_every=LOG_EVERY):
            result["shapes"][name] = found
        result.write(args.out, "overhead", page)
    print("\n".join(page(result)))


def page(result: Result) -> list[str]:
    """Writes the numbers as Markdown."""
    about = (
        "DPO with a frozen copy. The plain loop has this project's model, loss, optimiser and clipping; its batches\n"
        "are made beforehand; `align train` makes them as it goes, measures, logs and watches, with its defaults."
    )
    lines = heading("What `align train` adds to a step", "python benchmarks/overhead.py", result, about)
    rows: list[str] = []
    for name, shape in result["shapes"].items():
        found = rows_found(shape["runs"], METHOD)
        middles = [f"{spread(steps_of(found[row]))[0]:.4g}" for row in (OURS, BARE)]
        times, cpu = (
            between(ratios(found[OURS], found[BARE], what), 3) for what in ("step_seconds", "step_cpu_seconds")
        )
        rows.append(f"{name} | {' | '.join(middles)} | {times} | {cpu}")
    return lines + table(f"shape | {OURS}, s | {BARE}, s | ratio: median | range | CPU time: median | range", rows)


def steps_of(runs: list[dict[str, Any]]) -> list[float]:
    """Returns the seconds of all steps of all runs."""
    return [value for run in runs for value in run["step_seconds"]]


if __name__ == "__main__":
    main()
