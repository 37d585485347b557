"""What a query costs SERAC, by the number of edits in its memory, as PDF and PNG.

    python -m experiments.bench memory --out results/bench/memory.json
    python -m figures.memory results/bench/memory.json
"""
from pathlib import Path

import matplotlib.pyplot as plt

from common.errors import UserError
from data.files import read_json
from experiments.run.cli import run_program
from figures.lines import label_axes, save
from figures.program import figure_parser

CURVES = {"search": ("-", "o", "search for the nearest edit"), "plain": (":", "^", "all distances one by one"),
          "encoder": ("--", "", "the encoder's pass")}  # told apart without colour


def draw(content: dict) -> plt.Figure:
    """Milliseconds a query against edits, both on logarithmic axes."""
    figure, ax = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    for name, (line, marker, label) in CURVES.items():
        points = [(row["edits"], 1e3 * row[name]) for row in content["sizes"] if row[name] is not None]
        ax.plot(*zip(*points), linestyle=line, marker=marker, markersize=4, color="black", markerfacecolor="white", label=label)
    label_axes(ax, "edits in the memory", "milliseconds a query")
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.legend(frameon=False, fontsize=8)
    return figure


def main(argv=None) -> None:
    parser = figure_parser("memory", __doc__, None, "path of the files without ending; by default beside the file")
    parser.add_argument("file", type=Path, help="what experiments.bench memory --out wrote")
    args = parser.parse_args(argv)
    content = read_json(args.file)
    if not isinstance(content, dict) or not content.get("sizes") or not {"edits", *CURVES} <= set(content["sizes"][0]):
        raise UserError(f"{args.file}: not a file of experiments.bench memory --out")
    print("written:", *save(draw(content), args.out or args.file.with_suffix("")))


if __name__ == "__main__":
    run_program(main)
