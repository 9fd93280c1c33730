"""A training step of each method beside TRL's, on equal work: seconds, real tokens a second, peak memory.

python benchmarks/training_step.py                                 # into docs/benchmarks
python benchmarks/training_step.py --shape hh --method dpo_precomputed --layouts
python benchmarks/training_step.py --shape tiny --steps 2 --repetitions 1 --out /tmp/out
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from operation_times import KINDS, OTHER
from shapes import SHAPES, Shape, model_flops, padded_tokens, real_tokens
from suite import CHANGED, GIB, Result, between, child, heading, in_turns, parser, spread, table

LAYOUTS = ("padded", "packed", "prefix_shared")
#: Equal work gives equal losses and norms of gradients, up to rounding that updates carry on; relative.
TOLERANCES = {
    "float32": {"losses": 1e-3, "gradient_norms": 1e-2},
    "bfloat16": {"losses": 1e-2, "gradient_norms": 1e-1},
}
#: In how many of the first steps; in bf16 later ones hold more and more of the rounding of those before.
EQUAL_STEPS = {"float32": None, "bfloat16": 1}
#: Dense products that makers give for bf16, in operations a second: what "MFU" is a share of.
DATASHEET = {"H200": 989e12, "H100 80GB HBM3": 989e12, "A100": 312e12}


@dataclass(frozen=True)
class Method:
    """A method here, and the trainer of TRL's that does the same.

    Attributes:
        title: For the page.
        ours: What is overridden in this project's own defaults.
        trainer: TRL's, a key of ``trl_peer.PEERS``.
        options: TRL's settings. Where it is not known which are the fastest there are several, and the ratio is to the
            fastest of them.
        records: The file that is trained on.
        model: The folder whose weights are trained.
        whole_head: Whether TRL's head scores every position on a CPU; on a GPU it does not.
        passes: Forward passes' worth of work in a step: 3 to train, 1 more for a reference model.
    """

    title: str
    ours: tuple[str, ...]
    trainer: str
    options: tuple[dict[str, Any], ...] = ({},)
    records: str = "pairs"
    model: str = "model"
    whole_head: bool = False
    passes: int = 3

    @property
    def singles(self) -> bool:
        """Whether the sides of a pair are records of their own."""
        return self.records != "pairs"


METHODS = {
    "dpo_frozen_copy": Method(
        "DPO, frozen copy",
        ("method=dpo", "method.beta=0.1", "reference=frozen_copy"),
        "DPO",
        ({"beta": 0.1},),
        whole_head=True,
        passes=4,
    ),
    "dpo_precomputed": Method(
        "DPO, precomputed",
        ("method=dpo", "method.beta=0.1", "reference=precomputed"),
        "DPO",
        ({"beta": 0.1, "precompute_ref_log_probs": True},),
        whole_head=True,
    ),
    "kto": Method(
        "KTO, frozen copy",
        ("method=kto", "method.beta=0.1", "reference=frozen_copy"),
        "KTO",
        ({"beta": 0.1, "loss_type": "kto"},),
        records="thumbs",
        whole_head=True,
        passes=4,
    ),
    "orpo": Method(
        "ORPO",
        ("method=orpo", "method.odds_ratio_coefficient=0.1", "method.nll_over=prompt_and_completion"),
        "ORPO",
        ({"beta": 0.1},),
    ),
    "simpo": Method(
        "SimPO",
        ("method=simpo", "method.beta=2.0", "method.gamma=1.0", "method.gamma_beta_ratio=null"),
        "CPO",
        ({"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},),
    ),
    "reward_model": Method("Reward model", ("method=reward_model",), "Reward", model="judge"),
    "sft": Method(
        "SFT",
        ("method=sft",),
        "SFT",
        ({}, {"padding_free": True, "max_length": None}),
        records="demonstrations",
        whole_head=True,
    ),
}


@dataclass(frozen=True)
class Row:
    """A line of a table: a system, and how it is set.

    Attributes:
        method: A key of :data:`METHODS`.
        name: For the page.
        system: ``ours``, ``trl`` or ``bare``.
        overrides: Of this project's configuration.
        options: Of TRL's.
        completions_only: Whether TRL's head is made to score completions only.
    """

    method: str
    name: str
    system: str
    overrides: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    completions_only: bool = False


def rows_of(methods: list[str], layouts: list[str], *, peer: bool = True, changed: bool = False) -> list[Row]:
    """Returns the lines that are measured.

    Args:
        methods: Keys of :data:`METHODS`.
        layouts: To measure beside this project's default.
        peer: Whether TRL is measured too.
        changed: Whether it is also measured with a head that scores completions only, where its own does not.
    """
    rows: list[Row] = []
    for key in methods:
        method = METHODS[key]
        for options in method.options if peer else ():
            what = "".join(f", {name}" for name, value in options.items() if value is True)
            what = what.replace(", precompute_ref_log_probs", "")
            rows.append(Row(key, f"TRL{what}", "trl", options=options))
            if changed and method.whole_head:
                rows.append(Row(key, f"{CHANGED}{what}", "trl", options=options, completions_only=True))
        rows.append(Row(key, "ours", "ours", method.ours))
        rows += [Row(key, f"ours, {name}", "ours", (*method.ours, f"model.layout={name}")) for name in layouts]
    return rows


def main() -> None:
    """Measures, and writes the table and the raw numbers."""
    args = arguments()
    result = Result(args, "shapes")
    if args.mfu:
        size = 8192 if args.device == "cuda" else 256
        job = {"system": "matmul", "size": size, "dtype": args.dtype, "device": args.device}
        result["peak_operations"] = child("training_step_run.py", job)["operations_per_second"]
    for name in args.shape:
        shape = SHAPES[name]
        methods = args.method or list(shape.methods or METHODS)
        rows = rows_of(methods, args.layouts, peer=args.peer, changed=args.device == "cpu" and not args.profile)
        for found in measure(name, shape, rows, args):
            result["shapes"][name] = found
            result.write(args.out, args.name, page)
    print("\n".join(page(result)))


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    made = parser(__doc__, repetitions=3)
    made.add_argument("--shape", nargs="+", choices=SHAPES, default=["stories15M", "hh"])
    made.add_argument("--method", nargs="+", choices=METHODS, help="each shape has its own; most take all")
    made.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=None, help="of ours, beside its default")
    made.add_argument("--steps", type=int, help="measured steps of each run; each shape has its own number")
    made.add_argument("--no-peer", dest="peer", action="store_false", help="ours alone")
    made.add_argument("--profile", action="store_true", help="where the time goes; steps then take longer")
    made.add_argument("--mfu", action="store_true", help="operations a second, as a share of a matrix product's")
    made.add_argument("--name", default="training_step", help="of the two files")
    args = made.parse_args()
    args.layouts = [] if args.layouts is None else args.layouts or list(LAYOUTS)
    return args


def measure(
    name: str, shape: Shape, rows: list[Row], args: argparse.Namespace, *, log_every: int = 1
) -> Iterator[dict[str, Any]]:
    """Measures all rows of a shape in alternating repetitions, and yields what there is after each run.

    Args:
        name: Of the shape.
        shape: What is trained, and on what.
        rows: The systems.
        args: ``repetitions``, ``steps``, ``threads``, ``device``, ``dtype``.
        log_every: Steps between two lines of metrics.

    Raises:
        RuntimeError: If a run failed, or if the systems did not do the same work.
    """
    lengths = shape.all_lengths(args.steps or shape.steps)
    facts = asdict(shape) | {
        "lengths": lengths,
        "real_tokens": [real_tokens(step) for step in lengths[shape.warmup :]],
        "padded_tokens": [padded_tokens(step) for step in lengths[shape.warmup :]],
    }
    with tempfile.TemporaryDirectory() as folder:
        shared = {"threads": args.threads, "device": args.device, "dtype": args.dtype, "log_every": log_every}
        models = sorted({METHODS[row.method].model for row in rows})
        files = {"system": "prepare", "folder": folder, "models": models}
        prepared = child("training_step_run.py", files | facts | shared)
        runs: list[dict[str, Any]] = []
        for repetition, row in in_turns(rows, args.repetitions):
            method = METHODS[row.method]
            with tempfile.TemporaryDirectory(dir=folder) as own:
                job = {
                    "system": row.system,
                    "folder": own,
                    "model": f"{folder}/{method.model}",
                    "records": f"{folder}/{method.records}.jsonl",
                    "batch": shape.pairs * (1 + method.singles),
                    "ours": row.overrides,
                    "trainer": method.trainer,
                    "options": row.options,
                    "completions_only": row.completions_only,
                    "partners": prepared["partners"],
                    "profile": getattr(args, "profile", False),
                }
                got = child("training_step_run.py", job | shared)
            of = {"method": row.method, "row": row.name, "repetition": repetition}
            runs.append(of | kept(got, shape, args.dtype))
            middle = median(runs[-1]["step_seconds"])
            print(f"{name}, {method.title}, {row.name} #{repetition}: {middle:.3f} s", file=sys.stderr)
            yield facts | {"runs": runs}
            check_equal_work(runs, tolerances=TOLERANCES[args.dtype], steps=EQUAL_STEPS[args.dtype])


def kept(got: dict[str, Any], shape: Shape, dtype: str) -> dict[str, Any]:
    """Returns what is published of a run."""
    steps = list(pairwise(got.pop("ends")))[shape.warmup - 1 :]
    # Of what is trained: the gradient and AdamW's two moments beside the weight, all of one type.
    state = got["parameters"] * (got["models"] + 3) * (4 if dtype == "float32" else 2)
    wall, processor = ([round(later[i] - earlier[i], 6) for earlier, later in steps] for i in (0, 1))
    timed = {"step_seconds": wall, "step_cpu_seconds": processor, "warmup": shape.warmup, "state_bytes": state}
    return timed | got


def check_equal_work(runs: list[dict[str, Any]], *, tolerances: dict[str, float], steps: int | None = None) -> None:
    """Refuses a comparison in which the systems did not see the same tokens and learn the same from them.

    Args:
        runs: Compared with the first of the same method.
        tolerances: Of each logged value, relative.
        steps: How many of the first steps must agree; ``None`` is all.

    Raises:
        RuntimeError: Naming the two.
    """
    first: dict[str, dict[str, Any]] = {}
    for run in runs:
        other = first.setdefault(run["method"], run)
        names = f"{run['method']}: {run['row']} and {other['row']}"
        if run["digest"] != other["digest"]:
            raise RuntimeError(f"{names} were trained on different tokens")
        for what, tolerance in tolerances.items():
            mine, its = run[what], other[what]
            if mine.keys() != its.keys() or not mine:
                raise RuntimeError(f"{names} logged different steps' {what}: {sorted(mine)} and {sorted(its)}")
            if not all(abs(mine[step] - its[step]) <= tolerance * abs(its[step]) for step in list(mine)[:steps]):
                raise RuntimeError(f"{names} reached other {what}: {mine} and {its}")


def page(result: Result) -> list[str]:
    """Writes the numbers as Markdown."""
    about = "All rows of a method were trained on the same tokens and logged the same losses and norms of gradients."
    if result["arguments"]["device"] == "cpu":
        about += "\nOn a CPU the heads of TRL's DPO, KTO and SFT score every position, on a GPU completions only:"
        about += "\nrows of changed TRL do so here too, by a function of its that is replaced."
    lines = heading("Training steps beside TRL's", "python benchmarks/training_step.py", result, about)
    lines += [f"{result['arguments']['repetitions']} alternating repetitions."]
    peak = result.get("peak_operations")
    if peak:
        lines += [f"A matrix product of the weights' type runs at {peak / 1e12:.3g} T operations a second."]
    promised = datasheet(result)
    if promised:
        lines += [f"The maker gives {promised / 1e12:.4g} T: that is what MFU is a share of."]
    lines += ["", "TRL's settings, beside what benchmarks/trl_peer.py sets for all; of several the fastest counts:", ""]
    lines += [settings(key) for key in dict.fromkeys(run["method"] for run in all_runs(result))]
    for name, shape in result["shapes"].items():
        lines += ["", *section(name, shape, [bound for bound in (peak, promised) if bound])]
    return lines


def all_runs(result: Result) -> list[dict[str, Any]]:
    """Returns the runs of all shapes."""
    return [run for shape in result["shapes"].values() for run in shape["runs"]]


def settings(key: str) -> str:
    """Says what TRL's trainer for a method was given."""
    method = METHODS[key]
    given = [" ".join(f"{name}={value}" for name, value in options.items()) or "nothing" for options in method.options]
    return f"- {method.title}: {method.trainer}Trainer, `{'` or `'.join(given)}`"


