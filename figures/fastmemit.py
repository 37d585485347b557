"""``python -m figures.fastmemit``: statistics from few keys against the full ones, as PDF and PNG, and as tables.

    python -m figures.fastmemit results/fastmemit/world --out results/fastmemit/world/fastmemit

Figures 3 and 4 of FastMEMIT (Gupta et al. 2025): what an editor reaches with a second moment of m d_in keys, in percent of what
it reaches with the full one, for each batch size. Unlike there, ratios above 100 % are shown. Bars and ± are standard errors
over cases: jackknife, as both figures are of the same cases. Tables: <out>.md, and <out>.csv with everything.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float

from common.errors import UserError
from data.files import write_text
from experiments.results import run_folder
from experiments.results.harmonic_score import jackknife_error, means_without_one
from experiments.results.names import SCORED
from experiments.results.runs import read_run, runs_below
from experiments.results.tables import Cell, Table
from experiments.run.cli import run_program
from figures import lines
from figures.program import figure_parser

METRICS = {"score": tuple(SCORED.values()), **{name: (name,) for name in SCORED.values()}}
"""{metric: the success rates whose harmonic mean it is}."""
FULL = math.inf
"""m of the full statistics."""
GOAL = 95
STATISTICS = ("keys", "share", "documents", "rank", "condition", "ridge", "seconds")

Key = tuple[str, int, float]
"""(editor, edits in a batch, m)."""


@dataclass(frozen=True)
class Point:
    """A run."""

    path: Path
    cases: list[int]
    rates: Mapping[str, Float[np.ndarray, " cases"]]
    """Success from 0 to 1 of efficacy, paraphrase and neighbourhood."""
    statistics: Mapping[str, float]
    """The worst of the layers: keys, documents, seconds of the pass; of few keys also rank, condition and the ridge added."""

    def means(self, metric: str) -> Float[np.ndarray, "parts cases"]:
        return np.array([self.rates[name] for name in METRICS[metric]])


def read(folders: Sequence[str | Path]) -> dict[Key, Point]:
    """All runs in these folders, however deep. Raises UserError for runs that cannot be compared."""
    points: dict[Key, Point] = {}
    for run in runs_below(folders):
        key, point = _read_run(run)
        if key in points:
            raise UserError(f"{run} and {points[key].path} are both of {_name(key)}: give only one of them")
        points[key] = point
    if not points:
        raise UserError(f"no runs in {', '.join(map(str, folders))}")
    for (editor, batch, m), point in points.items():
        full = points.get((editor, batch, FULL))
        if full is None:
            raise UserError(f"{point.path}: no run of {_name((editor, batch, FULL))} to compare it with")
        if full.cases != point.cases:
            raise UserError(f"{point.path} has other cases than {full.path}: finish both with --continue_from_run")
    return dict(sorted(points.items()))


def _read_run(run: Path) -> tuple[Key, Point]:
    about, lists = read_run(run)
    try:
        rates = {name: np.array(lists[f"post_{group}_success"]) for group, name in SCORED.items()}
    except KeyError as error:
        raise UserError(f"{run}: its cases have no {error}; only data with a true answer (CounterFact's schema) has") from None
    if not (run / run_folder.STATISTICS).is_file():
        raise UserError(f"{run}: has no {run_folder.STATISTICS}: its editor uses no second moment, or an older version made it")
    layers = run_folder.read_json(run / run_folder.STATISTICS).values()
    worst = {"rank": min}
    statistics = {name: worst.get(name, max)(values) for name in STATISTICS
                  if (values := [layer[name] for layer in layers if name in layer])}
    m = run_folder.read_json(run / run_folder.PARAMS).get("dynamic_multiplier")
    return (about["alg_name"], about["num_edits"], FULL if m is None else m), Point(
        run, [case for case, _ in run_folder.case_files(run)], rates, statistics)


def percent(fast: Float[np.ndarray, "parts cases"], full: Float[np.ndarray, "parts cases"]) -> Cell:
    """Harmonic mean of the parts' means of ``fast`` in percent of that of ``full``, and its jackknife standard error over the
    cases, which both share; NaN where ``full`` has 0, and for the error of a single case."""
    ratio = float(_ratio(fast.mean(1), full.mean(1)))
    if full.shape[1] == 1:
        return Cell(ratio, math.nan)
    return Cell(ratio, jackknife_error(_ratio(means_without_one(fast), means_without_one(full))))


def _ratio(fast: np.ndarray, full: np.ndarray) -> np.ndarray:
    base = _harmonic(full)
    return 100 * _harmonic(fast) / np.where(base, base, math.nan)


def _harmonic(means: Float[np.ndarray, "parts ..."]) -> np.ndarray:
    """Harmonic mean over the parts; 0 if any is 0."""
    with np.errstate(divide="ignore"):
        return 1 / (1 / means).mean(0)


def draw(points: Mapping[Key, Point]) -> plt.Figure:
    """A row of panels for each editor, a column for each metric, a line for each batch size."""
    editors, batches, ms = (sorted({key[place] for key in points}) for place in range(3))
    figure, axes = lines.panels(len(editors), len(METRICS), width=2.3, legend=len(batches), sharex=True, sharey=True)
    for row, editor in zip(axes, editors):
        for ax, metric in zip(row, METRICS):
            ax.axhline(100, color="0.8", linewidth=0.8, zorder=0)
            ax.axhline(GOAL, **lines.DOTTED, zorder=0)
            for number, batch in enumerate(batches):
                drawn = [(place, *percent(points[key].means(metric), points[editor, batch, FULL].means(metric)))
                         for place, m in enumerate(ms) if (key := (editor, batch, m)) in points]
                if not drawn:
                    continue
                places, values, errors = zip(*drawn)
                x = np.array(places) + 0.09 * (number - (len(batches) - 1) / 2)  # bars beside each other
                lines.errors(ax, x, values, errors)
                lines.plot(ax, number, x, values)
            lines.label_axes(ax, x="keys / their width (m)" if editor == editors[-1] else "",
                             y=f"{editor}\n(% of full statistics)" if metric == "score" else "",
                             title=metric if editor == editors[0] else "")
            ax.set_xticks(range(len(ms)), ["full" if m == FULL else f"{m:g}" for m in ms])
            ax.set_xlim(-0.4, len(ms) - 0.6)
    cases = {batch: len(point.cases) for (_, batch, _), point in points.items()}
    lines.legend(figure, [f"{batch} edit{'s' * (batch > 1)} in a batch, {cases[batch]} cases" for batch in batches])
    return figure


def rows(points: Mapping[Key, Point]) -> list[dict[str, Any]]:
    """A row a run: its statistics, each metric in percent, and its percentage of the full statistics' with standard error."""
    records = []
    for (editor, batch, m), point in points.items():
        full = points[editor, batch, FULL]
        row = {"editor": editor, "m": "full" if m == FULL else f"{m:g}", "num_edits": batch, "cases": len(point.cases)}
        statistics = point.statistics | {"share": 100 * point.statistics["keys"] / full.statistics["keys"]}
        row |= {name: statistics.get(name) for name in STATISTICS}
        for metric in METRICS:
            row[metric] = 100 * float(_harmonic(point.means(metric).mean(1)))
            row[f"{metric}_percent"], row[f"{metric}_percent_se"] = percent(point.means(metric), full.means(metric))
        records.append(row)
    return records


