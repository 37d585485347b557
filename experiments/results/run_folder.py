"""Result folders: ``<results>/<dir_name>/run_<NNN>/`` with params.json, run.json, statistics.json and a file a case.

Names and keys are those that the field's scripts expect.
"""

import errno
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import part_of, sweep_once
from common.json_text import to_json
from data.files import write_text
from data.records import Record

PARAMS, RUN = "params.json", "run.json"
FLAGS: Mapping[str, type] = {"alg_name": str, "model_name": str, "ds_name": str, "num_edits": int}
"""What tells runs apart, of the flags in run.json."""
EDITS = "edits"
STATISTICS = "statistics.json"
"""{layer: what the editor's second moment was made of}: keys, documents, seconds and, of counted keys, rank and condition."""
_RUN_NAME = re.compile(r"run_(\d+)")
_CASE_NAME = re.compile(r"(?:\d+_(?:\d+_)?edits-)?case_(\d+)\.json")
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn", "nltk", "safetensors")


def new_run(folder: Path, files: Mapping[str, Any]) -> Path:
    """Makes ``run_<NNN>`` in ``folder``, NNN one above the highest there (000 in an empty folder), with these JSON files.

    The folder appears under its name with all its files in it, so that a kill at any moment leaves a run that can go on,
    or none. Raises UserError where nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep_once(folder)
        part = part_of(folder / "run")
        part.mkdir()
    except OSError as error:
        raise UserError(f"{folder}: results can't be written there ({error.strerror}); choose another folder") from error
    for name, content in files.items():
        write_json(part / name, content)
    numbers = [int(match[1]) for entry in folder.iterdir() if (match := _RUN_NAME.fullmatch(entry.name))]
    number = max(numbers, default=-1) + 1
    while True:
        path = folder / f"run_{number:03d}"
        try:
            return part.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            number += 1  # another program was faster


def remove_unused(run: Path) -> None:
    """Removes a run that has no case yet."""
    if not any(case_files(part) for part in _parts(run)):
        shutil.rmtree(run)


def existing_run(folder: Path, name: str) -> Path:
    """The folder of a run to go on with. Raises UserError if there is none, or it was not written by this program."""
    path = folder / name
    if not path.is_dir():
        runs = sorted(entry.name for entry in folder.glob("run_*")) if folder.is_dir() else []
        raise UserError(f"--continue_from_run {name}: no such run in {folder}; there " +
                           (f"is {', '.join(runs)}" if runs else "are none yet"))
    if not (path / RUN).is_file() or not (path / PARAMS).is_file():
        raise UserError(f"--continue_from_run {name}: {path} has no {RUN} or no {PARAMS}, so what it holds can't be "
                           "checked; start a new run")
    return path


def check_same(path: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises UserError that names what differs between a run's ``saved`` settings and the ``current`` ones."""
    differing = [key for key in sorted(saved.keys() | current.keys()) if saved.get(key) != current.get(key)]
    if differing:
        differences = ", ".join(
            f"{key} was {_short(saved.get(key))} and is now {_short(current.get(key))}" for key in differing
        )
        raise UserError(f"{path} was made with another configuration: {differences}; use the same, or start a new run")


def case_path(run: Path, num_edits: int, case_id: int) -> Path:
    """``num_edits`` is the flag's value, also in a last, shorter batch: so file names tell the configuration."""
    return run / f"{num_edits}_edits-case_{case_id}.json"


def write_cases(
    run: Path, num_edits: int, chunk: Sequence[Record], edit: Mapping[str, float], pre: Mapping[int, Mapping[str, Any]],
    post: Mapping[int, Mapping[str, Any]],
) -> None:
    """Writes the files of the cases that were edited together. edit: see :func:`about_edit`; pre, post: metrics by case id."""
    for record in chunk:
        write_json(case_path(run, num_edits, record.case_id), {
            "case_id": record.case_id, "grouped_case_ids": [r.case_id for r in chunk], "num_edits": num_edits,
            "requested_rewrite": record.requested_rewrite(), **edit, "post": post[record.case_id], "pre": pre[record.case_id],
        })


def about_edit(seconds: float, info: Mapping[str, Any]) -> dict[str, float]:
    """``time``: the seconds of an edit; ``rounding``, of weights in 16 bits: the largest share of a weight's change that
    rounding took. info: the Edit's."""
    shares = info.get("rounding", {}).values()
    return {"time": seconds, **({"rounding": max(shares)} if shares else {})}


def replace_folder(part: Path, folder: Path) -> None:
    """Puts the finished folder ``part`` in the place of ``folder``."""
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)


def case_files(run: Path) -> list[tuple[int, Path]]:
    """(case id, path) of every case file of a run, by id; also those of the ROME repository (``case_<id>.json``) and
    of the unified-editing one (``<num_edits>_<batch>_edits-case_<id>.json``)."""
    matches = ((_CASE_NAME.fullmatch(path.name), path) for path in run.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def runs_in(folder: Path) -> Iterator[Path]:
    """The run folders in ``folder``, or the folder itself if it is one, by name; of a run in several languages
    (:mod:`experiments.run.languages`) its stages. Where there are none, those one folder further down, as a sweep's are."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of results")
    if case_files(folder) or (folder / RUN).exists():
        yield from _parts(folder)
    else:
        for level in ("*", "*/*"):
            runs = sorted(path for path in folder.glob(level) if path.is_dir() and _RUN_NAME.fullmatch(path.name))
            for path in runs:
                yield from _parts(path)
            if runs:
                return


def _parts(run: Path) -> list[Path]:
    """The stages of a run, in each language; the run itself where it has none."""
    return sorted(path.parent for path in run.glob(f"*/*/{RUN}")) or [run]


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, indented as the published files are: the whole file or none of it."""
    write_text(path, to_json(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError for a file that is cut off or no JSON, and for a params.json without hyper-parameters."""
    # Without these two a folder can't be gone on with.
    remedy = "start a new run in another folder" if path.name in (PARAMS, RUN) else "delete it and run again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {remedy}") from error
    if path.name == PARAMS and not isinstance(content, dict):
        raise UserError(f"{path}: holds no hyper-parameters; {remedy}")
    return content


def has_form(content: Any, form: Any) -> bool:
    """Whether JSON is of a type (or one of several), or an object with at least the keys of ``form``, each of its form."""
    if not isinstance(form, Mapping):
        return isinstance(content, form)
    return isinstance(content, Mapping) and all(key in content and has_form(content[key], part) for key, part in form.items())


def read_about(run: Path) -> dict[str, Any]:
    """The content of a run's run.json. Raises UserError for a file that is damaged or not of this program."""
    about = read_json(run / RUN)
    if not has_form(about, {"settings": dict, "flags": FLAGS, "cases": int}):
        raise UserError(f"{run / RUN}: was not written by experiments.evaluate, or is damaged; start a new run")
    return about


def provenance() -> dict[str, Any]:
    """Machine, versions and the toolkit's commit, for run.json."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    versions["torch"] = str(torch.__version__)  # names the build, too ("+cu130"), which not every wheel's metadata does
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"python": platform.python_version(), "platform": platform.platform(), "accelerator": accelerator,
            "packages": versions, "commit": _commit()}


def _commit() -> str | None:
    """The commit of the code that runs, with "+changes" where files differ from it; None outside a git repository."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
