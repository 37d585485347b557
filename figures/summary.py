"""``python -m figures.summary RUN [RUN ...]``: efficacy, paraphrase and neighbourhood of runs side by side, as PDF and PNG.

    python -m figures.summary results/MEMIT/run_000 results/ROME/run_000 --out results/comparison

Bars show the mean over cases after the edit with its standard error, ticks across a bar what was before the edit, and diamonds
what a sequence has left at its end. Runs differ in grey value and hatching, so the figure can be read without colour.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.results import summary
from experiments.results.names import MEASURES, SCORED
from experiments.results.runs import describe, runs_with_cases
from experiments.results.summary import Statistics
from experiments.run.cli import run_program
from figures.lines import save
from figures.program import figure_parser

PANELS = ("success", "acc", "generated")
# Neighbours differ in both; five and six have no common factor, so only the 31st run looks like the first.
GREYS = ["0.9", "0.55", "0.75", "0.3", "1.0"]
HATCHES = ["", "//", "xx", "..", "\\\\", "++"]
BEFORE = {"color": "black", "linewidth": 2, "linestyle": (0, (1, 0.6))}
RETAINED = {"color": "black", "marker": "D", "markersize": 5, "markerfacecolor": "white", "linestyle": "none"}


def draw(runs: Sequence[tuple[str, Statistics]]) -> plt.Figure:
    """A panel for each of success, accuracy and generated exactness that any of the (label, statistics) has."""
    panels = [measure for measure in PANELS if any(f"{prefix}_rewrite_{measure}" in statistics for _, statistics in runs
                                                   for prefix in ("post", "retention"))]
    legend_height = 0.18 * (len(runs) + 2) + 0.1
    size = (1.2 + 3.2 * len(panels), 2.4 + legend_height)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False)
    for ax, measure in zip(axes[0], panels):
        _panel(ax, measure, runs)
    axes[0, 0].set_ylabel("% of prompts, mean over cases", fontsize=8)
    handles = [Patch(label=label, **_style(number)) for number, (label, _) in enumerate(runs)]
    if any(key.startswith("pre_") for _, statistics in runs for key in statistics):
        handles.append(Line2D([], [], label="before the edit", **BEFORE))
    if any(key.startswith("retention_") for _, statistics in runs for key in statistics):
        handles.append(Line2D([], [], label="left at the end of the sequence", **RETAINED))
    figure.legend(handles=handles, loc="lower center", ncols=1, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, legend_height / figure.get_figheight(), 1, 1))
    return figure


def _panel(ax: Axes, measure: str, runs: Sequence[tuple[str, Statistics]]) -> None:
    width = 0.8 / len(runs)
    for number, (_, statistics) in enumerate(runs):
        for place, group in enumerate(SCORED):
            x = place + (number - (len(runs) - 1) / 2) * width
            value = statistics.get(f"post_{group}_{measure}")
            if value is not None:
                ax.bar(x, value["mean"], width, yerr=value["se"] or 0, capsize=2, error_kw={"linewidth": 0.8}, **_style(number))
            before = statistics.get(f"pre_{group}_{measure}")
            if before is not None:
                ax.hlines(before["mean"], x - width / 2, x + width / 2, zorder=3, **BEFORE)
            retained = statistics.get(f"retention_{group}_{measure}")
            if retained is not None:
                ax.plot(x, retained["mean"], zorder=4, clip_on=False, **RETAINED)
    ax.set_title(MEASURES[measure], fontsize=10)
    ax.set_xticks(range(len(SCORED)), SCORED.values(), fontsize=8)
    ax.set_xlim(-0.5, len(SCORED) - 0.5)
    ax.set_ylim(0, 105)
    ax.spines[["top", "right"]].set_visible(False)


def _style(number: int) -> dict[str, Any]:
    """Of the bars of a run, and of its entry in the legend."""
    return {"facecolor": GREYS[number % len(GREYS)], "hatch": HATCHES[number % len(HATCHES)], "edgecolor": "black",
            "linewidth": 0.7}


def main(runs: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Draws the figure of the runs; returns the files written (``out`` with .pdf and .png). UserError without cases."""
    return save(draw([(describe(about), summary.statistics(lists)) for _, about, lists in runs_with_cases(runs, "draw")]), out)


def command() -> None:
    parser = figure_parser("summary", __doc__, "results/summary")
    parser.add_argument("runs", nargs="+", help="run folders, or folders of runs")
    print("written:", *main(**vars(parser.parse_args())))


if __name__ == "__main__":
    run_program(command)
