"""A step of GRPO beside TRL's with its transformers generation: seconds, what they go into, memory, decoding speed.

python benchmarks/grpo_step.py                                     # into docs/benchmarks
python benchmarks/grpo_step.py --quick --out /tmp/out
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from shapes import SHAPES
from suite import CHANGED, GIB, Result, between, child, heading, in_turns, parser, spread, table

SCRIPT = "grpo_run.py"
GROUP = 8
#: Tokens of a prompt and of a completion.
CELLS = ((64, 64), (512, 64), (64, 256))
QUICK_CELLS = ((8, 6), (24, 6), (8, 16))
#: Steps that are not counted.
WARMUP = 1
#: Of norms of gradients on the same completions, relative: TRL adds 1e-4 to the std of a group's rewards.
TOLERANCE = {"float32": 1e-2, "bfloat16": 1e-1}
#: What a GPU's kernels save TRL is here saved by a change to it.
ENGINES = ("ours", "transformers", "transformers, continuous batching")
#: A share of the step: what it is called here, and what that is.
PHASES = {
    "write": "sampling and decoding to text",
    "judge": "rewards, advantages, keeping them",
    "update": "log-probs, loss, gradients, AdamW",
}


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        name: For the page.
        system: ``ours`` or ``trl``.
        prompts_a_pass: Whose completions are in one forward and backward pass.
        completions_only: Whether TRL's head is made to score completions only.
        options: Of TRL's configuration.
    """

    name: str
    system: str
    prompts_a_pass: int
    completions_only: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def rows_of(passes: list[int], *, continuous: bool) -> list[Row]:
    """Returns the lines that are measured.

    Args:
        passes: Prompts whose completions are in one pass.
        continuous: Whether TRL with continuous batching is one.
    """
    rows: list[Row] = []
    for size in passes:
        what = f"{size * GROUP} a pass"
        rows.append(Row(f"TRL, {what}", "trl", size))
        rows.append(Row(f"{CHANGED}, {what}", "trl", size, completions_only=True))
        if continuous:
            options = {"use_transformers_continuous_batching": True}
            rows.append(Row(f"TRL, continuous batching, {what}", "trl", size, options=options))
        rows.append(Row(f"ours, {what}", "ours", size))
    return rows


def main() -> None:
    """Measures, and writes the tables and the raw numbers."""
    args = arguments()
    shape = SHAPES["tiny" if args.quick else "stories15M"]
    cells = [tuple(cell) for cell in args.cells] if args.cells else list(QUICK_CELLS if args.quick else CELLS)
    steps = WARMUP + (args.steps or (1 if args.quick else 3))
    result = Result(args, "cells")
    job = {"device": args.device, "dtype": args.dtype, "threads": args.threads, "group": GROUP, "prompts": args.prompts}
    result["shape"] = {"config": shape.config, "parameters": parameters(shape.config)}
    result["steps"] = steps - WARMUP
    with tempfile.TemporaryDirectory() as folder:
        files = {"system": "prepare", "folder": folder, "prompt_tokens": sorted({prompt for prompt, _ in cells})}
        model = {"architecture": shape.architecture, "config": shape.config, "model": f"{folder}/model"}
        child(SCRIPT, job | files | model | {"steps": steps})
        job |= model
        result["machine"] = child(SCRIPT, job | {"system": "machine", "rows": GROUP * args.prompts})
        result["uneven"] = uneven(job, cells[-1], folder) if args.uneven else {}
        for prompt, completion in cells:
            at = {"records": f"{folder}/prompts_{prompt}.jsonl", "completion_tokens": completion}
            found: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion, "runs": []}
            result["cells"][f"{prompt}, {completion}"] = found
            found["decode"] = child(
                SCRIPT, job | at | {"system": "decode", "repeats": args.repetitions, "rows_timed": ENGINES[:2]}
            )["runs"]
            found["equal_work"] = check_equal_updates(job | at, Path(folder))
            measure(found, rows_of(args.passes, continuous=args.continuous), job | at, args, Path(folder))
            result.write(args.out, args.name, page)
    print("\n".join(page(result)))


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    made = parser(__doc__, repetitions=3)
    made.add_argument("--quick", action="store_true", help="a tiny model and short texts, to see that it runs")
    made.add_argument("--cells", nargs="+", type=_cell, help="prompt and completion tokens, for example 64,256")
    made.add_argument("--prompts", type=int, default=4, help=f"of a step, each with {GROUP} completions")
    made.add_argument("--passes", nargs="+", type=int, default=[1], help="prompts in one forward and backward pass")
    made.add_argument("--steps", type=int, help="measured steps of each run")
    made.add_argument("--continuous", action="store_true", help="measure TRL with continuous batching too")
    made.add_argument("--no-uneven", dest="uneven", action="store_false", help="without completions of uneven lengths")
    made.add_argument("--name", default="grpo_step", help="of the two files")
    return made.parse_args()


