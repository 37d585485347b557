"""``python -m experiments.summarize``: the mean of every metric over a run's cases, several runs side by side.

    python -m experiments.summarize --dir_name MEMIT --runs run_000
    python -m experiments.summarize --dir_name MEMIT,ROME,FT

Prints a table, of one run the figures that papers report, of several a run a row, with --all everything, and writes it to
summary.md; summary.json and summary.csv hold everything: what was measured before the edit (pre), right after it (post) and, of
a sequence, again later (retention). Also reads folders that the original code of MEMIT, ROME, unified editing
and AlphaEdit wrote. Units: percent; for the n-gram entropy hundredths of a bit (as published), for time seconds, for the
essence score perplexity.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.files import write_text
from experiments.results import run_folder, summary
from experiments.results.names import SHORT
from experiments.results.run_folder import FLAGS
from experiments.results.runs import choose_runs, describe, read_run
from experiments.results.tables import Table
from experiments.run.cli import at_least_one, HelpFormatter, Parser, run_program


LEGEND = ("E, P, N: efficacy, paraphrase, neighbourhood; S: success, A: accuracy (teacher-forced), G: generated exactly. "
          "More: --all")


def main(
    dir_name: str | Sequence[str],
    runs: Sequence[str] | None = None,
    first_n_cases: int | None = None,
    get_uncompressed: bool = False,
    abs_path: bool = False,
    results_dir: str | Path = "results",
) -> list[dict[str, Any]]:
    """MEMIT's summaries of the chosen runs: a dict a run, with ``run_dir`` and ``num_cases``; see :func:`summary.published`.

    With ``get_uncompressed`` each key has the list of its values. With ``abs_path`` ``dir_name`` is a path of its own.
    """
    chosen = choose_runs(dir_name, runs, "." if abs_path else results_dir)
    return [{**(lists if get_uncompressed else summary.published(lists)),
             "run_dir": about["run_dir"], "num_cases": about["num_cases"]}
            for about, lists in (read_run(run, first_n_cases) for run in chosen) if about["num_cases"]]


def long_table(runs: Sequence[tuple[dict[str, Any], summary.Statistics]]) -> Table:
    """A row for each run and metric, not rounded."""
    rows = [[about["run_dir"], *map(about.get, FLAGS), key, value["mean"], value["se"], value["n"]]
            for about, statistics in runs for key, value in statistics.items()]
    return Table(["run_dir", *FLAGS, "metric", "mean", "se", "n"], rows)


def _as_json(published: dict[str, tuple[float, float]]) -> dict[str, list[float | None]]:
    """JSON has no NaN."""
    return {key: [mean, None if math.isnan(std) else std] for key, (mean, std) in published.items()}


def _finite(statistics: summary.Statistics) -> summary.Statistics:
    """JSON has no infinity either: the perplexity of a model that an edit broke."""
    return {key: {name: number if number is None or math.isfinite(number) else None for name, number in value.items()}
            for key, value in statistics.items()}


def command() -> None:
    parser = Parser(prog="python -m experiments.summarize", description=__doc__.split("\n\n")[0],
                    epilog=__doc__.split("\n\n")[-1], formatter_class=HelpFormatter)
    parser.add_argument("--dir_name", required=True,
                        help="folder of runs in the results folder, or several, comma-separated")
    parser.add_argument("--all", action="store_true", help="print every metric, several runs side by side")
    parser.add_argument("--runs", help="only runs whose path contains one of these (comma-separated)")
    parser.add_argument("--first_n_cases", type=at_least_one, help="only cases whose case_id is smaller")
    parser.add_argument("--results_dir", default="results", help="the results folder")
    parser.add_argument("--out", help="folder for summary.json, .csv and .md; by default that of the runs, "
                                      "or the results folder for several")
    args = parser.parse_args()

    chosen = choose_runs(args.dir_name, args.runs and args.runs.split(","), args.results_dir)
    runs = [(about, lists) for about, lists in (read_run(run, args.first_n_cases) for run in chosen) if about["num_cases"]]
    if not runs:
        below = "" if args.first_n_cases is None else f" below {args.first_n_cases}"
        raise UserError(f"no cases{below} in {', '.join(map(str, chosen))}")
    statistics = [summary.statistics(lists) for _, lists in runs]
    names = "\n".join(f"[{number}] {describe(about)}" + (f"; {about['note']}" if "note" in about else "")
                      for number, (about, _) in enumerate(runs, 1))
    if args.all:
        table = summary.comparison(statistics)
    else:
        table = summary.in_rows(statistics) if len(runs) > 1 else summary.comparison(statistics, SHORT)
    legend = f"{LEGEND}\n\n" if len(runs) > 1 and not args.all else ""
    text = f"{names}\n\n{legend}{table.markdown(padded=True)}\n"
    print(text)
    for about, _ in runs:
        if about["num_cases"] < about.get("of_cases", 0) and args.first_n_cases is None:
            print(f"note: {about['run_dir']} has {about['num_cases']} of {about['of_cases']} cases; "
                  f"go on with --continue_from_run {Path(about['run_dir']).name}", file=sys.stderr)

    out = Path(args.out or (args.results_dir if "," in args.dir_name else Path(args.results_dir) / args.dir_name))
    content = [{**about, "metrics": _finite(metrics), "published": _as_json(summary.published(lists))}
               for (about, lists), metrics in zip(runs, statistics)]
    run_folder.write_json(out / "summary.json", content)
    long_table([(about, metrics) for (about, _), metrics in zip(runs, statistics)]).save(out / "summary.csv")
    write_text(out / "summary.md", text)
    print(f"written: {out / 'summary.json'}, .csv, .md")


if __name__ == "__main__":
    run_program(command)
