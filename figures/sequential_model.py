"""The whole model in sequential runs, over the edits in it: norms, perplexity, memory and seconds, downstream tasks."""

import re
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from data.downstream import TASKS
from experiments.results.retention import moving_average, WINDOW
from experiments.results.sequences import SequenceResults
from figures import lines

NORMS = {
    "relative_distance": "$|W - W_0|\\,/\\,|W_0|$", "distance_from_original": "$|W - W_0|\\,/$ elements", "norm": "$|W|$",
}
DOWNSTREAM = {"accuracy": "accuracy (%)", "f1": "F1 (%)", "accuracy_new": "accuracy of the\nlikeliest label (%)"}
EDITS = "edits in the model"

Runs = Sequence[tuple[str, SequenceResults]]


def draw_norms(runs: Runs) -> plt.Figure | None:
    """Edited weights: a column for each, a row for each measure (Frobenius norms)."""
    weights_of_runs = [_weights(run) for _, run in runs]
    names = sorted({name for weights in weights_of_runs for name in weights}, key=_natural)
    measures = [measure for measure in NORMS if any(measure in point for weights in weights_of_runs
                                                    for points in weights.values() for _, point in points)]
    if not measures:
        return None
    figure, axes = lines.panels(len(measures), len(names), width=2.4, legend=len(runs), sharex=True, sharey="row")
    for row, measure in zip(axes, measures):
        for ax, name in zip(row, names):
            for number, weights in enumerate(weights_of_runs):
                points = [(edits, point[measure]) for edits, point in weights.get(name, ()) if measure in point]
                if points:
                    lines.plot(ax, number, *zip(*points))
            lines.label_axes(ax, EDITS if measure == measures[-1] else "", NORMS[measure] if name == names[0] else "",
                             name if measure == measures[0] else "")
        lines.scale(row)
    lines.legend(figure, [label for label, _ in runs])
    return figure


def _weights(run: SequenceResults) -> dict[str, list[tuple[int, dict[str, float]]]]:
    """{name: [(edits, measures)]} of the edited weights; "layer 5", "layer 5, bias" where only one is edited in each layer."""
    weights: dict[str, list] = {}
    for batch in run.batches:
        for name, point in batch.get("weights", {}).items():
            weights.setdefault(name, []).append((batch["edits"], point))
    numbers = {name: re.search(r"(?:^|\.)(\d+)(?:\.|$)", name) for name in weights}
    layers = {name: f"layer {match[1]}" + ", bias" * name.endswith(".bias") for name, match in numbers.items() if match}
    if len(set(layers.values())) < len(weights):
        return weights
    return {layers[name]: points for name, points in weights.items()}


def _natural(name: str) -> list[Any]:
    """Sorts layer 9 before layer 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def draw_perplexity(runs: Runs) -> plt.Figure | None:
    """A line for each run."""
    curves = [_series(run, "perplexity") for _, run in runs]
    if not any(curves):
        return None
    figure, ((ax,),) = lines.panels(1, 1, width=4.5, height=2.8, legend=len(runs))
    for number, curve in enumerate(curves):
        if curve:
            lines.plot(ax, number, *zip(*curve))
    lines.label_axes(ax, EDITS, "perplexity")
    lines.scale([ax])
    lines.legend(figure, [label for label, _ in runs])
    return figure


def draw_cost(runs: Runs) -> plt.Figure | None:
    """Memory of the process and seconds that the edit of a batch took; both should stay level."""
    memory, seconds = ([_series(run, key) for _, run in runs] for key in ("memory_mb", "seconds"))
    if not any(memory) and not any(seconds):
        return None
    figure, ((left, right),) = lines.panels(1, 2, width=3.4, height=2.5, legend=len(runs) + 1, sharex=True)
    for number, (of_memory, of_seconds) in enumerate(zip(memory, seconds)):
        if of_memory:
            lines.plot(left, number, *zip(*of_memory))
        if of_seconds:
            edits, values = zip(*of_seconds)
            lines.faint(right, number, edits, values)
            lines.plot(right, number, edits, moving_average(values))
    lines.label_axes(left, EDITS, "memory of the process (MiB)")
    lines.label_axes(right, EDITS, "seconds an edit batch")
    for ax in (left, right):
        if ax.get_lines():
            lines.scale([ax])
    average = Line2D([], [], color="0.75", linewidth=0.6, label=f"thin: each batch; thick: trailing mean of {WINDOW}")
    lines.legend(figure, [label for label, _ in runs], None, average)
    return figure


def draw_downstream(runs: Runs) -> plt.Figure | None:
    """A column for each task, a row for each measure."""
    curves = [{task: [(batch["edits"], batch["downstream"][task]) for batch in run.batches
                      if task in batch.get("downstream", {})] for task in TASKS} for _, run in runs]
    tasks = [task for task in TASKS if any(series[task] for series in curves)]
    if not tasks:
        return None
    figure, axes = lines.panels(len(DOWNSTREAM), len(tasks), width=2.1, height=1.8, legend=len(runs) + 1,
                                sharex=True, sharey=True)
    for row, (measure, title) in zip(axes, DOWNSTREAM.items()):
        for ax, task in zip(row, tasks):
            for number, series in enumerate(curves):
                points = [(edits, 100 * figures[measure]) for edits, figures in series[task] if measure in figures]
                if points:
                    lines.plot(ax, number, *zip(*points))
            majority = [figures["majority"] for series in curves for _, figures in series[task] if "majority" in figures]
            if majority and measure != "f1":
                ax.axhline(100 * majority[0], color="0.6", linewidth=0.8, zorder=1)
            tests = max(figures["total"] for series in curves for _, figures in series[task])
            lines.label_axes(ax, EDITS if measure == list(DOWNSTREAM)[-1] else "", title if task == tasks[0] else "",
                             f"{task} ({tests} tests)" if measure == list(DOWNSTREAM)[0] else "")
            ax.set_ylim(-3, 103)
    majority_line = Line2D([], [], color="0.6", linewidth=0.8, label="always the commonest answer")
    lines.legend(figure, [label for label, _ in runs], None, majority_line)
    return figure


def _series(run: SequenceResults, key: str) -> list[tuple[int, float]]:
    return [(batch["edits"], batch[key]) for batch in run.batches if batch.get(key) is not None]


FIGURES = {
    "norms": (draw_norms, "no run has norms of weights"),
    "perplexity": (draw_perplexity, "no run has perplexities (--perplexity_corpus)"),
    "cost": (draw_cost, "no run has memory or seconds"),
    "downstream": (draw_downstream, "no run has downstream tasks (--do_downstream_eval)"),
}
"""{end of the file's name: (function that draws it, what is missing where it returns None)}."""