def _cell(text: str) -> tuple[int, int]:
    prompt, completion = map(int, text.split(","))
    return prompt, completion


def measure(
    found: dict[str, Any], rows: list[Row], job: dict[str, Any], args: argparse.Namespace, folder: Path
) -> None:
    """Adds the runs of a cell, all rows in turns.

    Raises:
        RuntimeError: If a run failed, or if the systems had not the same prompts and lengths of completions.
    """
    for repetition, row in in_turns(rows, args.repetitions):
        with tempfile.TemporaryDirectory(dir=folder) as own:
            what = ("prompts_a_pass", "completions_only", "options")
            options = {name: getattr(row, name) for name in what}
            got = child(SCRIPT, job | {"system": row.system, "folder": own} | options)
        found["runs"].append({"row": row.name, "repetition": repetition} | kept(got))
        check_equal_work(found["runs"])
        middle = median(found["runs"][-1]["step_seconds"])
        cell = f"{found['prompt_tokens']}, {found['completion_tokens']}"
        print(f"{cell}, {row.name} #{repetition}: {middle:.3f} s", file=sys.stderr)


def kept(got: dict[str, Any]) -> dict[str, Any]:
    """Returns what is published of a run: wall and processor seconds of each step, whole and of each phase."""
    ends, spent = got.pop("ends"), got.pop("spent")
    made: dict[str, Any] = {}
    for place, clock in enumerate(("seconds", "cpu_seconds")):
        steps = [later[place] - earlier[place] for earlier, later in pairwise(ends)]
        writes = [later[place] - earlier[place] for earlier, later in pairwise(spent)]
        collects = [later[2 + place] - earlier[2 + place] for earlier, later in pairwise(spent)]
        parts = {
            "step": steps,
            "write": writes,
            "judge": [both - write for both, write in zip(collects, writes, strict=True)],
            "update": [step - both for step, both in zip(steps, collects, strict=True)],
        }
        made |= {f"{name}_{clock}": [round(value, 6) for value in values] for name, values in parts.items()}
    return made | got


def check_equal_work(runs: list[dict[str, Any]]) -> None:
    """Refuses a comparison in which the systems had other prompts, or completions of other lengths.

    Raises:
        RuntimeError: Naming the two.
    """
    for run in runs[1:]:
        if run["digest"] != runs[0]["digest"]:
            raise RuntimeError(f"{run['row']} and {runs[0]['row']} had other prompts, or completions of other lengths")


