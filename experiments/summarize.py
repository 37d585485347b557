"""``python -m experiments.summarize``: the mean of every metric over a run's cases, several runs side by side.

    python -m experiments.summarize --dir_name MEMIT --runs run_000
    python -m experiments.summarize --dir_name MEMIT,ROME,FT

Prints a table and writes summary.json, summary.csv and summary.md: what was measured before the edit (pre), right after it
(post) and, of a sequence, again later (retention). Also reads folders that the original code of MEMIT, ROME, unified editing
and AlphaEdit wrote. Units: percent; for the n-gram entropy hundredths of a bit (as published), for time seconds, for the
essence score perplexity.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.downstream import TASKS
from data.files import write_atomically
from experiments.results import old_folders, run_folder, sequences
from experiments.results import summary
from experiments.results.run_folder import FLAGS
from experiments.run.cli import at_least_one, HelpFormatter, Parser, run_program

TITLES = {"rewrite": "efficacy", "paraphrase": "paraphrase", "neighborhood": "neighbourhood", "attribute": "attribute"}
MEASURES = {"success": "success", "diff": "difference", "acc": "accuracy (teacher-forced)", "generated": "generated exactly",
            "generated_starts": "generated first", "generated_contains": "generated somewhere",
            "gap": "gap teacher-forced - generated"}
DOWNSTREAM = {"accuracy": "accuracy", "f1": "F1", "mcc": "MCC", "invalid_rate": "invalid", "accuracy_new": "accuracy (label)"}
LABELS = {
    "score": "score", "score_acc": "score of accuracies",
    **{f"{group}_{measure}": f"{title} {label}" for group, title in TITLES.items() for measure, label in MEASURES.items()},
    "ngram_entropy": "n-gram entropy", "reference_score": "reference score", "essence_score": "essence score",
    "perplexity": "perplexity", **{f"{task}_{name}": f"{task} {label}" for task in TASKS for name, label in DOWNSTREAM.items()},
}
"""Rows of the table, in its order."""
OF_EDITS = {"rounding": "change lost to rounding (16 bits)", "time": "seconds an edit batch"}
"""Its last rows."""
OF_UNIFIED = "by the unified-editing code: pre is what its files call post; no case was measured again later"
OF_ALPHAEDIT = "by AlphaEdit's code: measured after the last batch, so it is retention; seconds are the last batch's"

Statistics = dict[str, dict[str, float | None]]
"""What :func:`summary.statistics` returns."""


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
    found = [read_run(run, first_n_cases) for run in choose_runs(dir_name, runs, "." if abs_path else results_dir)]
    return [{**(lists if get_uncompressed else summary.published(lists)),
             "run_dir": about["run_dir"], "num_cases": about["num_cases"]}
            for about, lists in found if about["num_cases"]]


def runs_with_cases(folders: Sequence[str | Path], what: str) -> list[tuple[Path, dict[str, Any], dict[str, list[float]]]]:
    """(run, what :func:`read_run` gives of it) for all runs in the folders, without those that have no cases yet, which are named.

    Raises UserError for a run without cases that was named itself, and if none is left. what: is to be done with cases.
    """
    found = []
    for folder in map(Path, folders):
        for run in run_folder.runs_in(folder):
            about, lists = read_run(run)
            if about["num_cases"]:
                found.append((run, about, lists))
            elif run == folder:
                raise UserError(f"{run}: no cases to {what}")
            else:
                print(f"left out: {run}, no cases to {what}", file=sys.stderr)
    if not found:
        raise UserError(f"no runs in {', '.join(map(str, folders))}")
    return found


def choose_runs(
    dir_name: str | Sequence[str], runs: Sequence[str] | None = None, results_dir: str | Path = "results"
) -> list[Path]:
    """Run folders in the named folders of ``results_dir`` whose path contains one of ``runs``. UserError if none."""
    names = dir_name.split(",") if isinstance(dir_name, str) else dir_name
    found = [run for name in names for run in run_folder.runs_in(Path(results_dir) / name)]
    chosen = [run for run in found if runs is None or any(part in str(run) for part in runs)]
    if not chosen:
        where = ", ".join(str(Path(results_dir) / name) for name in names)
        there = ", ".join(run.name for run in found) or "none"
        raise UserError(f"no run in {where}" + (f" matches {','.join(runs)}; there is {there}" if runs else ""))
    return chosen


def read_run(run: Path, first_n_cases: int | None = None) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """(what is known about a run, each metric's values over its cases). ``first_n_cases``: only cases with a smaller id.

    Metrics of the whole model (perplexity, downstream tasks) have one value for each model that was measured. A damaged case
    file is reported on standard error and left out.
    """
    flags, values, note = sequences.run_flags(run), {}, ""
    for case_id, path in run_folder.case_files(run):
        if first_n_cases is not None and case_id >= first_n_cases:
            break
        try:
            _, values[case_id], of_case = read_case(case_id, path)
            note = of_case or note
        except UserError as error:
            print(f"error: {error} (left out)", file=sys.stderr)
    if note == OF_ALPHAEDIT:
        values = {case_id: {key.replace("post_", "retention_", 1): value for key, value in case.items()}
                  for case_id, case in values.items()}
    for edits, path in sequences.history_files(run)[-1:]:
        note = f"retention: measured again after {edits} edits"
        for case_id, left in sequences.read_history(path, lambda post: summary.case_values({"retention": post})):
            if case_id in values:
                values[case_id] |= left

    about: dict[str, Any] = {"run_dir": str(run), "num_cases": len(values), **{key: flags[key] for key in FLAGS if key in flags}}
    if (run / run_folder.RUN).is_file():
        about["of_cases"] = run_folder.read_about(run)["cases"]
    if note:
        about["note"] = note
    sequential = bool(flags.get("sequential")) or note == OF_ALPHAEDIT
    return about, summary.collect(list(values.values())) | _model_values(run, sequential)


def read_case(case_id: int, path: Path) -> tuple[dict[str, Any], dict[str, float], str]:
    """(content of a case file, its :func:`summary.case_values`, what is to be noted about the code that wrote it).

    Raises UserError for a damaged file.
    """
    try:
        case = old_folders.read_case(path)
        note = OF_UNIFIED if old_folders.batch_of(path) is not None else ""
        if old_folders.of_another_batch(case_id, case):
            note = OF_ALPHAEDIT
        return case, {key: float(value) for key, value in summary.case_values(case).items()}, note
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: JSON, but not of a case's form") from None


def _model_values(run: Path, sequential: bool) -> dict[str, list[float]]:
    """Perplexity and downstream figures of the unedited model, and of the last one of a sequence, or else each edited one."""
    lists: dict[str, list[float]] = {}
    for batch in sequences.read_batches(run):
        prefix = "pre" if batch["edits"] == 0 else "retention" if sequential else "post"
        found = {"perplexity": batch.get("perplexity")}
        for task, figures in batch.get("downstream", {}).items():
            found |= {f"{task}_{name}": figures.get(name) for name in DOWNSTREAM}
        for name, value in found.items():
            if value is not None:
                values = lists.setdefault(f"{prefix}_{name}", [])
                values[:] = [value] if sequential else [*values, value]
    return lists


def describe(about: dict[str, Any]) -> str:
    """A run in a few words, for the head of a column or a legend."""
    parts = Path(about["run_dir"]).parts
    number = next((i for i, part in enumerate(parts) if part.startswith("run_")), len(parts) - 1)
    where = "/".join(parts[max(0, number - 1):])
    if "alg_name" not in about:
        return where
    names = [Path(about[key]).name for key in ("alg_name", "model_name", "ds_name")]
    return f"{where}: {', '.join(names)}, {about['num_edits']} edit{'s' if about['num_edits'] > 1 else ''}"


def table(runs: Sequence[tuple[dict[str, Any], Statistics]]) -> list[list[str]]:
    """Rows of text: a head, and a metric a row with "mean ± standard error" for each run before the edit, after it, and later."""
    rows = [["", *(f"[{number}] {prefix}" for number in range(1, len(runs) + 1) for prefix in summary.PREFIXES)]]
    columns = [(prefix, statistics) for _, statistics in runs for prefix in summary.PREFIXES]
    rows.append(["cases"] + [str(_cases(*column) or "") for column in columns])
    for key, label in LABELS.items():
        cells = [_cell(statistics.get(f"{prefix}_{key}")) for prefix, statistics in columns]
        if any(cells):
            rows.append([label, *cells])
    for key, label in OF_EDITS.items():
        cells = [_cell(statistics.get(key)) if prefix == _edited(statistics) else "" for prefix, statistics in columns]
        if any(cells) or key == "time":
            rows.append([label, *cells])
    filled = [any(cells[1:]) for cells in zip(*rows)]  # folders of the original code have nothing from before the edit
    return [[cell for cell, keep in zip(row, [True, *filled[1:]]) if keep] for row in rows]


def _cases(prefix: str, statistics: Statistics) -> int:
    """How many were measured at this time."""
    return max((value["n"] for key, value in statistics.items() if key.startswith(f"{prefix}_rewrite")), default=0)


def _edited(statistics: Statistics) -> str:
    """When edited models were first measured."""
    return "post" if _cases("post", statistics) else "retention"


def _cell(value: dict[str, float | None] | None) -> str:
    if value is None:
        return ""
    return f"{value['mean']:.1f}" + ("" if value["se"] is None else f" ± {value['se']:.1f}")


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up as plain text, too."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for label, *cells in [*rows[:1], ["-" * widths[0]] + ["-" * (w - 1) + ":" for w in widths[1:]], *rows[1:]]:
        lines.append(" | ".join([label.ljust(widths[0])] + [cell.rjust(w) for cell, w in zip(cells, widths[1:])]))
    return "\n".join(f"| {line} |" for line in lines)


def _csv(runs: Sequence[tuple[dict[str, Any], Statistics]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run_dir", *FLAGS, "metric", "mean", "se", "n"])
    for about, statistics in runs:
        for key, value in statistics.items():
            writer.writerow([about["run_dir"], *map(about.get, FLAGS), key, value["mean"], value["se"], value["n"]])
    return text.getvalue()


def _as_json(published: dict[str, tuple[float, float]]) -> dict[str, list[float | None]]:
    """JSON has no NaN."""
    return {key: [mean, None if math.isnan(std) else std] for key, (mean, std) in published.items()}


def _finite(statistics: Statistics) -> Statistics:
    """JSON has no infinity either: the perplexity of a model that an edit broke."""
    return {key: {name: number if number is None or math.isfinite(number) else None for name, number in value.items()}
            for key, value in statistics.items()}


def command() -> None:
    parser = Parser(prog="python -m experiments.summarize", description=__doc__.split("\n\n")[0],
                    epilog=__doc__.split("\n\n")[-1], formatter_class=HelpFormatter)
    parser.add_argument("--dir_name", required=True,
                        help="folder of runs in the results folder, or several, comma-separated")
    parser.add_argument("--runs", help="only runs whose path contains one of these (comma-separated)")
    parser.add_argument("--first_n_cases", type=at_least_one, help="only cases whose case_id is smaller")
    parser.add_argument("--results_dir", default="results", help="the results folder")
    parser.add_argument("--out", help="folder for summary.json, .csv and .md; by default that of the runs, "
                                      "or the results folder for several")
    args = parser.parse_args()

    chosen = choose_runs(args.dir_name, args.runs and args.runs.split(","), args.results_dir)
    found = [(about, lists) for about, lists in (read_run(run, args.first_n_cases) for run in chosen) if about["num_cases"]]
    if not found:
        below = "" if args.first_n_cases is None else f" below {args.first_n_cases}"
        raise UserError(f"no cases{below} in {', '.join(map(str, chosen))}")
    runs = [(about, summary.statistics(lists)) for about, lists in found]
    names = "\n".join(f"[{number}] {describe(about)}" + (f"; {about['note']}" if "note" in about else "")
                      for number, (about, _) in enumerate(runs, 1))
    text = f"{names}\n\n{_markdown(table(runs))}\n"
    print(text)
    for about, _ in runs:
        if about["num_cases"] < about.get("of_cases", 0) and args.first_n_cases is None:
            print(f"note: {about['run_dir']} has {about['num_cases']} of {about['of_cases']} cases; "
                  f"go on with --continue_from_run {Path(about['run_dir']).name}", file=sys.stderr)

    out = Path(args.out or (args.results_dir if "," in args.dir_name else Path(args.results_dir) / args.dir_name))
    content = [{**about, "metrics": _finite(statistics), "published": _as_json(summary.published(lists))}
               for (about, statistics), (_, lists) in zip(runs, found)]
    run_folder.write_json(out / "summary.json", content)
    for name, written in (("summary.csv", _csv(runs)), ("summary.md", text)):
        write_atomically(out / name, lambda file, written=written: file.write(written.encode()))
    print(f"written: {out / 'summary.json'}, .csv, .md")


if __name__ == "__main__":
    run_program(command)
