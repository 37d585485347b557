"""``python -m experiments.memat_results``: MEMIT against MEMAT (and ITI) in two languages, as Markdown and CSV.

    python -m experiments.memat_results results/MEMAT --out results/memat_table

Reads every stage (MEMIT alone; corrections of K heads; measured in a language) of the runs in the folders. A value is the mean
over chunks, the facts that were edited together, with the standard error over chunks; the gain is a stage's difference from
MEMIT alone on the same chunks. Published values, of another model and other data, are marked as such. With --held_out only the
facts count that heads were neither chosen nor trained by (the hyper-parameter held_out).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from common.errors import UserError
from data.files import write_text
from experiments.results import memat_published, run_folder, summary
from experiments.results.harmonic_score import harmonic_mean
from experiments.results.names import PUBLISHED
from experiments.results.runs import runs_below
from experiments.results.tables import Cell, Table
from experiments.run.cli import Parser, run_program

COLUMNS = memat_published.COLUMNS
NAMES = {"memit": "MEMIT", "memat": "MEMAT", "ported": "MEMAT, given heads", "iti": "ITI"}
"""Of methods; "ported": heads and corrections come from a file (--head_ind)."""

Key = tuple[str, str, str, str, int, float]
"""(profile, pair, measured in, method, heads, alpha); pair: first letters of the language of the edits and that of the heads,
"C+E" for the sum of edits in two, "(C+E)" for a joint one."""


@dataclass(frozen=True)
class Stage:
    """One way of changing the model, measured in one language."""

    path: Path
    model: str
    key: Key
    chunks: Mapping[tuple[int, ...], Mapping[str, float]]
    """Case ids that were edited together -> each metric of COLUMNS, percent."""
    cases: int
    """That count."""

    @property
    def heads(self) -> int:
        return self.key[4]

    @property
    def alpha(self) -> float:
        return self.key[5]

    @cached_property
    def values(self) -> Float[np.ndarray, "chunks metrics"]:
        return np.array([[self.chunks[chunk][metric] for metric in COLUMNS] for chunk in sorted(self.chunks)])

    def value(self, metric: str) -> Cell:
        """Mean over chunks."""
        return _mean(self.values[:, COLUMNS.index(metric)])

    def gain(self, base: Stage, metric: str) -> Cell:
        """Mean difference over chunks from ``base``, which has the same chunks (:func:`base_of` sees to it)."""
        return _mean((self.values - base.values)[:, COLUMNS.index(metric)])


def _mean(values: Float[np.ndarray, " chunks"]) -> Cell:
    n = len(values)
    return Cell(float(values.mean()), float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else None)


def read(folders: Sequence[str | Path], held_out: bool = False) -> dict[Key, Stage]:
    """All stages in these folders, however deep; of their facts only those held out, if asked.

    Raises UserError for none, for two of a kind, for unfinished ones, and for one without the facts asked for.
    """
    stages: dict[Key, Stage] = {}
    for path in runs_below(folders):
        about = run_folder.read_about(path)
        if "stage" not in about:
            continue
        stage = _read_stage(path, about, held_out)
        if stage.key in stages:
            raise UserError(f"{path} and {stages[stage.key].path} are both of {name(stage.key)}: give only one of them")
        stages[stage.key] = stage
    if not stages:
        raise UserError(f"no stages of runs in two languages in {', '.join(map(str, folders))}")
    # MEMIT alone, 0 heads, stands before the others.
    return dict(sorted(stages.items(), key=lambda item: (*item[0][:3], *item[0][4:])))


def _read_stage(path: Path, about: Mapping[str, Any], held_out: bool) -> Stage:
    settings = about["stage"]
    chunks: dict[tuple[int, ...], list[Mapping[str, float]]] = {}
    files = run_folder.case_files(path)
    for case_id, file in files:
        case = run_folder.read_json(file)
        chunk = tuple(case["grouped_case_ids"])
        cases = chunks.setdefault(chunk, [])
        if not held_out or case_id in chunk[len(chunk) - int(len(chunk) * settings.get("held_out", 0.0)) :]:
            cases.append(summary.case_values(case))
    if len(files) < about["cases"]:
        raise UserError(f"{path} has {len(files)} of {about['cases']} cases; finish its run with --continue_from_run")
    if not all(chunks.values()):
        raise UserError(f"{path}: a chunk has no facts held out; --held_out is for runs with the hyper-parameter held_out "
                        "above 0")
    first, second = settings["language"][0].upper(), settings["language_eval"][0].upper()
    pair = {"sum": f"{first}+{second}", "joint": f"({first}+{second})"}.get(settings.get("bilingual"), first + second)
    method = "ported" if settings["name"] == "memat" and about["flags"].get("head_ind") else settings["name"]
    key = (settings["profile"] or "default", pair, settings["measured"], method, settings["heads"], settings["alpha"] or 0.0)
    metrics = {chunk: _percent(cases) for chunk, cases in chunks.items()}
    return Stage(path, Path(about["flags"]["model_name"]).name, key, metrics, sum(map(len, chunks.values())))


def _percent(cases: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each metric of COLUMNS over the cases of a chunk."""
    values = {metric: 100 * float(np.mean([case[f"post_{key}"] for case in cases])) for metric, key in PUBLISHED.items()}
    return values | {"Score": harmonic_mean([values[metric] for metric in ("ES", "PS", "NS")])}


