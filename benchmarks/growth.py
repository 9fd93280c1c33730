"""Real tokens a second and peak memory as sequences, vocabulary and batch grow.

python benchmarks/growth.py                                        # into docs/benchmarks, with growth.png
python benchmarks/growth.py --peer --layouts packed                # TRL too, and one layout
python benchmarks/growth.py --shape tiny --repetitions 1 --out /tmp/out
python benchmarks/growth.py --redraw --out docs/benchmarks         # the picture and the page from the raw numbers
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from shapes import PairLengths, Shape, llama
from suite import Result, heading, parser, table
from training_step import LAYOUTS, above_state, measure, rows_found, rows_of, tokens_per_second

METHOD = "dpo_precomputed"
INK, COLOURS = "#1a1a1a", {"padded": "#b03a2e", "packed": "#1f618d", "prefix_shared": "#196f3d", "TRL": "#6c3483"}


@dataclass(frozen=True)
class Axis:
    """What grows while the rest stays.

    Attributes:
        title: For page and picture.
        values: Where it is measured.
    """

    title: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Growth:
    """A model whose size of everything else is fixed, and three axes that meet in one point.

    Attributes:
        trunk: Hidden size, layers, heads, key-value heads, intermediate size.
        centre: Tokens of a prompt with one completion on average, words, pairs.
        axes: In the order of ``centre``.
    """

    trunk: tuple[int, int, int, int, int]
    centre: tuple[int, int, int]
    axes: tuple[Axis, Axis, Axis]

    def points(self) -> list[tuple[int, int, int]]:
        """Returns every point of every axis, the centre once."""
        points = [self.at(place, value) for place, axis in enumerate(self.axes) for value in axis.values]
        return list(dict.fromkeys([self.centre, *points]))

    def at(self, place: int, value: int) -> tuple[int, int, int]:
        """Returns the centre with one of its numbers changed."""
        changed = list(self.centre)
        changed[place] = value
        return tuple(changed)  # type: ignore[return-value]

    def shape(self, point: tuple[int, int, int], steps: int) -> Shape:
        """Returns what is trained at a point."""
        length, vocabulary, pairs = point
        step = tuple(uneven(length, place) for place in range(pairs))
        return Shape(llama(*self.trunk, vocabulary), (step,), warmup=1, steps=steps)


def key(point: tuple[int, int, int]) -> str:
    """Names a point in the raw numbers."""
    return " ".join(map(str, point))


def axes(lengths: tuple[int, ...], words: tuple[int, ...], pairs: tuple[int, ...]) -> tuple[Axis, Axis, Axis]:
    """Names the three axes."""
    return Axis("tokens a sequence", lengths), Axis("words of the vocabulary", words), Axis("pairs a batch", pairs)


GROWTH = {
    "tiny": Growth((32, 2, 4, 2, 64), (24, 128, 2), axes((24, 48), (128, 256), (2, 4))),
    "small": Growth((288, 6, 6, 6, 768), (256, 8192, 4), axes((128, 256, 512, 1024), (2048, 8192, 32_768), (1, 4, 16))),
}


def uneven(length: int, place: int) -> PairLengths:
    """Returns a pair whose prompt is half of a sequence and whose completions are a half, a quarter or three quarters.

    >>> uneven(16, 0), uneven(16, 1)
    ((8, 8, 4), (8, 12, 8))
    """
    half, quarter = length // 2, length // 4
    sides = (half, quarter, half + quarter, half)
    return half, sides[2 * place % 4], sides[(2 * place + 1) % 4]


def main() -> None:
    """Measures, writes the raw numbers, and draws them."""
    args = arguments()
    if args.redraw:
        stored = json.loads((args.out / "growth.json").read_text("utf-8"))
        draw(stored, args.out / "growth.png")
        (args.out / "growth.md").write_text("\n".join(page(stored, picture=True)) + "\n", "utf-8")
        return
    growth = GROWTH[args.shape]
    result = Result(args, "points")
    rows = rows_of([METHOD], args.layouts, peer=args.peer)
    for point in growth.points():
        for found in measure(key(point), growth.shape(point, args.steps), rows, args):
            result["points"][key(point)] = found
        result.write(args.out, "growth", partial(page, picture=False))
    draw(result, args.out / "growth.png")
    result.write(args.out, "growth", partial(page, picture=True))
    print("\n".join(page(result, picture=True)))


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    made = parser(__doc__, repetitions=1)
    made.add_argument("--shape", choices=GROWTH, default="small")
    made.add_argument("--steps", type=int, default=2, help="measured steps of each run")
    made.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=["padded", "packed"], help="beside the default")
    made.add_argument("--peer", action="store_true", help="TRL too")
    made.add_argument("--redraw", action="store_true", help="measure nothing: draw what was measured")
    return made.parse_args()


def lines_of(result: Any, growth: Growth, place: int) -> dict[str, list[tuple[int, float, float]]]:
    """Returns for each row its values along an axis: where, real tokens a second, GiB above weights and AdamW."""
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for value in growth.axes[place].values:
        found = result["points"].get(key(growth.at(place, value)))
        for row, runs in rows_found(found["runs"], METHOD).items() if found else ():
            lines.setdefault(row, []).append((value, tokens_per_second(runs, found), above_state(runs)))
    return lines


def draw(result: Any, path: Path) -> None:
    """Draws both measures along all axes."""
    mpl: Any = importlib.import_module("matplotlib")
    mpl.use("Agg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    growth = GROWTH[result["arguments"]["shape"]]
    colours = {"text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK}
    with mpl.rc_context({"font.size": 11, "figure.facecolor": "white", "axes.facecolor": "white", **colours}):
        figure, panels = plt.subplots(2, 3, figsize=(13, 7.5), sharey="row", layout="constrained")
        figure.get_layout_engine().set(wspace=0.06)
        for column, axis in enumerate(growth.axes):
            for row, points in lines_of(result, growth, column).items():
                name = row.removeprefix("ours, ")
                for place, panel in enumerate(panels[:, column]):
                    style = {"marker": "o", "linewidth": 2, "color": COLOURS.get(name, INK), "label": name}
                    panel.plot([at for at, *_ in points], [values[place] for _, *values in points], **style)
            for panel, unit in zip(
                panels[:, column], ("real tokens a second", "GiB above weights and AdamW"), strict=True
            ):
                panel.set_xscale("log", base=2)
                panel.set_xticks(axis.values, [f"{value:,}" for value in axis.values])
                panel.grid(color="#d5d8dc", linewidth=0.6)
                panel.spines[["top", "right"]].set_visible(False)
                if column == 0:
                    panel.set_ylabel(unit)
            panels[1, column].set_xlabel(axis.title)
        for row in panels:  # shared by the row: when all its lines are there
            row[0].set_ylim(bottom=0)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def page(result: Any, *, picture: bool) -> list[str]:
    """Writes the numbers as Markdown."""
    growth = GROWTH[result["arguments"]["shape"]]
    length, words, pairs = growth.centre
    about = (
        "A step of DPO with cached reference log-probs. One number grows, the others stay: "
        f"{length} tokens a prompt with\n"
        f"a completion on average, {words:,} words, {pairs} pairs. Libraries, about half a GiB, are part of the memory."
    )
    lines = heading("How speed and memory grow", "python benchmarks/growth.py", result, about)
    if picture:
        lines += ["", "![Real tokens a second and memory, along each axis](growth.png)"]
    for place, axis in enumerate(growth.axes):
        rows = [
            f"{value:,} | {row} | {speed:,.0f} | {memory:.2f}"
            for row, points in lines_of(result, growth, place).items()
            for value, speed, memory in points
        ]
        lines += table(f"{axis.title} | row | real tokens/s | GiB above weights and AdamW", rows)
    return lines


if __name__ == "__main__":
    main()
