"""SERAC's scope classifier at every threshold: what goes to its edit, what is let in by mistake, and precision against recall.

    python -m experiments.scope outputs/<run>
    python -m figures.scope outputs/<run>/scope.json [more runs] --labels embedding cross-encoder --out results/scope
"""
from pathlib import Path

import matplotlib.pyplot as plt

from common.errors import UserError
from data.files import read_json
from experiments.run.cli import run_program
from figures.lines import label_axes, save, style
from figures.program import figure_parser


def draw(runs: list[dict], labels: list[str]) -> plt.Figure:
    """Left: recall (thick) and false positives (thin) in percent by threshold; right: precision by recall. A cross is the
    published threshold, a dot the calibrated one."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.2), layout="constrained")
    for number, (run, label) in enumerate(zip(runs, labels)):
        look = {**style(number), "marker": ""}
        curves = {key: [100 * point[key] for point in run["sweep"]] for key in ("recall", "false_positives", "precision")}
        thresholds = [point["threshold"] for point in run["sweep"]]
        for key, width in (("recall", 1.8), ("false_positives", 0.8)):
            left.plot(thresholds, curves[key], **{**look, "linewidth": width}, label=f"{label}: {key.replace('_', ' ')}",
                      drawstyle="steps-post")
        right.plot(curves["recall"], curves["precision"], **look, label=label)
        for name, marker in (("published", "x"), ("calibrated", "o")):
            at, mark = run[name], {"marker": marker, "color": look["color"], "markersize": 5, "linestyle": ""}
            left.plot([at["threshold"]] * 2, [100 * at["recall"], 100 * at["false_positives"]], **mark)
            right.plot(100 * at["recall"], 100 * at["precision"], **mark)
    for name, marker in (("threshold as published", "x"), ("calibrated", "o")):
        left.plot([], [], marker=marker, color="0.4", markersize=5, linestyle="", label=name)
    label_axes(left, "threshold", "inputs (%)", f"{runs[0]['edits']} edits at once")
    left.set_xticks([0, 0.25, 0.5, 0.75, 1])
    label_axes(right, "recall (%)", "precision (%)")
    left.legend(frameon=False, fontsize=7, loc="center")
    right.legend(frameon=False, fontsize=7, loc="lower left")
    return figure


def _is_scope(run) -> bool:
    if not isinstance(run, dict) or not {"sweep", "published", "calibrated", "edits"} <= run.keys():
        return False
    if not isinstance(run["sweep"], list):
        return False
    points = [run["published"], run["calibrated"], *(run["sweep"] or [None])]
    keys = {"threshold", "recall", "false_positives", "precision"}
    return all(isinstance(point, dict) and keys <= point.keys() for point in points)


def main(argv=None) -> None:
    parser = figure_parser("scope", __doc__, None, "path of the files without ending; by default beside the first file")
    parser.add_argument("files", nargs="+", type=Path, help="scope.json of runs")
    parser.add_argument("--labels", nargs="+", help="what the runs are called; by default their folders")
    args = parser.parse_args(argv)
    runs = [read_json(file) for file in args.files]
    for file, run in zip(args.files, runs):
        if not _is_scope(run):
            raise UserError(f"{file}: not a scope.json of experiments.scope")
    labels = args.labels or [file.parent.name for file in args.files]
    if len(labels) != len(runs):
        raise UserError(f"there are {len(runs)} files and {len(labels)} labels")
    print("written:", *save(draw(runs, labels), args.out or args.files[0].with_suffix("")))


if __name__ == "__main__":
    run_program(main)