def check_equal_updates(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Has TRL train on the completions of a run of ours, and refuses a comparison if it learns something else.

    Raises:
        RuntimeError: With both systems' norms.
    """
    a_pass = {"prompts_a_pass": 1, "options": {}}
    with tempfile.TemporaryDirectory(dir=folder) as own, tempfile.TemporaryDirectory(dir=folder) as its:
        # A step, and another after the first update.
        lines = Path(job["records"]).read_text("utf-8").splitlines(keepends=True)[: 2 * job["prompts"]]
        few = Path(own) / "few.jsonl"
        few.write_text("".join(lines), "utf-8")
        job = job | {"records": str(few)}
        ours = child(SCRIPT, job | a_pass | {"system": "ours", "folder": own})
        replay = {"system": "trl", "folder": its, "replay": f"{own}/run/rollouts"}
        theirs = child(SCRIPT, job | a_pass | replay)
    mine, others = ours["gradient_norms"], theirs["gradient_norms"]
    same = mine.keys() == others.keys() and len(mine) > 0 and min(mine.values()) > 0
    if not same or not all(abs(mine[step] - others[step]) <= TOLERANCE[job["dtype"]] * others[step] for step in mine):
        raise RuntimeError(f"on the same completions the gradients' norms are {mine} here and {others} in TRL")
    return {"ours": mine, "trl": others}


def uneven(job: dict[str, Any], cell: tuple[int, ...], folder: str) -> dict[str, Any]:
    """Measures generation of completions that end by chance, each way in a process of its own."""
    prompt, completion = cell
    at = {"records": f"{folder}/prompts_{prompt}.jsonl", "completion_tokens": completion}
    # Half as many tokens as there is room for, on average; chance keeps one in seven going to the end.
    what = {"system": "uneven", "mean_tokens": max(2, completion // 2), "repeats": 3}
    found: dict[str, Any] = {}
    for row in ENGINES:
        try:
            found[row] = child(SCRIPT, job | at | what | {"row": row})
        except RuntimeError as error:
            if row == "ours":
                raise
            found[row] = {"error": str(error).strip().splitlines()[-1][:300]}
        print(f"uneven, {row}", file=sys.stderr)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "mean_tokens": what["mean_tokens"], "rows": found}


def parameters(config: dict[str, Any]) -> int:
    """Counts the weights of a Llama with a tied head."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    shared = 2 * hidden * hidden * (1 + config["num_key_value_heads"] / config["num_attention_heads"])
    block = shared + 3 * hidden * config["intermediate_size"] + 2 * hidden
    return int(layers * block + hidden + hidden * config["vocab_size"])


@dataclass(frozen=True)
class Bound:
    """The fastest that a machine could decode.

    Attributes:
        tokens_per_second: Of all rows together.
        by: What holds it, ``memory`` or ``arithmetic``.
    """

    tokens_per_second: float
    by: str


def decode_bound(
    config: dict[str, Any],
    *,
    rows: int,
    prompt: int,
    completion: int,
    bytes_a_number: int,
    bytes_per_second: float,
    operations_per_second: float,
) -> Bound:
    """Bounds the tokens a second of decoding after the first token, by what a step must at least read and compute.

    A step reads each weight once and each row's keys and values once; a weight costs two operations a row, a pair of
    tokens two for each of attention's two products. The slower of the two is the bound.

    Args:
        config: As :func:`shapes.llama` makes it.
        rows: Completions that are decoded together.
        prompt: Tokens of each prompt.
        completion: Tokens of each completion.
        bytes_a_number: Of weights, keys and values.
        bytes_per_second: That memory gives.
        operations_per_second: Of a matrix product.
    """
    # Of the steps that give tokens 2, 3, ...: they see the prompt and 1, 2, ... tokens, their own included.
    context = prompt + completion / 2
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    key_values = 2 * layers * hidden * config["num_key_value_heads"] / config["num_attention_heads"]
    numbers = parameters(config) + rows * context * key_values
    operations = rows * (2 * parameters(config) + 4 * layers * hidden * context)
    times = {
        "memory": numbers * bytes_a_number / bytes_per_second,
        "arithmetic": operations / operations_per_second,
    }
    by = max(times, key=lambda name: times[name])
    return Bound(rows / times[by], by)


def page(result: Result) -> list[str]:
    """Writes the numbers as Markdown."""
    asked, shape = result["arguments"], result["shape"]
    about = (
        "Both had the same prompts and wrote completions of the same lengths; on the same completions their gradients\n"
        "had the same norms. On a CPU the head of TRL's GRPO scores every position, on a GPU completions only."
    )
    threads = next((run["threads"] for found in result["cells"].values() for run in found["runs"]), None)
    lines = heading("A step of GRPO beside TRL's", "python benchmarks/grpo_step.py", result, about)
    lines += [
        f"{shape['parameters'] / 1e6:.1f}M parameters, {asked['prompts']} prompts a step, {GROUP} completions each,",
        f"{result['steps']} measured steps a run after {WARMUP} of warm-up, {asked['repetitions']} alternating",
        f"repetitions, {threads} threads.",
        *steps_section(result["cells"]),
        *decode_section(result),
    ]
    return lines + (uneven_section(result["uneven"]) if result["uneven"] else [])


def steps_section(cells: dict[str, Any]) -> list[str]:
    """Writes the tables of steps, and of ratios."""
    lines = [
        "",
        "## Steps",
        "",
        "The parts are shares of the step's seconds: " + "; ".join(f"{n}: {what}" for n, what in PHASES.items()) + ".",
        "Peak is the process's largest resident set less what it held before anything was loaded but libraries; on a",
        "GPU the most that tensors held.",
    ]
    rows: list[str] = []
    ratios: list[str] = []
    for cell, found in cells.items():
        groups = rows_found(found["runs"])
        rows += [cells_of(cell, name, runs) for name, runs in groups.items()]
        ratios += ratio_lines(cell, groups)
    header = "prompt, completion | row | step, s: median | quartiles | CPU s"
    lines += table(f"{header} | {' | '.join(PHASES)} | peak, GiB", rows)
    header = "prompt, completion | row | beside | its time / ours | range | CPU time | range | write | update"
    lines += ["", "Beside the fastest row of TRL's, by processor time.", *table(f"{header} | peak, ours / its", ratios)]
    return lines


def rows_found(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the runs of each row, in the order of their repetitions."""
    names = sorted({run["row"] for run in runs}, key=lambda name: ("TRL" not in name, name[0] != "T", name))
    return {name: sorted((r for r in runs if r["row"] == name), key=lambda r: r["repetition"]) for name in names}


def every(runs: list[dict[str, Any]], what: str) -> list[float]:
    """Returns a measurement of all steps of all runs."""
    return [value for run in runs for value in run[what]]


def above_start(runs: list[dict[str, Any]]) -> float:
    """Returns the largest peak above the start, in GiB; a GPU holds no libraries, and its start is 0."""
    return max(run["peak_bytes"] - run["resident_before"] for run in runs) / GIB


def cells_of(cell: str, name: str, runs: list[dict[str, Any]]) -> str:
    """Writes a row of the steps."""
    middle, low, high = spread(every(runs, "step_seconds"))
    whole = sum(every(runs, "step_seconds"))
    shares = " | ".join(f"{sum(every(runs, f'{phase}_seconds')) / whole:.0%}" for phase in PHASES)
    cpu = median(every(runs, "step_cpu_seconds"))
    return f"{cell} | {name} | {middle:.4g} | {low:.4g} to {high:.4g} | {cpu:.4g} | {shares} | {above_start(runs):.2f}"


def ratio_lines(cell: str, groups: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Writes each row of ours beside the fastest of TRL's as it is, and of TRL's as it was changed.

    Of each repetition it is the ratio of medians over steps; the table has the median and the range over repetitions.
    """
    lines: list[str] = []
    for beside in ("TRL", CHANGED):
        peers = [runs for name, runs in groups.items() if name.startswith(f"{beside},")]
        mine = {name: runs for name, runs in groups.items() if name.startswith("ours,")}
        if peers and mine:
            fastest = min(peers, key=lambda runs: median(every(runs, "step_cpu_seconds")))
            lines += [f"{cell} | {name} | {beside} | {gain_cells(runs, fastest)}" for name, runs in mine.items()]
    return lines


def gain_cells(runs: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    """Writes the other's time over that of these runs, and this memory over the other's."""

    def gains(what: str) -> list[float]:
        both = zip(other, runs, strict=False)  # a run that was stopped has one repetition more of the one
        return [median(its[what]) / median(mine[what]) for its, mine in both]

    times = f"{between(gains('step_seconds'))} | {between(gains('step_cpu_seconds'))}"
    parts = " | ".join(f"{median(gains(f'{phase}_cpu_seconds')):.2f}" for phase in ("write", "update"))
    return f"{times} | {parts} | {above_start(runs) / above_start(other):.2f}"


def decode_section(result: Result) -> list[str]:
    """Writes how near decoding comes to what the machine can do."""
    machine, asked = result["machine"], result["arguments"]
    fastest = max(machine["read_bytes_per_second"], machine["copy_bytes_per_second"])
    count = GROUP * asked["prompts"]
    lines = [
        "",
        "## Decoding",
        "",
        f"Memory gives {fastest / 1e9:.1f} GB a second, the faster of a matrix-vector product and a copy of a GiB; a",
        f"matrix product runs at {machine['operations_per_second'] / 1e9:.0f} G operations a second; both measured in",
        f"this run with as many threads. A step of decoding {count} rows reads all weights and all keys and values",
        "once, and does two operations a weight and row and attention's; the slower of the two is the bound. Decoding",
        "is what whole completions take beyond their first token; drawing tokens is in the time, not in the bound.",
    ]
    rows: list[str] = []
    for cell, found in result["cells"].items():
        bound = decode_bound(
            result["shape"]["config"],
            rows=count,
            prompt=found["prompt_tokens"],
            completion=found["completion_tokens"],
            bytes_a_number=4 if asked["dtype"] == "float32" else 2,
            bytes_per_second=fastest,
            operations_per_second=machine["operations_per_second"],
        )
        for name in ENGINES[:2]:
            runs = [run for run in found["decode"] if run["row"] == name]
            speeds = decode_speeds(runs, count, found["completion_tokens"], place=0)
            cpu = decode_speeds(runs, count, found["completion_tokens"], place=1)
            prefill = median(run["first"][0] for run in runs)
            middle = median(speeds)
            share = f"{bound.tokens_per_second:,.0f} | {bound.by} | {middle / bound.tokens_per_second:.0%}"
            ranged = f"{min(speeds):,.0f} to {max(speeds):,.0f}"
            rows.append(f"{cell} | {name} | {prefill:.3g} | {middle:,.0f} | {ranged} | {median(cpu):,.0f} | {share}")
    header = "prompt, completion | row | to the first token, s | tokens/s | range | tokens/CPU s | bound | by | share"
    return lines + table(header, rows)


def decode_speeds(runs: list[dict[str, Any]], rows: int, completion: int, *, place: int) -> list[float]:
    """Returns tokens a second after the first, by wall (place 0) or processor time (1)."""
    return [rows * (completion - 1) / (run["whole"][place] - run["first"][place]) for run in runs]


def uneven_section(found: dict[str, Any]) -> list[str]:
    """Writes how fast completions of uneven lengths are written."""
    lines = [
        "",
        "## Completions of uneven lengths",
        "",
        f"Prompts of {found['prompt_tokens']} tokens; each token ends its completion with one chance in",
        f"{found['mean_tokens']}, the last of {found['completion_tokens']} at the latest. Lengths are drawn alike, but",
        "are not the same.",
    ]
    speeds: dict[str, tuple[float, float]] = {}
    for name, measured in found["rows"].items():
        if "error" not in measured:
            wall, cpu = ([run["tokens"] / run["seconds"][place] for run in measured["runs"]] for place in (0, 1))
            speeds[name] = (median(wall), median(cpu))
    rows: list[str] = []
    for name, measured in found["rows"].items():
        if "error" in measured:
            rows.append(f"{name} | {measured['error'].replace('|', '/')} | | |")
        else:
            wall, cpu = speeds[name]
            gains = f"{speeds['ours'][0] / wall:.2f} | {speeds['ours'][1] / cpu:.2f}"
            rows.append(f"{name} | {wall:,.0f} | {cpu:,.0f} | {gains} | {measured['peak_bytes'] / GIB:.2f}")
    return lines + table("row | tokens/s | tokens/CPU s | ours / it | by CPU time | peak, GiB", rows)


if __name__ == "__main__":
    main()
