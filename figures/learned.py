"""Training curves of learned editors, as PDF and PNG.

    python -m figures.learned outputs/2026-01-31_12-00-00_ab12 outputs/... --labels MEND,KE

A panel for each quantity, a line for each run: what episodes of validation report, over the iterations; training in grey.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

from common.errors import UserError
from editors.learned.run_log import LOG
from experiments.run.cli import run_program
from figures.lines import faint, label_axes, legend, panels, plot, save
from figures.program import figure_parser

PANELS = {
    "edit/acc": ("edits that succeed (%)", 100), "acc/post": ("unrelated inputs right (%)", 100),
    "kl/edit": ("divergence elsewhere (nats)", 1), "loss/total_edit": ("loss of an episode", 1),
}
"""Quantity of the log -> (its axis, factor)."""


def read_log(run: Path) -> list[dict[str, float]]:
    """The lines of a run's log. Raises UserError if there is none, or it is damaged."""
    path = run / LOG if run.is_dir() else run
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        raise UserError(f"{path}: no such log; give the folder of a run of experiments.train") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a log of experiments.train ({error})") from error
    if not lines or not all(isinstance(line, dict) and "step" in line for line in lines):
        raise UserError(f"{path}: not a log of experiments.train")
    return lines


def curve(log: Sequence[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """(iterations, values) of what the log has of a quantity."""
    points = [(line["step"], line[key]) for line in log if key in line]
    return [step for step, _ in points], [value for _, value in points]


def draw(logs: Sequence[Sequence[dict[str, float]]], labels: Sequence[str]) -> plt.Figure:
    """The figure of several runs."""
    figure, axes = panels(2, 2, legend=len(labels))
    for ax, (key, (name, factor)) in zip(axes.flat, PANELS.items()):
        for number, log in enumerate(logs):
            for suffix, draw_line in (("_train", faint), ("_val", plot)):
                steps, values = curve(log, key + suffix)
                if steps:
                    draw_line(ax, number, steps, [factor * value for value in values])
        label_axes(ax, "episodes", name)
        if factor == 100:
            ax.set_ylim(-3, 103)
        elif any((line.get_ydata() > 0).all() for line in ax.get_lines()):
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
    legend(figure, labels)
    return figure


def main(argv=None) -> None:
    parser = figure_parser("learned", __doc__, "results/learned_training")
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs of experiments.train")
    parser.add_argument("--labels", help="names of the runs, with commas between them; by default their folders'")
    args = parser.parse_args(argv)
    labels = args.labels.split(",") if args.labels else [run.name for run in args.runs]
    if len(labels) != len(args.runs):
        parser.error(f"{len(labels)} labels for {len(args.runs)} runs")
    print("written:", *save(draw([read_log(run) for run in args.runs], labels), args.out))


if __name__ == "__main__":
    run_program(main)
