"""The downstream tasks of unified editing (Gupta, Rao, Anumanchipalli 2024): what an edited model can still do.

Eight classification tasks, in the balanced subsets and the order that the papers score: sst, mrpc, cola, rte (GLUE's
validation sets), sentiment_analysis (all of SST-2's validation set, so it contains sst), nli (RTE's training set), dialogue
(MuTual's development set) and mmlu (MMLU's validation set). The first :data:`POOL` rows of a task are its few-shot examples,
always; tests begin behind them.

A task is read from a folder (one .jsonl, .json or .parquet file a task, in the published rows' schema) or built from the
Hugging Face data set that the published rows come from.
"""

import hashlib
import json
import logging
import random
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.download import data_folder
from data.fields import Fields
from data.files import json_lines, read_records, write_text

POOL = 10
"""First rows of a task, which are its few-shot examples and never its tests."""
SUFFIXES = (".jsonl", ".json", ".parquet")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A downstream task: where its rows are, and which keys and classes they have."""

    file: str
    """Name of its file, without suffix."""
    rows: int
    """In the published subset."""
    texts: tuple[str, ...]
    """Keys of the row's texts."""
    labels: tuple[int | str, ...]
    """Values of the label; their places here are the classes."""
    hub: tuple[str, str, str]
    """Data set of the Hugging Face hub, its configuration and split."""
    label: str = "label"
    options: str | None = None
    """Key of the list of four options."""


_GLUE = "nyu-mll/glue"
TASKS = {
    "nli": Task("nli", 2489, ("sentence1", "sentence2"), ("not_entailment", "entailment"), (_GLUE, "rte", "train")),
    "rte": Task("rte", 262, ("sentence1", "sentence2"), (0, 1), (_GLUE, "rte", "validation")),
    "mrpc": Task("mrpc", 258, ("sentence1", "sentence2"), (0, 1), (_GLUE, "mrpc", "validation")),
    "sentiment_analysis": Task("sentiment_analysis", 872, ("sentence",), ("0", "1"), (_GLUE, "sst2", "validation")),
    "dialogue": Task("dialogue", 886, ("article",), ("A", "B", "C", "D"), ("EleutherAI/mutual", "mutual", "validation"),
                     label="answers", options="options"),
    "cola": Task("cola", 644, ("sentence",), (0, 1), (_GLUE, "cola", "validation")),
    "sst": Task("sst2", 856, ("sentence",), (0, 1), (_GLUE, "sst2", "validation")),
    "mmlu": Task("mmlu", 1516, ("question",), (0, 1, 2, 3), ("cais/mmlu", "all", "validation"),
                 label="answer", options="choices"),
}


@dataclass(frozen=True)
class Example:
    """One row. ``fields``: its texts by key, and ``options`` (four texts) where it has some. ``label``: its class, a place in
    the task's ``labels``; rte's are GLUE's (0 is entailment)."""

    fields: Mapping[str, str | tuple[str, ...]]
    label: int
    id: str | None = None


def load(name: str, source: str | Path | None = None, data_dir: str | Path | None = None) -> list[Example]:
    """All rows of a task (a key of :data:`TASKS`), the few-shot examples first.

    source: a folder of files; "world" for exercises made from the built-in world; by default ``downstream`` in the data
    folder, where a task that is not there is put from the hub.

    Raises UserError: file missing and hub unreachable, file damaged, a row not in the schema, no row behind the pool.
    """
    task = TASKS[name]
    if source == "world":
        from data.world import downstream as world
        rows, origin = world.rows(name), "world"
    else:
        folder = Path(source).expanduser() if source else data_folder(data_dir) / "downstream"
        if source and not folder.is_dir():
            raise UserError(f"{folder}: no such folder of downstream tasks")
        path = _file(name, folder)
        if path is None:
            if source:
                raise UserError(f"{folder}: has no {task.file}.jsonl (or .json, .parquet) for task {name}")
            path = folder / f"{task.file}.jsonl"
            write_text(path, json_lines(from_hub(name, folder)))
        rows, origin = _read(path), str(path)
    examples = [_example(task, Fields(row, f"{origin}, row {number}")) for number, row in enumerate(rows)]
    if len(examples) <= POOL:
        raise UserError(f"{origin}: {len(examples)} rows; the first {POOL} are few-shot examples, so there is nothing to test")
    return examples