def datasheet(result: Result) -> float | None:
    """Returns the operations a second that the GPU's maker gives, where they were measured too."""
    name = result["environment"]["device"] or ""
    asked = result.get("peak_operations") and result["arguments"]["dtype"] == "bfloat16"
    return next((most for gpu, most in DATASHEET.items() if gpu in name), None) if asked else None


def section(name: str, shape: dict[str, Any], peaks: list[float]) -> list[str]:
    """Writes a shape's tables, with shares of the measured peak and of the promised one, if there are any."""
    runs = shape["runs"]
    groups = {key: rows_found(runs, key) for key in dict.fromkeys(run["method"] for run in runs)}
    loads = [run["load_before"] for run in runs]
    real, padded = shape["real_tokens"], shape["padded_tokens"]
    parameters = max(run["parameters"] for run in runs) / 1e6
    lines = [
        f"## {name}",
        "",
        f"{parameters:.1f}M parameters, {len(shape['lengths'][0])} pairs a step with",
        f"{sum(real) / len(real):,.0f} real tokens on average ({sum(padded) / len(padded):,.0f} with padding),",
        f"{len(real)} measured steps a run after {shape['warmup']} of warm-up, {runs[0]['threads']} threads.",
        f"Load before the runs: {min(loads)} to {max(loads)}.",
    ]
    header = "method | row | step, s: median | quartiles | CPU s | real tokens/s | peak, GiB | above weights and AdamW"
    lines += table(
        " | ".join([header, "share of the peak", "MFU"][: 1 + len(peaks)]),
        [cells(key, row, found, shape, peaks) for key, rows in groups.items() for row, found in rows.items()],
    )
    ratios = [line for key, rows in groups.items() for line in ratio_lines(METHODS[key].title, rows)]
    if ratios:
        lines += table(
            "ours / the fastest | row | of | time | range | CPU time | range | memory above weights and AdamW", ratios
        )
    if any("operation_seconds" in run for run in runs):
        lines += profile_table(runs)
    return lines


