"""Sequential runs, of :mod:`experiments.run.sequences` or of the unified-editing code: cases, history, model over batches."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UserError
from experiments.results import old_folders, run_folder
from experiments.results.retention import measures
from experiments.results.run_folder import FLAGS

Measures = Mapping[str, float]
"""What :func:`retention.measures` gives for one case."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class SequenceResults:
    """A sequential run. Edits are counted from 1, in the order in which they were made."""

    about: dict[str, Any]
    """``run_dir`` and, where they are known, :data:`FLAGS`."""
    cases: list[Measures]
    """Right after its own batch: edit 1, 2, ...; empty where there is no file."""
    history: dict[int, dict[int, Measures]]
    """{edits in the model: {edit: what is retained of it}}."""
    batches: list[dict[str, Any]]
    """What was measured of the whole model, as in ``batches/<edits>.json``, by edits."""


def read_sequence(run: Path, last_token: bool = False) -> SequenceResults:
    """A whole run; last_token: see :func:`retention.measures`. UserError for one that is not sequential, or damaged."""
    recorded = run_flags(run)
    if not recorded.get("sequential", (run / old_folders.GLUE).is_dir()):
        raise UserError(f"{run}: not a sequential run (experiments.evaluate --sequential)")
    batches = read_batches(run)
    by_edit = dict(_cases(run, batches, last_token))
    order = {case_id: edit for batch in batches for edit, case_id in _places(batch)}
    history = {edits: {order[case_id]: values for case_id, values in read_history(path, lambda post: measures(post, last_token))
                       if case_id in order}
               for edits, path in history_files(run)}
    cases = [by_edit.get(edit, {}) for edit in range(1, max(by_edit, default=0) + 1)]
    about = {"run_dir": str(run), **{key: recorded[key] for key in FLAGS if key in recorded}}
    return SequenceResults(about, cases, history, batches)


def run_flags(run: Path) -> dict[str, Any]:
    """The flags that a run was made with, as far as its folder tells."""
    return run_folder.read_about(run)["flags"] if (run / run_folder.RUN).is_file() else old_folders.flags(run)


def read_batches(run: Path) -> list[dict[str, Any]]:
    """What was measured of the model after batches, by edits; [] where there is nothing. UserError for a damaged file."""
    if (run / old_folders.GLUE).is_dir():
        return old_folders.read_batches(run)
    batches = [(path, run_folder.read_json(path)) for path in sorted((run / "batches").glob("*.json"))]
    for path, content in batches:
        if not _is_batch(content):
            raise UserError(f"{path}: not written by experiments.evaluate, or damaged; delete it")
    return sorted((content for _, content in batches), key=lambda batch: batch["edits"])


def _is_batch(content: Any) -> bool:
    if not run_folder.has_form(content, {"edits": int}) or not isinstance(content.get("case_ids", []), list):
        return False
    figures = [content.get(key, {}) for key in ("weights", "downstream")]
    return all(isinstance(part, dict) and all(isinstance(value, dict) for value in part.values()) for part in figures)


def history_files(run: Path) -> list[tuple[int, Path]]:
    """(edits in the model, file) of each time that earlier edits were measured again, the earliest first."""
    return sorted((int(path.stem), path) for path in (run / "history").glob("*.jsonl") if path.stem.isdecimal())


def read_history(path: Path, convert: Callable[[Mapping[str, Any]], Value]) -> Iterator[tuple[int, Value]]:
    """(case id, what ``convert`` makes of its metrics) for each line of a history file. UserError for a damaged line."""
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
                case_id, value = int(entry["case_id"]), convert(entry["post"])
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} can't be read ({error!r}); delete the file") from error
            yield case_id, value


def _places(batch: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """(edit, case id) of a batch."""
    ids = batch.get("case_ids", [])
    return enumerate(ids, batch["edits"] - len(ids) + 1)


def _cases(run: Path, batches: list[dict[str, Any]], last_token: bool) -> Iterator[tuple[int, Measures]]:
    """(edit, what it did) for each case that was measured right after its batch. Old batches are given their seconds."""
    files = dict(run_folder.case_files(run))
    for batch in batches:
        for edit, case_id in _places(batch):
            if case_id not in files:
                continue
            try:
                case = old_folders.read_case(files[case_id])
                if "time" in case:
                    batch.setdefault("seconds", case["time"])
                yield edit, measures(case["post"], last_token)
            except (AttributeError, KeyError, TypeError) as error:
                raise UserError(f"{files[case_id]}: JSON, but not of a case's form ({error!r}); delete it") from error