def fingerprint(examples: Iterable[Example]) -> str:
    """SHA-256 of the examples' whole content."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(asdict(example), sort_keys=True).encode())
    return digest.hexdigest()


def from_hub(name: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of :func:`subset` of the hub's data set. ``folder``: where UserError says to put a file instead."""
    import datasets  # takes seconds to import, and is needed once

    task = TASKS[name]
    path, config, split = task.hub
    try:
        rows = subset(name, datasets.load_dataset(path, config, split=split))
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"task {name}: Hugging Face data set {path} ({config}, {split}) did not load "
                        f"({' '.join(str(error).split())[:200]}); put {task.file}.jsonl (or .json, .parquet) into {folder}, "
                        "or name a folder that has it with --downstream_data") from error
    if len(rows) != task.rows:
        log.warning("task %s: %d rows were made from %s, the published subset has %d; results can't be compared with the "
                    "papers'", name, len(rows), path, task.rows)
    return rows


def subset(name: str, source: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The published subset, in its order, from all rows of the split it was taken from.

    The order of dialogue and mmlu within a class, and which rows of mmlu's larger classes are left out, are not known:
    there only the classes come in the published order.
    """
    rows = [dict(row) for row in source]
    if name == "nli":  # the published file lacks this row
        names = ("entailment", "not_entailment")
        rows = [{"index": str(row["idx"]), "sentence1": row["sentence1"], "sentence2": row["sentence2"],
                 "label": names[row["label"]]} for row in rows if row["idx"] != 2164]
    elif name == "sentiment_analysis":
        rows = [{"sentence": row["sentence"], "label": str(row["label"])} for row in rows]
    labels = [row[TASKS[name].label] for row in rows]
    if name in ("nli", "sentiment_analysis"):
        order = from_the_end(labels, list(dict.fromkeys(reversed(labels))))
    elif name == "dialogue":
        order = from_the_end(labels, ["B", "A", "C", "D"])
    else:
        order = balanced(labels, [0, 1, 2, 3] if name == "mmlu" else [1, 0])
    return [rows[i] for i in order]


def balanced(labels: Sequence[Hashable], turns: Sequence[Hashable]) -> list[int]:
    """Positions in ``labels`` of the published balanced subset.

    One generator of seed 37 shuffles each class, in the order in which classes appear; each is cut to the size of the smallest;
    then the classes take turns.
    """
    rng = random.Random(37)
    positions = _by_class(labels)
    for of_class in positions.values():
        rng.shuffle(of_class)
    size = min(map(len, positions.values()))
    return _taking_turns([positions[label][:size] for label in turns])


def from_the_end(labels: Sequence[Hashable], turns: Sequence[Hashable]) -> list[int]:
    """All positions in ``labels``, the last of each class first; the classes take turns until they are used up."""
    positions = _by_class(labels)
    return _taking_turns([positions[label][::-1] for label in turns])


def _by_class(labels: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    positions: dict[Hashable, list[int]] = {}
    for position, label in enumerate(labels):
        positions.setdefault(label, []).append(position)
    return positions


def _taking_turns(groups: Sequence[Sequence[int]]) -> list[int]:
    return [position for turn in zip_longest(*groups) for position in turn if position is not None]


def _file(name: str, folder: Path) -> Path | None:
    stems = dict.fromkeys((TASKS[name].file, name))
    for path in (folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES):
        if path.is_file():
            return path
    for path in (folder / f"{stem}.pkl" for stem in stems):
        if path.is_file():
            raise UserError(f"{path}: pickles are not read, since loading one can run any code; where you trust it, write its "
                            f"rows as {path.stem}.jsonl (one JSON object a line); or remove it, and the task is built anew")
    return None


def _read(path: Path) -> list[Any]:
    if path.suffix == ".json":
        return read_records(path)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet
        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not readable as parquet ({' '.join(str(error).split())[:200]}); copy it again") from error
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):  # bytes: str.splitlines also splits at U+2028
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error}); it may be cut off: copy it again") from error
    return rows


def _example(task: Task, fields: Fields) -> Example:
    texts: dict[str, str | tuple[str, ...]] = {key: fields.text(key) for key in task.texts}
    if task.options:
        options = texts["options"] = fields.texts(task.options)
        if len(options) != 4:
            raise fields.error(f"{task.options!r} should be 4 texts, found {len(options)}")
    label = fields.integer(task.label) if isinstance(task.labels[0], int) else fields.text(task.label)
    if label not in task.labels:
        raise fields.error(f"{task.label!r} should be one of {', '.join(map(str, task.labels))}, found {label}")
    rest = fields.rest()
    row_id = next((rest[key] for key in ("idx", "index", "id") if key in rest), None)
    return Example(texts, task.labels.index(label), None if row_id is None else str(row_id))
