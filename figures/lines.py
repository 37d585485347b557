"""Line figures that can be read without colour: styles, panels with one legend, and files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from data.files import write_atomically

# Neighbours differ in all; three, four and seven have no common factor. A later line is thinner and has smaller markers, so
# that what it lies upon is seen.
GREYS = ["0.55", "0.0", "0.3"]
DASHES: list[Any] = ["-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2))]
MARKERS = ["o", "s", "^", "D", "v", "X", "*"]
DOTTED = {"color": "black", "linewidth": 0.8, "linestyle": (0, (1, 2))}
"""A line to compare with: chance, the unedited model, a goal."""
MARKS = 10
"""Markers on a line, about."""
WIDE = 50
"""Where the largest value is so many times the smallest, the axis is logarithmic."""


def style(number: int) -> dict[str, Any]:
    """The options of a run's lines, and of its entry in the legend."""
    grey = GREYS[number % len(GREYS)]
    return {"color": grey, "linestyle": DASHES[number % len(DASHES)], "marker": MARKERS[number % len(MARKERS)],
            "linewidth": max(1.0, 2.2 - 0.3 * number), "markersize": max(3.5, 6.5 - 0.7 * number), "markerfacecolor": "white",
            "markeredgecolor": grey, "markeredgewidth": 0.9}


def plot(ax: Axes, number: int, x: Sequence[float], y: Sequence[float]) -> None:
    """A run's line. Markers of different runs stand at different places, so that lines upon each other can be told apart."""
    step = max(1, round(len(x) / MARKS))
    ax.plot(x, y, markevery=(number * max(1, step // 4) % step, step), **style(number))


def errors(ax: Axes, x: Sequence[float], y: Sequence[float], standard_errors: Sequence[float | None]) -> None:
    """Bars of standard errors; None has none."""
    ax.errorbar(x, y, [error or 0 for error in standard_errors], fmt="none", ecolor="0.4", elinewidth=0.8)


def faint(ax: Axes, number: int, x: Sequence[float], y: Sequence[float]) -> None:
    """What :func:`plot` shows the average of."""
    ax.plot(x, y, color="0.8", linestyle=DASHES[number % len(DASHES)], linewidth=0.6, zorder=1)


def panels(rows: int, columns: int, width: float = 2.9, height: float = 2.1, legend: int = 0, **options: Any
           ) -> tuple[plt.Figure, np.ndarray]:
    """A figure of rows x columns panels (inches each), with room for a legend of so many lines below."""
    size = (max(4.5, 0.4 + width * columns), 0.3 + height * rows + 0.17 * legend)
    return plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **options)


def label_axes(ax: Axes, x: str = "", y: str = "", title: str = "") -> None:
    """Names the axes of a panel, small, and takes its frame away; edits, on the x axis, are whole numbers."""
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)
    ax.set_title(title, fontsize=9)
    ax.tick_params(labelsize=7)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.spines[["top", "right"]].set_visible(False)


def scale(axes: Sequence[Axes]) -> None:
    """A logarithmic y axis where the values of panels that share one ask for it, else one from 0."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for ax in axes for line in ax.get_lines()])
    positive = values[np.isfinite(values) & (values > 0)]
    for ax in axes:
        if positive.size and positive.max() > WIDE * positive.min():
            ax.set_yscale("log")
        elif positive.size:
            ax.set_ylim(0, 1.05 * positive.max())


def legend(figure: FigureBase, labels: Sequence[str], numbers: Sequence[int] | None = None, *more: Line2D) -> None:
    """The runs' names below the panels; numbers: which of them are drawn, by default all."""
    shown = range(len(labels)) if numbers is None else numbers
    handles = [Line2D([], [], label=labels[number], **style(number)) for number in shown]
    figure.legend(handles=[*handles, *more], loc="outside lower center", ncols=1, frameon=False, fontsize=8, handlelength=4)


def save(figure: plt.Figure, out: str | Path) -> list[Path]:
    """Writes ``out`` with .pdf and .png, and closes the figure."""
    files = [Path(f"{out}{suffix}") for suffix in (".pdf", ".png")]
    for file in files:
        write_atomically(file, lambda opened, kind=file.suffix[1:]: figure.savefig(opened, format=kind, dpi=200))
    plt.close(figure)
    return files
