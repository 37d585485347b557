"""``python -m experiments.report RUN [RUN ...]``: runs as one self-contained HTML page: tables, charts, cases, settings.

    python -m experiments.report results/MEMIT/run_000 results/ROME/run_000 --out results/report.html
    python -m experiments.report results/MEMIT --figures results/comparison.png

The page opens without a network and follows the reader's light or dark theme. Pictures (.png, .svg, .jpg) that lie in a run's
folder are shown with it; others are named with --figures.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from common.errors import UserError
from data.files import write_text
from experiments.results import html, old_folders, run_folder, sequences, summary
from experiments.results.names import SCORED
from experiments.results.retention import retention_curve
from experiments.results.runs import describe, read_case, runs_with_cases
from experiments.results.tables import Table
from experiments.run.cli import at_least_one, HelpFormatter, Parser, run_program

PANELS = {"success": "success (%)", "acc": "accuracy, teacher-forced (%)", "generated": "generated exactly (%)"}


def main(runs: Sequence[str | Path], out: str | Path = "results/report.html", figures: Sequence[str | Path] = (),
         cases: int = 10, title: str = "Knowledge editing: results") -> Path:
    """Writes the page; returns its path. ``cases``: so many cases of each run are shown one by one.

    Raises UserError for folders without runs or cases, and for pictures that are not there.
    """
    folders, abouts, lists = zip(*runs_with_cases(runs, "report"))
    labels = [f"[{number}] {describe(about)}" for number, about in enumerate(abouts, 1)]
    notes = [f"{label}; {about['note']}" if "note" in about else label for label, about in zip(labels, abouts)]
    statistics = list(map(summary.statistics, lists))
    pictures = "".join(html.picture(Path(name)) for name in figures)
    body = "\n".join([
        html.key(notes), _bars(labels, statistics),
        '<p class="faint">Mean over cases after the edit; whiskers: standard error; dashed ticks: before the edit.</p>',
        "<h2>Numbers</h2>", summary.comparison(statistics).html(),
        '<p class="faint">Mean ± standard error over cases, in %, but for times, perplexities and essence scores; '
        "entropy in bits times 100.</p>",
        _sequences(labels, folders),
        "<h2>Figures</h2>" + pictures if pictures else "",
        "<h2>Runs</h2>", *(_run(label, run, cases) for label, run in zip(labels, folders)),
    ])
    write_text(out, html.page(title, body).encode("utf-8", "replace").decode())
    return Path(out)


def _bars(labels: Sequence[str], runs: Sequence[summary.Statistics]) -> str:
    """A chart for each of success, accuracy and generated exactness that any run has."""
    def bar(statistics: summary.Statistics, group: str, measure: str) -> html.Bar | None:
        value = statistics.get(f"post_{group}_{measure}") or statistics.get(f"retention_{group}_{measure}")
        before = statistics.get(f"pre_{group}_{measure}")
        return value and html.Bar(value["mean"], value["se"], before and before["mean"])

    charts = []
    for measure, title in PANELS.items():
        series = [(label, [bar(statistics, group, measure) for group in SCORED]) for label, statistics in zip(labels, runs)]
        if any(value for _, values in series for value in values):
            charts.append(html.bars(title, list(SCORED.values()), series))
    return f'<div class="charts">{"".join(charts)}</div>'


def _sequences(labels: Sequence[str], runs: Sequence[Path]) -> str:
    """Charts over the number of edits of those runs that are sequences."""
    sequential = [(number, sequences.read_sequence(run)) for number, run in enumerate(runs) if _is_sequence(run)]
    if not sequential:
        return ""

    def of_batches(value) -> list:
        series = []
        for number, sequence in sequential:
            points = [(batch["edits"], y) for batch in sequence.batches if (y := value(batch)) is not None]
            series.append((number, labels[number], [x for x, _ in points], [y for _, y in points]))
        return series

    def of_history(measure: str) -> list:
        series = []
        for number, sequence in sequential:
            points = retention_curve(sequence.history, measure)
            series.append((number, labels[number], [edits for edits, _, _ in points], [mean for _, mean, _ in points]))
        return series

    def distance(batch: Mapping[str, Any]) -> float | None:
        weights = batch.get("weights", {}).values()
        distances = [weight["relative_distance"] for weight in weights if "relative_distance" in weight]
        return fmean(distances) if distances else None

    x = "edits in the model"
    charts = [html.lines(f"{name} of all edits so far (%)", x, of_history(f"{group}_success"))
              for group, name in SCORED.items()]
    charts.append(html.lines("distance of the weights, |W - W0| / |W0|", x, of_batches(distance)))
    charts.append(html.lines("perplexity", x, of_batches(lambda batch: batch.get("perplexity"))))
    charts.append(html.lines("seconds a batch", x, of_batches(lambda batch: batch.get("seconds"))))
    drawn = html.key(labels, lines=True, numbers=[number for number, _ in sequential])
    return f'<h2>Over the sequence</h2>{drawn}<div class="charts">{"".join(charts)}</div>'


def _is_sequence(run: Path) -> bool:
    return bool(sequences.run_flags(run).get("sequential")) or (run / old_folders.GLUE).is_dir()


def _run(label: str, run: Path, cases: int) -> str:
    """Settings, cases and pictures of one run."""
    parts = [f"<h3>{html.escape(label)}</h3>"]
    pictures = sorted(path for path in run.iterdir() if path.suffix.lower() in html.KINDS)
    parts += [html.picture(path) for path in pictures]
    shown = _cases(run, cases)
    title = f"cases ({len(shown)} of {len(run_folder.case_files(run))})"
    parts.append(html.folded(title, Table(_CASE_HEAD, shown, words=len(_CASE_HEAD)).html()))
    for name, title in ((run_folder.PARAMS, "hyper-parameters"), (run_folder.RUN, "settings, flags, versions")):
        if (run / name).is_file():
            content = run_folder.read_json(run / name)
            parts.append(html.folded(title, Table(["", ""], _flat(content), words=2).html()))
    return "\n".join(parts)


_CASE_HEAD = ["case", "prompt", "new target", "true target", "-log p(new), before → after", "-log p(true), before → after",
              "text after the edit"]


def _cases(run: Path, most: int) -> list[list[str]]:
    """The first ``most`` cases, a row each, of those that :func:`runs.read_run` has not left out."""
    rows: list[list[str]] = []
    for case_id, path in run_folder.case_files(run):
        if len(rows) == most:
            break
        try:
            case, *_ = read_case(case_id, path)
        except UserError:
            continue
        try:
            rows.append([str(case_id), *map(str, _case(case))])
        except (AttributeError, KeyError, TypeError):
            print(f"error: {path}: JSON, but not of a case's form (not shown)", file=sys.stderr)
    return rows


def _case(case: Mapping[str, Any]) -> list[str]:
    """What a row of the cases shows, behind the number."""
    rewrite, targets = case.get("requested_rewrite", {}), ("target_new", "target_true")
    texts = case.get("post", {}).get("text") or [""]
    return [rewrite.get("prompt", "").replace("{}", rewrite.get("subject", ""), 1),
            *((rewrite.get(target) or {}).get("str", "") for target in targets),
            *(_first_probability(case, target) for target in targets), texts[0]]


def _first_probability(case: Mapping[str, Any], target: str) -> str:
    """The target's mean negative log-probability behind the edited prompt, before and after."""
    values = [(case.get(prefix, {}).get("rewrite_prompts_probs") or [{}])[0].get(target) for prefix in ("pre", "post")]
    return "" if values == [None, None] else " → ".join("" if value is None else f"{value:.2f}" for value in values)


def _flat(content: Any, prefix: str = "") -> list[list[str]]:
    """[path, value] of every leaf of a JSON object."""
    if not isinstance(content, Mapping):
        return [[prefix, content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)]]
    return [row for key, value in content.items() for row in _flat(value, f"{prefix}.{key}" if prefix else key)]


def command() -> None:
    parser = Parser(prog="python -m experiments.report", description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n")[-1],
                    formatter_class=HelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders, or folders of runs")
    parser.add_argument("--out", default="results/report.html", help="the page")
    parser.add_argument("--figures", nargs="+", default=(), help="pictures to show")
    parser.add_argument("--cases", type=at_least_one, default=10, help="show so many cases of each run one by one")
    parser.add_argument("--title", default="Knowledge editing: results", help="of the page")
    print(f"written: {main(**vars(parser.parse_args()))}")


if __name__ == "__main__":
    run_program(command)