def profile_table(runs: list[dict[str, Any]]) -> list[str]:
    """Writes where the processor time of the steps after the first goes, in seconds a step."""
    kinds = [*KINDS, OTHER]
    rows: list[str] = []
    for run in runs:
        # The profile begins when the first step has ended, and holds all that are left.
        steps = len(run["step_seconds"]) + run["warmup"] - 1
        found = {kind: run["operation_seconds"].get(kind, 0.0) / steps for kind in kinds}
        cells = " | ".join(f"{seconds:.2f}" for seconds in found.values())
        rows.append(f"{METHODS[run['method']].title} | {run['row']} | {sum(found.values()):.2f} | {cells}")
    return table(f"profiled, s of a processor a step | row | all | {' | '.join(kinds)}", rows)


def rows_found(runs: list[dict[str, Any]], method: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the runs of each row of a method, in the order of their repetitions."""
    named = {run["row"] for run in runs if run["method"] == method}
    names = sorted(named, key=lambda name: ("TRL" not in name, name[0] != "T", name))
    return {name: [run for run in runs if (run["method"], run["row"]) == (method, name)] for name in names}


def cells(key: str, row: str, runs: list[dict[str, Any]], shape: dict[str, Any], peaks: list[float]) -> str:
    """Writes a row: steps of all repetitions together, and the largest of the peaks."""
    middle, low, high = spread([value for run in runs for value in run["step_seconds"]])
    cpu = median(value for run in runs for value in run["step_cpu_seconds"])
    most = max(run["peak_bytes"] for run in runs) / GIB
    line = (
        f"{METHODS[key].title} | {row} | {middle:.4g} | {low:.4g} to {high:.4g} | {cpu:.4g} "
        f"| {tokens_per_second(runs, shape):,.0f} | {most:.2f} | {above_state(runs):.2f}"
    )
    measured = shape["lengths"][shape["warmup"] :]
    needed = [model_flops(shape["config"], step, passes=METHODS[key].passes) for step in measured]
    speed = median(n / s for run in runs for n, s in zip(needed, run["step_seconds"], strict=True))
    return " | ".join([line, *(f"{speed / peak:.0%}" for peak in peaks)])


def tokens_per_second(runs: list[dict[str, Any]], shape: dict[str, Any]) -> float:
    """Returns the median over steps of real tokens a second."""
    pairs = [pair for run in runs for pair in zip(shape["real_tokens"], run["step_seconds"], strict=True)]
    return median(tokens / seconds for tokens, seconds in pairs)


def above_state(runs: list[dict[str, Any]]) -> float:
    """Returns the peak without what weights, gradients and AdamW take by count, in GiB."""
    return max(run["peak_bytes"] - run["state_bytes"] for run in runs) / GIB


def ratio_lines(title: str, rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Writes each row of ours beside TRL's fastest, as it is and changed: the median and the range over repetitions."""
    lines: list[str] = []
    for beside in ("TRL", CHANGED):
        peers = [runs for name, runs in rows.items() if name.startswith(beside)]
        if not peers:
            continue
        fastest = min(peers, key=lambda runs: median(value for run in runs for value in run["step_seconds"]))
        for name, runs in rows.items():
            if "TRL" not in name:
                times = between(ratios(runs, fastest, "step_seconds"))
                cpu = between(ratios(runs, fastest, "step_cpu_seconds"))
                memory = above_state(runs) / above_state(fastest)
                lines.append(f"{title} | {name} | {beside.split(',')[0]} | {times} | {cpu} | {memory:.2f}")
    return lines


def ratios(ours: list[dict[str, Any]], other: list[dict[str, Any]], what: str) -> list[float]:
    """Returns for each repetition the median ratio over steps, each to the other system's time for the same batch."""
    both = zip(ours, other, strict=False)  # a run that was stopped has one repetition more of the one
    return [median(a / b for a, b in zip(mine[what], its[what], strict=True)) for mine, its in both]


if __name__ == "__main__":
    main()
