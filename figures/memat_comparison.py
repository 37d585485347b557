"""``python -m figures.memat_comparison``: MEMIT beside MEMAT for each pair of languages, as PDF and PNG.

    python -m figures.memat_comparison results/MEMAT --out results/memat_comparison

A figure for each profile and language of measurement, <out>_<profile>_<language>: marks are means over chunks with their
standard errors, by pair of languages; MEMIT alone, then MEMAT with few to many heads, on the same facts.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from experiments.memat_results import Stage, read
from experiments.run.cli import run_program
from figures import lines
from figures.memat_sweep import MEASURES, ROWS, over_heads, pair_name
from figures.program import figure_parser

WIDTH = 0.6
"""Of the marks of a pair; pairs are 1 apart."""


def draw(by_pair: dict[str, list[Stage]]) -> plt.Figure:
    """3 x 3 panels, a group of marks for each pair."""
    counts = sorted({stage.heads for stages in by_pair.values() for stage in stages})
    figure, axes = lines.panels(len(ROWS), len(MEASURES), legend=len(counts) + len(by_pair), sharex=True)
    for row, (group, group_name) in zip(axes, ROWS.items()):
        for ax, (measure, title) in zip(row, MEASURES.items()):
            for place, stages in enumerate(by_pair.values()):
                for stage in stages:
                    number = counts.index(stage.heads)
                    x = place + WIDTH * ((number + 0.5) / len(counts) - 0.5)
                    mean, error = stage.value(group + measure)
                    lines.errors(ax, [x], [mean], [error])
                    ax.plot(x, mean, **{**lines.style(number), "linestyle": "none", "markersize": 5})
            lines.label_axes(ax, y=f"{group}{measure} (%)", title=f"{group_name} {title}",
                             x="language of the edits, of the heads" if group == list(ROWS)[-1] else "")
            ax.set_xticks(range(len(by_pair)), list(by_pair))
            ax.set_xlim(-0.5, len(by_pair) - 0.5)
            for between in range(1, len(by_pair)):
                ax.axvline(between - 0.5, color="0.85", linewidth=0.6, zorder=0)
    labels = ["MEMIT" if count == 0 else f"MEMAT, {count} heads" for count in counts]
    notes = [plt.Line2D([], [], linestyle="none", label=pair_name(pair)) for pair in by_pair]
    handles = [plt.Line2D([], [], label=label, **{**lines.style(number), "linestyle": "none"})
               for number, label in enumerate(labels)]
    figure.legend(handles=[*handles, *notes], loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def main(folders: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Draws the figures of the runs in these folders; returns the files written."""
    stages, written = read(folders), []
    for profile, measured in dict.fromkeys((key[0], key[2]) for key in stages):
        drawn = [stage for key, stage in stages.items() if (key[0], key[2]) == (profile, measured)]
        written += lines.save(draw(over_heads(drawn)), f"{out}_{profile}_{measured}")
    return written


def command() -> None:
    parser = figure_parser("memat_comparison", __doc__, "results/memat_comparison", "beginning of the files' names")
    parser.add_argument("folders", nargs="+", help="run folders, or folders with runs somewhere in them")
    print("written:", *main(**vars(parser.parse_args())))


if __name__ == "__main__":
    run_program(command)
