"""``python -m figures.scaling``: what more edits at once leave of their quality, all editors side by side, as PDF and PNG.

    python -m figures.scaling results/scaling/world --out results/scaling/world/scaling

Figure 5 of MEMIT (Meng et al. 2023) and figures of the unified-editing papers. FOLDERs hold runs of experiments.evaluate,
however deep, one for each editor and number of edits in a batch (scripts/scaling_curves.sh). Bars are standard errors over
cases; the dotted line is the unedited model's value at the smallest number of edits. Black marks are published results, of
another model (named in the legend); --no_published leaves them out. A cross marks points whose unedited model prefers the true
answer at fewer than 70 % of the neighbours: it does not know them, so there the neighbourhood, and with it the score, says
little. Also written: <out>.csv.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from common.errors import UserError
from experiments.results import summary
from experiments.results.names import HEADLINES
from experiments.results.runs import read_run, runs_below
from experiments.results.summary import Statistics
from experiments.results.tables import Table
from experiments.run.cli import run_program
from figures import lines
from figures.program import figure_parser

KNOWN = 70
"""% of the neighbourhood prompts that a model gets right if it knows the facts; one that knows none gets about 50."""
PUBLISHED_NAME = "published for Llama-2 7B on CounterFact (FastMEMIT, tables 26 and 31)"
PUBLISHED = {  # {editor: {edits in a batch: efficacy, paraphrase, neighbourhood, score}}
    "EMMET": {1: (99.5, 98.5, 59.0, 80.75), 16: (99.38, 95.62, 82.94, 92.08), 64: (98.44, 97.19, 78.0, 90.17),
              256: (99.61, 97.89, 62.1, 82.51), 1024: (98.73, 96.14, 57.17, 78.90)},
    "MEMIT": {1: (96.6, 89.4, 60.82, 78.98), 16: (99.38, 99.38, 65.12, 84.55), 64: (98.12, 97.03, 61.09, 81.37),
              256: (96.33, 93.59, 56.85, 77.60), 1024: (93.95, 90.45, 60.17, 78.28)},
}
MARK = {"linestyle": "none", "markersize": 4, "color": "black"}
CROSS = {"marker": "x", "linestyle": "none", "markersize": 10, "markeredgewidth": 1.2, "color": "black"}

Points = Mapping[str, Mapping[int, Statistics]]
"""{editor: {edits in a batch: the run's statistics}}"""


def read(folders: Sequence[str | Path]) -> tuple[str, Points]:
    """(schema of the data, the runs that have cases). Raises UserError for runs that don't go together."""
    points: dict[str, dict[int, Statistics]] = {}
    models, schemas = {}, {}
    for run in runs_below(folders):
        about, lists = read_run(run)
        if not lists:
            print(f"left out: {run}, it has no cases yet", file=sys.stderr)
            continue
        statistics = summary.statistics(lists)
        schema = "counterfact" if "post_score" in statistics else "zsre"
        if f"post_{next(iter(HEADLINES[schema]))}" not in statistics:
            raise UserError(f"{run}: its cases have neither success nor accuracy at all prompts; "
                            "finish it with --continue_from_run")
        models[about["model_name"]], schemas[schema] = run, run
        runs = points.setdefault(about["alg_name"], {})
        if about["num_edits"] in runs:
            raise UserError(f"{run}: a second run of {about['alg_name']} with {about['num_edits']} edits; "
                            "give only one of them")
        runs[about["num_edits"]] = statistics
    if not points:
        raise UserError(f"no runs with cases in {', '.join(map(str, folders))}")
    for kind, examples in (("models", models), ("schemas", schemas)):
        if len(examples) > 1:
            raise UserError(f"runs of different {kind}: " + ", ".join(f"{name} ({run})" for name, run in examples.items()))
    return next(iter(schemas)), {editor: dict(sorted(runs.items())) for editor, runs in sorted(points.items())}


def draw(schema: str, points: Points, published: bool = True) -> plt.Figure:
    """A panel for each metric, a line for each editor over the number of edits."""
    panels = HEADLINES[schema]
    shown = [editor for editor in points if editor in PUBLISHED] if published and schema == "counterfact" else []
    figure, axes = lines.panels(1, len(panels), width=2.6, height=2.2, legend=len(points) + len(shown) + 2, sharey=True)
    smallest = min(((min(runs), editor) for editor, runs in points.items()), default=None)
    first = points[smallest[1]][smallest[0]]
    for ax, (key, title) in zip(axes[0], panels.items()):
        if f"pre_{key}" in first:
            ax.axhline(first[f"pre_{key}"]["mean"], **lines.DOTTED, zorder=0)
        for number, (editor, runs) in enumerate(points.items()):
            x, values = list(runs), [runs[edits][f"post_{key}"] for edits in runs]
            means = [value["mean"] for value in values]
            lines.errors(ax, x, means, [value["se"] for value in values])
            lines.plot(ax, number, x, means)
            if title in ("score", "neighbourhood"):
                unknown = [edits for edits in x if not _knows(runs[edits])]
                ax.plot(unknown, [runs[edits][f"post_{key}"]["mean"] for edits in unknown], **CROSS)
            if editor in shown:
                place = ("efficacy", "paraphrase", "neighbourhood", "score").index(title)
                ax.plot(list(PUBLISHED[editor]), [values[place] for values in PUBLISHED[editor].values()], zorder=4,
                        marker=lines.style(number)["marker"], **MARK)
        lines.label_axes(ax, x="edits at once", y="% (mean over cases)" if ax is axes[0, 0] else "", title=title)
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_ylim(0, 105)
    more = [Line2D([], [], label="unedited model", **lines.DOTTED)]
    if shown:
        shapes = {editor: lines.style(number)["marker"] for number, editor in enumerate(points)}
        more += [Line2D([], [], label=f"{editor}, {PUBLISHED_NAME}", marker=shapes[editor], **MARK) for editor in shown]
    if any(not _knows(statistics) for runs in points.values() for statistics in runs.values()):
        more.append(Line2D([], [], label="facts that the model does not know", **CROSS))
    lines.legend(figure, list(points), None, *more)
    return figure


def table(schema: str, points: Points) -> Table:
    """Editor, edits, cases, mean and standard error of each metric after and before."""
    keys = [f"{prefix}_{key}" for prefix in ("post", "pre") for key in HEADLINES[schema]]
    rows = []
    for editor, runs in points.items():
        for edits, statistics in runs.items():
            values = [statistics.get(key, {}).get(part) for key in keys for part in ("mean", "se")]
            numbers = (None if value is None else f"{value:.2f}" for value in values)
            rows.append([editor, edits, statistics[keys[1]]["n"], _knows(statistics), *numbers])
    titles = [f"{key}{part}" for key in keys for part in ("", "_se")]
    return Table(["editor", "num_edits", "cases", "knows_neighbours", *titles], rows)


def _knows(statistics: Statistics) -> bool:
    """Whether the unedited model knows the neighbours; of a run without pre that cannot be told, and yes is assumed."""
    return statistics.get("pre_neighborhood_success", {"mean": 100})["mean"] >= KNOWN


def main(folders: Sequence[str | Path], out: str | Path, published: bool = True) -> list[Path]:
    """Draws the figure and writes the table; returns the files."""
    schema, points = read(folders)
    return [*lines.save(draw(schema, points, published), out), table(schema, points).save(f"{out}.csv")]


def command(argv: Sequence[str] | None = None) -> None:
    parser = figure_parser("scaling", __doc__, "results/scaling")
    parser.add_argument("folders", nargs="+", help="folders of runs, searched however deep")
    parser.add_argument("--no_published", action="store_true", help="draw no published results")
    args = parser.parse_args(argv)
    print("written:", *main(args.folders, args.out, not args.no_published))


if __name__ == "__main__":
    run_program(command)