def base_of(stages: Mapping[Key, Stage], stage: Stage) -> Stage:
    """MEMIT alone, on the same chunks, measured in the same language. Raises UserError if it is not there."""
    profile, pair, measured = stage.key[:3]
    base = stages.get((profile, pair, measured, "memit", 0, 0.0))
    if base is None or base.chunks.keys() != stage.chunks.keys():
        why = "there is none" if base is None else f"{base.path} has other chunks"
        raise UserError(f"{stage.path} can't be compared with MEMIT alone: {why}")
    return base


def name(key: Key) -> str:
    """Of a stage, for messages."""
    profile, pair, measured, method, heads, alpha = key
    method = NAMES[method] + (f", {heads} heads" if heads else "") + (f", alpha {alpha:g}" if method == "iti" else "")
    return f"{method} ({pair}, measured in {measured}, profile {profile})"


def rows(stages: Mapping[Key, Stage]) -> list[dict[str, Any]]:
    """A row a stage: each metric, its gain over MEMIT alone, both with standard errors, and the published value."""
    records = []
    for (profile, pair, measured, method, heads, alpha), stage in stages.items():
        row: dict[str, Any] = {"model": stage.model, "profile": profile, "pair": pair, "measured": measured,
                               "method": NAMES[method], "heads": heads, "alpha": alpha or None,
                               "chunks": len(stage.chunks), "cases": stage.cases}
        published = memat_published.values(method, measured, pair, heads, alpha)
        for metric in COLUMNS:
            row[metric], row[f"{metric}_se"] = stage.value(metric)
            gain = (None, None) if method == "memit" else stage.gain(base_of(stages, stage), metric)
            row[f"{metric}_gain"], row[f"{metric}_gain_se"] = gain
            row[f"{metric}_published"] = published and published.get(metric)
        records.append(row)
    return records


def text_of(records: Sequence[Mapping[str, Any]]) -> str:
    """Markdown of :func:`rows`: a table of values for each profile, with the published rows, and one of the gains."""
    text = []
    for profile in dict.fromkeys(row["profile"] for row in records):
        rows_of_profile = [row for row in records if row["profile"] == profile]
        counts = sorted({(row["chunks"], row["cases"] // row["chunks"]) for row in rows_of_profile})
        sizes = "; ".join(f"{chunks} chunks of {size} facts" for chunks, size in counts)
        head = ["edits, heads", "measured in", "method", *COLUMNS]
        values, gains = [], []
        for row in rows_of_profile:
            label = [row["pair"], row["measured"], method_name(row)]
            values.append([*label, *(Cell(row[metric], row[f"{metric}_se"]) for metric in COLUMNS)])
            if row["ES_published"] is not None:
                published = (row[f"{metric}_published"] for metric in COLUMNS)
                values.append(["", "", "*published*", *("" if value is None else f"*{value:.1f}*" for value in published)])
            if row["ES_gain"] is not None:
                differences = (Cell(row[f"{metric}_gain"], row[f"{metric}_gain_se"]) for metric in COLUMNS)
                gains.append([*label, *(f"{difference:+.1f}" for difference in differences)])
        text += [f"Profile {profile}, {rows_of_profile[0]['model']}, {sizes}: mean ± standard error over chunks, %. "
                 "*published*: Aguila-7b, chunks of 1,000 facts.", "", Table(head, values, words=3).markdown(), ""]
        if gains:
            text += [f"Profile {profile}: gain over MEMIT alone on the same chunks, points.", "",
                     Table(head, gains, words=3).markdown(), ""]
    return "\n".join(text)


def method_name(row: Mapping[str, Any]) -> str:
    """Of a row of :func:`rows`, with its heads and alpha."""
    heads = f" K={row['heads']}" if row["heads"] else ""
    return row["method"] + heads + (f" α={row['alpha']:g}" if row["alpha"] else "")


def main(folders: Sequence[str | Path], out: str | Path, held_out: bool = False) -> list[Path]:
    """Writes <out>.md and <out>.csv of the runs in these folders; returns the files written."""
    records = rows(read(folders, held_out))
    text = text_of(records)
    write_text(f"{out}.md", text)
    return [Path(f"{out}.md"), Table.of_records(records).save(f"{out}.csv")]


def command() -> None:
    parser = Parser(prog="python -m experiments.memat_results", description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", help="run folders, or folders with runs somewhere in them")
    parser.add_argument("--out", default="results/memat_table", help="path of the files without ending (default: %(default)s)")
    parser.add_argument("--held_out", action="store_true",
                        help="of each chunk only the facts held out from choosing and training heads")
    args = parser.parse_args()
    files = main(args.folders, args.out, args.held_out)
    print(files[0].read_text())
    print("written:", *files)


if __name__ == "__main__":
    run_program(command)