def text_of(records: Sequence[Mapping[str, Any]]) -> str:
    """Two Markdown tables of :func:`rows`: what the statistics are made of, and scores in percent of the full statistics'."""
    of_statistics: dict[tuple, list[str]] = {}
    for row in records:
        of_statistics.setdefault((row["editor"], row["m"]), [_number(row[name]) for name in STATISTICS])
    ms = list(dict.fromkeys(row["m"] for row in records))
    of_scores: dict[tuple, dict[Any, Cell]] = {}
    for row in records:
        cell = Cell(row["score"]) if row["m"] == "full" else Cell(row["score_percent"], row["score_percent_se"])
        of_scores.setdefault((row["editor"], row["num_edits"], row["cases"]), {})[row["m"]] = cell
    heads = ["keys", "% of all", "documents", "rank (least of the layers)", "condition (largest)", "ridge (largest)", "seconds"]
    return "\n".join([
        Table(["editor", "m", *heads], [[*key, *cells] for key, cells in of_statistics.items()]).markdown(),
        "", "Score in percent of that with the full statistics; \"full\": the score itself.", "",
        Table(["editor", "edits in a batch", "cases", *(m if m == "full" else f"m = {m}" for m in ms)],
              [[*key, *map(cells.get, ms)] for key, cells in of_scores.items()]).markdown(), ""])


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _name(key: Key) -> str:
    editor, batch, m = key
    return f"{editor}, batches of {batch}, {'full statistics' if m == FULL else f'm = {m:g}'}"


def main(folders: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Draws the figure of the runs in these folders and writes the tables; returns the files written."""
    points = read(folders)
    records = rows(points)
    text = text_of(records)
    files = lines.save(draw(points), out)
    write_text(f"{out}.md", text)
    return [*files, Path(f"{out}.md"), Table.of_records(records).save(f"{out}.csv")]


def command() -> None:
    parser = figure_parser("fastmemit", __doc__, "results/fastmemit")
    parser.add_argument("folders", nargs="+", help="run folders, or folders with runs somewhere in them")
    args = parser.parse_args()
    files = main(args.folders, args.out)
    print(files[2].read_text())
    print("written:", *files)


if __name__ == "__main__":
    run_program(command)
