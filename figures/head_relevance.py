"""``python -m figures.head_relevance RUN [RUN ...]``: how well each attention head tells edited facts from true ones.

    python -m figures.head_relevance results/CE/run_000 results/EE/run_000 --out results/head_relevance

For each run, above: validation accuracy of the probe of every head, the mean over the run's chunks; the heads of a layer are in
descending order, as in MEMAT's figures, or with --by_head each in its place, with a circle where it is among the chosen of at
least half of the chunks. Below: the best head and the mean of each layer. Dark is accurate, dots are chance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.errors import UserError
from experiments.results import run_folder
from experiments.run.cli import at_least_one, run_program
from figures import lines
from figures.program import figure_parser

FOLDER = "relevance"
CHANCE = 50
RANGE = (45, 70)
"""Percent that the scales show at least, so that chance looks like chance."""


@dataclass(frozen=True)
class Relevance:
    """How well a run's heads tell facts apart."""

    label: str
    accuracy: Float[np.ndarray, "layers heads"]
    """Percent; mean over chunks."""
    chosen: Float[np.ndarray, "layers heads"]
    """Share of chunks in which the head is among those chosen."""
    chunks: int


def read(run: Path, heads: int | None = None) -> Relevance:
    """The relevance files of a run; heads: how many count as chosen, by default all that were. UserError without files."""
    chunks = [run_folder.read_json(path) for path in sorted((run / FOLDER).glob("*.json"))]
    chunks = [chunk for chunk in chunks if chunk["accuracy"] is not None]  # too few edits took there to probe
    if not chunks:
        raise UserError(f"{run}: no {FOLDER} of heads; MEMAT and ITI write it where they choose heads")
    accuracy = np.array([chunk["accuracy"] for chunk in chunks])
    chosen = np.zeros(accuracy.shape[1:])
    for chunk in chunks:
        for layer, head in chunk["heads"][:heads]:
            chosen[layer, head] += 1 / len(chunks)
    first = chunks[0]
    pair = f"{first['language'][0]}{first['language_eval'][0]}".upper()
    return Relevance(f"{pair}: edits in {first['language'].capitalize()}, heads in {first['language_eval'].capitalize()}",
                     100 * accuracy.mean(0), chosen, len(chunks))


def draw(columns: Sequence[Relevance], by_head: bool = False) -> plt.Figure:
    """A column for each run."""
    figure, axes = lines.panels(2, len(columns), width=2.7, height=2.5, legend=3, sharex="row", sharey="row")
    low = min(RANGE[0], *(relevance.accuracy.min() for relevance in columns))
    high = max(RANGE[1], *(relevance.accuracy.max() for relevance in columns))
    for (above, below), relevance in zip(axes.T, columns):
        accuracy = relevance.accuracy if by_head else np.sort(relevance.accuracy)[:, ::-1]
        image = above.imshow(accuracy, cmap="Greys", vmin=low, vmax=high, origin="lower", aspect="auto",
                             interpolation="nearest")
        if by_head:
            layers, heads = np.nonzero(relevance.chosen >= 0.5)
            grey = (accuracy[layers, heads] - low) / (high - low)
            above.scatter(heads, layers, s=14, facecolors="none", edgecolors=np.where(grey > 0.5, "white", "black"))
        chunks = f"{relevance.chunks} chunk{'s' * (relevance.chunks > 1)}"
        lines.label_axes(above, x="head" if by_head else "heads of the layer, best first",
                         y="layer" if above is axes[0, 0] else "", title=f"{relevance.label} ({chunks})".replace(", ", "\n"))
        above.yaxis.set_major_locator(MaxNLocator(7, integer=True))
        _by_layer(below, relevance, axes[1, 0])
    bar = figure.colorbar(image, ax=list(axes[0]), shrink=0.9, pad=0.02)
    bar.set_label("validation accuracy (%)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    chance = Line2D([], [], label="chance", **lines.DOTTED)
    lines.legend(figure, ["best head of the layer", "mean over the layer's heads"], None, chance)
    return figure


def _by_layer(ax: Axes, relevance: Relevance, first: Axes) -> None:
    layers = range(len(relevance.accuracy))
    ax.axhline(CHANCE, **lines.DOTTED, zorder=0)
    lines.plot(ax, 0, layers, relevance.accuracy.max(1))
    lines.plot(ax, 1, layers, relevance.accuracy.mean(1))
    lines.label_axes(ax, x="layer", y="validation accuracy (%)" if ax is first else "")
    ax.update_datalim([(0, bound) for bound in RANGE])
    ax.autoscale_view()


def main(runs: Sequence[str | Path], out: str | Path, by_head: bool = False, heads: int | None = None) -> list[Path]:
    """Draws the figure of these runs; returns the files written. ``out`` may have .pdf or .png, both are written."""
    name = str(out).removesuffix(".pdf").removesuffix(".png")
    return lines.save(draw([read(Path(run), heads) for run in runs], by_head), name)


def command() -> None:
    parser = figure_parser("head_relevance", __doc__, "results/head_relevance")
    parser.add_argument("runs", nargs="+", help="run folders")
    parser.add_argument("--by_head", action="store_true", help="each head in its place, the chosen ones circled")
    parser.add_argument("--top_num_heads", type=at_least_one, help="circle so many; by default all that were chosen")
    args = parser.parse_args()
    print("written:", *main(args.runs, args.out, args.by_head, args.top_num_heads))


if __name__ == "__main__":
    run_program(command)
