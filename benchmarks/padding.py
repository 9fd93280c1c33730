"""How much of a step is padding, and how much is waiting for the fullest rank, at the lengths of real pairs.

Counts tokens and times nothing. Needs the data and the tokenizer below $ALIGNMENT_SHARED/data (default ../shared).

python benchmarks/padding.py                                       # into docs/benchmarks
python benchmarks/padding.py --before HEAD                         # beside the plan of another commit
python benchmarks/padding.py --data hh --epochs 1 --out /tmp/out
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from hydra.utils import instantiate
from suite import HERE, Result, table

from alignment.config.compose import compose, task_config
from alignment.data import plan
from alignment.data.table import TokenTable
from alignment.types import Layout, PreferenceBatch

WORLDS = (1, 2, 8)
MICRO_BATCHES = (2, 4, 8)


class Pairs(NamedTuple):
    """Real pairs.

    Attributes:
        file: Below the folder of data.
        chat_template: For the tokenizer, which has none.
        batch_size: Records an optimiser step, as conf/data has it.
    """

    file: str
    chat_template: str
    batch_size: int


DATA = {
    "hh": Pairs("hh_harmless.jsonl.gz", "human_assistant", 64),
    "ultrafeedback": Pairs("ultrafeedback_binarized_1k.jsonl.gz", "chatml", 128),
}
#: What is counted, with the head of its column; all but the last are shares.
FIGURES = {
    "padding": "padding of rows",
    "waiting_step": "waiting, a step",
    "waiting_micro_batch": "waiting, a micro-batch",
    "attention": "padding of attention side by side",
    "fullest": "fullest micro-batch / mean",
}


def main() -> None:
    """Counts, and writes the tables and the raw numbers."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    made.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    made.add_argument("--epochs", type=int, default=5, help="orders of the records that are counted together")
    made.add_argument("--before", metavar="COMMIT", help="also count the plans of that commit")
    made.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks")
    args = made.parse_args()
    folder = Path(os.environ.get("ALIGNMENT_SHARED", HERE.parent.parent / "shared")) / "data"
    if not folder.is_dir():
        raise SystemExit("no real data: set ALIGNMENT_SHARED to the folder that has data/")
    planners = {"now": plan}
    if args.before:
        args.before = git("rev-parse", "--short=12", args.before).strip()
        planners["before"] = planner_of(args.before)
    result = Result(args, "data")
    for data in args.data:
        pairs = DATA[data]
        tokens = real_pairs(data, pairs, folder)
        cells: list[dict[str, Any]] = []
        for layout, world, micro in product(Layout, WORLDS, MICRO_BATCHES):
            found = {
                name: count(planner, tokens, layout, (pairs.batch_size, micro, world), epochs=args.epochs)
                for name, planner in planners.items()
            }
            cells.append({"layout": layout.value, "ranks": world, "micro_batch_size": micro} | found)
        result["data"][data] = {"records": len(tokens), "batch_size": pairs.batch_size, "cells": cells}
        result.write(args.out, "padding", page)
        print(data, file=sys.stderr)
    print("\n".join(page(result)))


def git(*words: str) -> str:
    """Returns what git says of this project."""
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=HERE.parent).stdout


