"""``python -m figures.sequential``: sequential runs of several editors together, as PDF and PNG.

    python -m figures.sequential results/ROME/run_000 results/MEMIT/run_000 results/EMMET/run_000 --out results/sequential

Draws, of what the runs hold: <out>_retention, what is left of earlier edits; <out>_current, what edits do right after their
batch; <out>_forgetting; and of the whole model (:mod:`figures.sequential_model`) <out>_norms, _perplexity, _cost, _downstream.
Also reads folders of the unified-editing code.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from common.errors import UserError
from experiments.results import run_folder
from experiments.results.names import MEASURES, SCORED
from experiments.results.retention import BUCKET, bucket_means, Forgetting, forgetting, moving_average, retention_curve, WINDOW
from experiments.results.runs import describe
from experiments.results.sequences import read_sequence, SequenceResults
from experiments.run.cli import run_program
from figures import lines, sequential_model
from figures.program import figure_parser

DRAWN = ("success", "acc", "generated_contains")
"""Rows of panels: measures."""
BINS = 10
HISTOGRAMS = 4
"""Side by side, at most."""

Runs = Sequence[tuple[str, SequenceResults]]
"""(label, run)."""


def draw_retention(runs: Runs) -> plt.Figure | None:
    """Earlier edits, measured again, over the edits in the model; None where no run has a history."""
    curves = {(group, measure): [retention_curve(run.history, f"{group}_{measure}") for _, run in runs]
              for measure in DRAWN for group in SCORED}
    return _grid(runs, curves, lambda ax, number, curve: lines.plot(ax, number, *list(zip(*curve))[:2]),
                 "edits in the model", "mean over earlier edits, %")


def draw_current(runs: Runs) -> plt.Figure | None:
    """Each edit right after its batch: means of buckets, and their trailing average; None where no run has cases."""
    def draw(ax, number, values):
        edits, means = bucket_means(values)
        lines.faint(ax, number, edits, 100 * means)
        lines.plot(ax, number, edits, 100 * moving_average(means))

    values = {(group, measure): [[case.get(f"{group}_{measure}") for case in run.cases] for _, run in runs]
              for measure in DRAWN for group in SCORED}
    long_enough = {key: [curve if len(curve) >= BUCKET and set(curve) != {None} else [] for curve in curves]
                   for key, curves in values.items()}
    average = Line2D([], [], color="0.75", linewidth=0.6,
                     label=f"thin: mean of {BUCKET} edits; thick: trailing mean of {WINDOW} such")
    return _grid(runs, long_enough, draw, "edits in the model", "just edited, %", average)


def _grid(runs: Runs, data, draw, x: str, y: str, *more: Line2D) -> plt.Figure | None:
    """A row of panels for each measure and a column for each group. data: {(group, measure): what to draw, a run}."""
    measures = [measure for measure in DRAWN if any(any(data[group, measure]) for group in SCORED)]
    if not measures:
        return None
    figure, axes = lines.panels(len(measures), len(SCORED), legend=len(runs) + len(more), sharex=True, sharey=True)
    for row, measure in zip(axes, measures):
        for ax, (group, title) in zip(row, SCORED.items()):
            for number, values in enumerate(data[group, measure]):
                if values:
                    draw(ax, number, values)
            lines.label_axes(ax, title=title if measure == measures[0] else "", x=x if measure == measures[-1] else "",
                             y="{}\n({})".format(MEASURES[measure].replace(" ", "\n", 1), y) if group == "rewrite" else "")
            ax.set_ylim(-3, 103)
    lines.legend(figure, [label for label, _ in runs], None, *more)
    return figure


def draw_forgetting(runs: Runs) -> plt.Figure | None:
    """How long facts last, and how many are forgotten; None where no run with a history of all its edits learnt anything.

    A history of sampled edits (``--history_sample``) can't tell: what was not drawn would pass for kept.
    """
    shown = [(number, forgetting(run.cases, run.history), sorted(run.history)) for number, (_, run) in enumerate(runs)
             if run.history and all(len(measured) == edits for edits, measured in run.history.items())]
    if not any(facts.learnt.size for _, facts, _ in shown):
        return None
    rows = -(-len(shown) // HISTOGRAMS)
    columns = -(-len(shown) // rows)
    figure = plt.figure(figsize=(max(6.5, 2.2 * columns), 1.9 * rows + 2.6 + 0.17 * len(shown)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.9 * rows, 2.6 + 0.17 * len(shown)])
    axes = top.subplots(rows, columns, squeeze=False)
    edges = np.linspace(0, max((facts.lengths.max(initial=1) for _, facts, _ in shown)), BINS + 1)
    for ax, (number, facts, _) in zip(axes.flat, shown):
        _histogram(ax, facts, edges, runs[number][1].about.get("alg_name", runs[number][0]))
    for ax in list(axes.flat)[len(shown):]:
        ax.set_visible(False)
    for ax in axes[:, 0]:
        ax.set_ylabel("forgotten facts", fontsize=8)
    top.supxlabel("edits from a fact's own to when it was first found forgotten", fontsize=8)

    of_edits, of_learnt = bottom.subplots(1, 2, sharey=True)
    for number, facts, times in shown:
        shares = np.array([facts.share(edits) for edits in times])
        for ax, values in zip((of_edits, of_learnt), shares.T):
            lines.plot(ax, number, times, values)
    lines.label_axes(of_edits, "edits in the model", "facts forgotten (%)", "of all edits")
    lines.label_axes(of_learnt, "edits in the model", "", "of the facts that were learnt")
    of_edits.set_ylim(bottom=-0.03 * of_edits.get_ylim()[1])
    lines.legend(bottom, [label for label, _ in runs], [number for number, *_ in shown])
    return figure


def _histogram(ax: plt.Axes, facts: Forgetting, edges: np.ndarray, name: str) -> None:
    lengths = facts.lengths
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.hist(lengths, edges, color="0.8", edgecolor="black", linewidth=0.7)
    moments = f"mean {lengths.mean():.1f}, std {lengths.std():.1f}" if lengths.size else "none"
    lines.label_axes(ax, title=f"{name}: {lengths.size} of {facts.learnt.size} learnt\n{moments}")


FIGURES = {
    "retention": (draw_retention, "no run has a history (--history_eval_steps)"),
    "current": (draw_current, f"no run has {BUCKET} cases that were measured right after their batch"),
    "forgetting": (draw_forgetting, "no run has a history (--history_eval_steps) of facts that were learnt"),
    **sequential_model.FIGURES,
}
"""{end of the file's name: (function that draws it, what is missing where it returns None)}."""


def main(runs: Sequence[str | Path], out: str | Path, last_token: bool = False) -> list[Path]:
    """Draws what the runs hold; returns the files written. UserError where that is nothing, or a run is not sequential."""
    sequences = [read_sequence(path, last_token) for run in runs for path in run_folder.runs_in(Path(run))]
    if not sequences:
        raise UserError(f"no runs in {', '.join(map(str, runs))}")
    named = [(describe(run.about) + (" a batch" if "num_edits" in run.about else ""), run) for run in sequences]
    files = []
    for name, (draw, missing) in FIGURES.items():
        figure = draw(named)
        if figure is None:
            print(f"not drawn: {name}; {missing}")
        else:
            files += lines.save(figure, f"{out}_{name}")
    if not files:
        raise UserError(f"nothing to draw in {', '.join(map(str, runs))}")
    return files


def command() -> None:
    parser = figure_parser("sequential", __doc__, "results/sequential", "beginning of the files' paths")
    parser.add_argument("runs", nargs="+", help="run folders, or folders of runs")
    parser.add_argument("--last_token", action="store_true",
                        help="zsRE: as published, only the last token of an answer counts, but for neighbourhood")
    print("written:", *main(**vars(parser.parse_args())))


if __name__ == "__main__":
    run_program(command)
