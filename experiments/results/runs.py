"""Reading runs, of this toolkit and of the published codes: what is known about a run, and each metric over its cases."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from experiments.results import old_folders, run_folder, sequences, summary
from experiments.results.names import DOWNSTREAM
from experiments.results.run_folder import FLAGS

OF_UNIFIED = "by the unified-editing code: pre is what its files call post; no case was measured again later"
OF_ALPHAEDIT = "by AlphaEdit's code: measured after the last batch, so it is retention; seconds are the last batch's"


def runs_below(folders: Sequence[str | Path]) -> list[Path]:
    """The runs of :mod:`experiments.evaluate` (of several languages: their stages) in the folders, however deep."""
    return sorted(path.parent for folder in folders for path in Path(folder).rglob(run_folder.RUN))


def choose_runs(
    dir_name: str | Sequence[str], runs: Sequence[str] | None = None, results_dir: str | Path = "results"
) -> list[Path]:
    """Run folders in the named folders of ``results_dir`` whose path contains one of ``runs``. UserError if none."""
    names = dir_name.split(",") if isinstance(dir_name, str) else dir_name
    existing = [run for name in names for run in run_folder.runs_in(Path(results_dir) / name)]
    chosen = [run for run in existing if runs is None or any(part in str(run) for part in runs)]
    if not chosen:
        where = ", ".join(str(Path(results_dir) / name) for name in names)
        offered = ", ".join(run.name for run in existing) or "none"
        raise UserError(f"no run in {where}" + (f" matches {','.join(runs)}; there is {offered}" if runs else ""))
    return chosen


def runs_with_cases(
    folders: Sequence[str | Path], purpose: str
) -> list[tuple[Path, dict[str, Any], dict[str, list[float]]]]:
    """(run, *what :func:`read_run` gives of it) for all runs in the folders; on standard error it says which have no cases yet.

    Raises UserError for a run without cases that was named itself, and if no run has any. purpose: a verb, for the messages.
    """
    runs = []
    for folder in map(Path, folders):
        for run in run_folder.runs_in(folder):
            about, lists = read_run(run)
            if about["num_cases"]:
                runs.append((run, about, lists))
            elif run == folder:
                raise UserError(f"{run}: no cases to {purpose}")
            else:
                print(f"left out: {run}, no cases to {purpose}", file=sys.stderr)
    if not runs:
        raise UserError(f"no runs in {', '.join(map(str, folders))}")
    return runs


def read_run(run: Path, first_n_cases: int | None = None) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """(what is known about a run, each metric's values over its cases). ``first_n_cases``: only cases with a smaller id.

    Metrics of the whole model (perplexity, downstream tasks) have one value for each model that was measured. A damaged case
    file is reported on standard error and left out.
    """
    recorded, values, note = sequences.run_flags(run), {}, ""  # values: {case id: its metrics}
    for case_id, path in run_folder.case_files(run):
        if first_n_cases is not None and case_id >= first_n_cases:
            break
        try:
            _, values[case_id], note_of_case = read_case(case_id, path)
            note = note_of_case or note
        except UserError as error:
            print(f"error: {error} (left out)", file=sys.stderr)
    if note == OF_ALPHAEDIT:
        values = {case_id: {key.replace("post_", "retention_", 1): value for key, value in case.items()}
                  for case_id, case in values.items()}
    for edits, path in sequences.history_files(run)[-1:]:
        note = f"retention: measured again after {edits} edits"
        for case_id, retained in sequences.read_history(path, lambda post: summary.case_values({"retention": post})):
            if case_id in values:
                values[case_id] |= retained

    about: dict[str, Any] = {"run_dir": str(run), "num_cases": len(values)}
    about |= {key: recorded[key] for key in FLAGS if key in recorded}
    if (run / run_folder.RUN).is_file():
        about["of_cases"] = run_folder.read_about(run)["cases"]
    if note:
        about["note"] = note
    sequential = bool(recorded.get("sequential")) or note == OF_ALPHAEDIT
    return about, summary.collect(list(values.values())) | _model_values(run, sequential)


def read_case(case_id: int, path: Path) -> tuple[dict[str, Any], dict[str, float], str]:
    """(content of a case file, its :func:`summary.case_values`, a note on the code that wrote it).

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
        measured = {"perplexity": batch.get("perplexity")}
        for task, figures in batch.get("downstream", {}).items():
            measured |= {f"{task}_{name}": figures.get(name) for name in DOWNSTREAM}
        for name, value in measured.items():
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