def planner_of(commit: str) -> ModuleType:
    """Returns alignment/data/plan.py as it was in a commit."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan_before.py"
        file.write_text(git("show", f"{commit}:alignment/data/plan.py"), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module  # where dataclasses look their annotations up
        spec.loader.exec_module(module)
    return module


def real_pairs(data: str, pairs: Pairs, folder: Path) -> TokenTable:
    """Returns the pairs that training would see, in tokens of the Llama vocabulary of 32,000."""
    overrides = [
        "model=stories15m",
        f"model.path={folder / 'weights' / 'stories15M'}",
        f"model.tokenizer.chat_template={pairs.chat_template}",
        f"data={data}",
        f"data.train.path={folder / 'preference' / pairs.file}",
    ]
    cfg = task_config(compose("train", overrides))
    with tempfile.TemporaryDirectory() as cache:
        module = instantiate(cfg.data, _convert_="all")(
            tokenizer=instantiate(cfg.model, _convert_="all").tokenizer(),
            batch_type=PreferenceBatch,
            seed=1,
            cache_dir=Path(cache),
            layout=Layout.PADDED,
        )
        module.setup()
        return module.prepared.tables["train"]


def count(
    planner: ModuleType, tokens: TokenTable, layout: Layout, cut: tuple[int, int, int], *, epochs: int
) -> dict[str, float]:
    """Counts what all ranks compute in some epochs.

    Args:
        planner: Has ``plan_epoch`` and ``Geometry``.
        tokens: The pairs.
        layout: How sequences lie in rows.
        cut: Records an optimiser step, records a micro-batch, ranks.
        epochs: How many.

    Returns:
        By the names of :data:`FIGURES`.
    """
    geometry = planner.Geometry(*cut)
    rows = tokens.row_tokens(layout)
    real = 0.0
    computed: list[np.ndarray] = []
    attended: list[np.ndarray] = []
    for epoch in range(epochs):
        ranks = [
            planner.plan_epoch(
                lengths=rows,
                counted={},
                geometry=geometry,
                rank=rank,
                seed=1,
                epoch=epoch,
                shuffle=True,
                packed=layout is not Layout.PADDED,
            )
            for rank in range(geometry.world_size)
        ]
        records = [[np.array(item.indices) for item in rank] for rank in ranks]
        # Two sequences a pair, all as long as the longest: a padded row, and attention side by side in any layout.
        even = np.array([[2 * len(some) * tokens.lengths[some].max() for some in rank] for rank in records])
        attended.append(even)
        padded = layout is Layout.PADDED
        computed.append(even if padded else np.array([[rows[some].sum() for some in rank] for rank in records]))
        real += (tokens.real_tokens if padded else rows).sum()
    # Steps x ranks x micro-batches.
    work = np.concatenate([part.reshape(len(part), -1, geometry.accumulate).swapaxes(0, 1) for part in computed])
    return {
        "padding": 1 - real / work.sum(),
        "waiting_step": 1 - work.sum() / (geometry.world_size * work.sum(2).max(1).sum()),
        "waiting_micro_batch": 1 - work.sum() / (geometry.world_size * work.max(1).sum()),
        "attention": 1 - epochs * tokens.real_tokens.sum() / sum(part.sum() for part in attended),
        "fullest": work.max() / work.mean(),
    }


def page(result: Result) -> list[str]:
    """Writes the numbers as Markdown."""
    commit = result["environment"]["commit"] or {"sha": "unknown", "dirty": False}
    before, epochs = (result["arguments"][name] for name in ("before", "epochs"))
    command = f"python benchmarks/padding.py{f' --before {before}' if before else ''}"
    lines = [
        "# Padding, and waiting for the fullest rank",
        "",
        f"Made by `{command}` in {result['minutes']} minutes.",
        "Tokens are counted, nothing is timed.",
        f"Commit {commit['sha'][:12]}{', with changes' if commit['dirty'] else ''}; {epochs} epochs, seed 1.",
        "",
        "- Padding of rows: the share of all computed places that hold no token of a record. Fillers of a last step",
        "  with too few records count.",
        "- Waiting: the share of all ranks' time that is lost if a token takes the same time everywhere and ranks meet",
        "  at the end of each step (DDP), or of each micro-batch (FSDP2). It comes on top of padding.",
        "- Padding of attention side by side: on GPUs and in compiled graphs, unless another kernel is asked for,",
        "  attention alone is padded to the micro-batch's longest sequence. A shared prompt counts once for each of",
        "  its completions.",
        "- Fullest micro-batch / mean: how much more memory the fullest one needs, about.",
    ]
    if before:
        lines += ["", f"Two figures: the plan of {before}, then this commit's. One figure: they are equal."]
    for data, found in result["data"].items():
        lines += ["", f"## {data}: {found['records']} pairs, {found['batch_size']} a step"]
        rows = [" | ".join(_cells(cell)) for cell in found["cells"]]
        lines += table("layout | ranks | pairs a micro-batch | " + " | ".join(FIGURES.values()), rows)
    return lines


def _cells(cell: dict[str, Any]) -> list[str]:
    plans = [cell[name] for name in ("before", "now") if name in cell]
    first = [str(cell[name]) for name in ("layout", "ranks", "micro_batch_size")]
    found = [[f"{some[name]:.2f}" if name == "fullest" else f"{some[name]:.1%}" for some in plans] for name in FIGURES]
    return first + [", ".join(dict.fromkeys(texts)) for texts in found]


if __name__ == "__main__":
    main()
