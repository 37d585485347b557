"""``python -m figures.sweep results/sweeps/NAME``: all jobs of a sweep (experiments.sweep) in one figure, as PDF and PNG.

The x axis is the varied number with the most values (or, if none varies, the first varied setting, its values side by side); a
line for each combination of the others; seeds are averaged. Bars are standard errors over cases, of several seeds the root mean
square. Written as <out>.pdf and .png, by default "sweep" in the sweep's folder.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import AutoLocator, NullLocator

from common.errors import UserError
from experiments.results import run_folder
from experiments.results.names import HEADLINES
from experiments.results.sweep_table import METRICS, TABLE
from experiments.run.cli import run_program
from figures import lines
from figures.program import figure_parser

SUCCESSES, ACCURACIES = (list(HEADLINES[schema]) for schema in ("counterfact", "zsre"))

Points = Mapping[str, Mapping[Any, Sequence[Mapping[str, Any]]]]
"""{line: {x: the jobs there, one for each seed}}"""


def read(folder: Path) -> tuple[str, Points]:
    """(name of the x axis, the jobs with results). Raises UserError if there are none."""
    if not (folder / TABLE).is_file():
        raise UserError(f"{folder}: no {TABLE} there, so it is no folder of experiments.sweep")
    content = run_folder.read_json(folder / TABLE)
    lists = isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("jobs", "varied"))
    if not lists or not all(map(_is_job, content["jobs"])):
        raise UserError(f"{folder / TABLE}: was not written by experiments.sweep")
    jobs = [job for job in content["jobs"] if any(f"post_{key}" in job["statistics"] for key in METRICS)]
    if not jobs:
        raise UserError(f"{folder}: no job has results to draw")
    varied = [key for key in content["varied"] if key != "seed"]
    values = {key: {repr(job["settings"].get(key)): job["settings"].get(key) for job in jobs} for key in varied}
    numbers = [key for key in varied if len(values[key]) > 1 and all(_is_number(value) for value in values[key].values())]
    x_name = max(numbers, key=lambda key: len(values[key]), default=next(iter(varied), "num_edits"))
    points: dict[str, dict[Any, list[Mapping[str, Any]]]] = {}
    for job in jobs:
        line = ", ".join(f"{_short(key)} {job['settings'].get(key)}" for key in varied if key != x_name) or "all jobs"
        x = job["settings"].get(x_name)
        points.setdefault(line, {}).setdefault(x if _is_number(x) else str(x), []).append(job["statistics"])
    return x_name, points


def draw(x_name: str, points: Points) -> plt.Figure:
    """A panel for each metric; a line for each combination of settings."""
    successes = any(f"post_{SUCCESSES[0]}" in job for runs in points.values() for jobs in runs.values() for job in jobs)
    keys = SUCCESSES if successes else ACCURACIES
    names = list(dict.fromkeys(x for runs in points.values() for x in runs))
    words = not all(_is_number(x) for x in names)
    places = {x: place for place, x in enumerate(names)} if words else {x: x for x in names}
    positive = [x for x in names if not words and x > 0]
    figure, axes = lines.panels(1, len(keys), width=2.6, height=2.2, legend=len(points) + 1, sharey=True)
    for ax, key in zip(axes[0], keys):
        for number, runs in enumerate(points.values()):
            in_order = sorted(runs.items(), key=lambda item: places[item[0]])
            drawn = [(places[x], *_mean(jobs, f"post_{key}")) for x, jobs in in_order
                     if any(f"post_{key}" in job for job in jobs)]
            if drawn:
                x, means, errors = zip(*drawn)
                lines.errors(ax, x, means, errors)
                lines.plot(ax, number, x, means)
        lines.label_axes(ax, _short(x_name), "% (mean over cases)" if key == keys[0] else "", METRICS[key])
        ax.set_ylim(0, 105)
        if words:
            ax.set_xticks(range(len(names)), names, rotation=30, ha="right")
        elif len(positive) == len(names) and max(names) >= 10 * min(names):
            ax.set_xscale("log")
            ax.xaxis.set_minor_locator(NullLocator())
        elif not all(float(x).is_integer() for x in names):
            ax.xaxis.set_major_locator(AutoLocator())
    lines.legend(figure, list(points))
    return figure


def _mean(jobs: Sequence[Mapping[str, Any]], key: str) -> tuple[float, float]:
    """(mean over seeds, standard error)"""
    values = [job[key] for job in jobs if key in job]
    return fmean(value["mean"] for value in values), math.sqrt(fmean((value["se"] or 0.0) ** 2 for value in values))


def _is_job(job: Any) -> bool:
    form = {"mean": (int, float), "se": (int, float, type(None))}
    return run_folder.has_form(job, {"statistics": dict, "settings": dict}) and all(
        run_folder.has_form(value, form) for value in job["statistics"].values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _short(key: str) -> str:
    return key.removeprefix("hparams.")


def main(folder: str | Path, out: str | Path | None = None) -> list[Path]:
    """Draws the figure; returns the files."""
    return lines.save(draw(*read(Path(folder))), out or Path(folder) / "sweep")


def command(argv: Sequence[str] | None = None) -> None:
    parser = figure_parser("sweep", __doc__, None, "path of the files without ending; by default sweep in the folder")
    parser.add_argument("folder", help="folder of the sweep")
    print("written:", *main(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    run_program(command)
