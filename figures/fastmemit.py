"""``python -m figures.fastmemit``: statistics from few keys against the full ones, as PDF and PNG, and as tables.

    python -m figures.fastmemit results/fastmemit/world --out results/fastmemit/world/fastmemit

Figures 3 and 4 of FastMEMIT (Gupta et al. 2025): what an editor reaches with a second moment of m d_in keys, in percent of what
it reaches with the full one, for each batch size. Unlike there, ratios above 100 % are shown. Bars and ± are standard errors
over cases: jackknife, as both figures are of the same cases. Tables: <out>.md, and <out>.csv with everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float

from common.errors import UserError
from experiments.results import run_folder, tables
from experiments.run.cli import Parser, run_program
from experiments.summarize import read_run
from figures import lines

GROUPS = {"efficacy": "rewrite", "paraphrase": "paraphrase", "neighbourhood": "neighborhood"}
METRICS = {"score": tuple(GROUPS), **{name: (name,) for name in GROUPS}}
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
    """Success from 0 to 1, by name in GROUPS."""
    statistics: Mapping[str, float]
    """Of the layer with the worst: keys, documents, seconds of the pass; of few keys also rank, condition and the ridge added."""

    def means(self, metric: str) -> Float[np.ndarray, "parts cases"]:
        return np.array([self.rates[name] for name in METRICS[metric]])


def read(folders: Sequence[str | Path]) -> dict[Key, Point]:
    """All runs in these folders, however deep. Raises UserError for runs that cannot be compared."""
    points: dict[Key, Point] = {}
    for run in sorted(path.parent for folder in folders for path in Path(folder).rglob(run_folder.RUN)):
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
        rates = {name: np.array(lists[f"post_{group}_success"]) for name, group in GROUPS.items()}
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


def percent(fast: Float[np.ndarray, "parts cases"], full: Float[np.ndarray, "parts cases"]) -> tuple[float, float]:
    """(harmonic mean of the parts' means of `fast` in percent of that of `full`, its jackknife standard error over the cases,
    which both share); NaN where `full` has 0, and for the error of a single case."""
    n = full.shape[1]
    if n == 1:
        return float(_ratio(fast.mean(1), full.mean(1))), math.nan
    left_out = _ratio(*((values.sum(1, keepdims=True) - values) / (n - 1) for values in (fast, full)))
    return float(_ratio(fast.mean(1), full.mean(1))), float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))


def _ratio(fast: np.ndarray, full: np.ndarray) -> np.ndarray:
    base = _harmonic(full)
    return 100 * _harmonic(fast) / np.where(base, base, math.nan)


def _harmonic(means: Float[np.ndarray, "parts ..."]) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return 1 / (1 / means).mean(0)


def draw(points: Mapping[Key, Point]) -> plt.Figure:
    """A row of panels for each editor, a column for each metric, a line for each batch size."""
    editors, batches, ms = (sorted({key[place] for key in points}) for place in range(3))
    figure, axes = lines.panels(len(editors), len(METRICS), width=2.3, legend=len(batches), sharex=True, sharey=True)
    for row, editor in zip(axes, editors):
        for ax, metric in zip(row, METRICS):
            ax.axhline(100, color="0.8", linewidth=0.8, zorder=0)
            ax.axhline(GOAL, color="black", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
            for number, batch in enumerate(batches):
                here = [(place, *percent(points[key].means(metric), points[editor, batch, FULL].means(metric)))
                        for place, m in enumerate(ms) if (key := (editor, batch, m)) in points]
                if not here:
                    continue
                places, values, errors = zip(*here)
                x = np.array(places) + 0.09 * (number - (len(batches) - 1) / 2)  # bars beside each other
                ax.errorbar(x, values, errors, fmt="none", ecolor="0.4", elinewidth=0.8)
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
    """A row a run: its statistics, and each metric in percent, with its percentage of the full statistics' and standard error."""
    found = []
    for (editor, batch, m), point in points.items():
        full = points[editor, batch, FULL]
        row = {"editor": editor, "m": "full" if m == FULL else f"{m:g}", "num_edits": batch, "cases": len(point.cases)}
        statistics = point.statistics | {"share": 100 * point.statistics["keys"] / full.statistics["keys"]}
        row |= {name: statistics.get(name) for name in STATISTICS}
        for metric in METRICS:
            row[metric] = 100 * float(_harmonic(point.means(metric).mean(1)))
            row[f"{metric}_percent"], row[f"{metric}_percent_se"] = percent(point.means(metric), full.means(metric))
        found.append(row)
    return found


def text_of(found: Sequence[Mapping[str, Any]]) -> str:
    """Two Markdown tables of :func:`rows`: what the statistics are made of, and the scores in percent of the full statistics'."""
    of_statistics: dict[tuple, list[str]] = {}
    for row in found:
        of_statistics.setdefault((row["editor"], row["m"]), [_number(row[name]) for name in STATISTICS])
    ms = list(dict.fromkeys(row["m"] for row in found))
    of_scores: dict[tuple, dict[Any, str]] = {}
    for row in found:
        cell = f"{row['score']:.1f}" if row["m"] == "full" else f"{row['score_percent']:.1f} ± {row['score_percent_se']:.1f}"
        of_scores.setdefault((row["editor"], str(row["num_edits"]), str(row["cases"])), {})[row["m"]] = cell
    heads = ["keys", "% of all", "documents", "rank (least of the layers)", "condition (largest)", "ridge (largest)", "seconds"]
    return "\n".join([
        *tables.markdown(["editor", "m", *heads], [[*key, *cells] for key, cells in of_statistics.items()]),
        "", "Score in percent of that with the full statistics; \"full\": the score itself.", "",
        *tables.markdown(["editor", "edits in a batch", "cases", *(m if m == "full" else f"m = {m}" for m in ms)],
                   [[*key, *(cells.get(m, "") for m in ms)] for key, cells in of_scores.items()]), ""])


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
    found = rows(points)
    written = lines.save(draw(points), out)
    return [*written, *tables.write(out, text_of(found), found)]


def command() -> None:
    parser = Parser(prog="python -m figures.fastmemit", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", help="run folders, or folders with runs somewhere in them")
    parser.add_argument("--out", default="results/fastmemit", help="path of the files without ending (default: %(default)s)")
    args = parser.parse_args()
    files = main(args.folders, args.out)
    print(files[2].read_text())
    print("written:", *files)


if __name__ == "__main__":
    run_program(command)
