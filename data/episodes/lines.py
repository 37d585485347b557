"""Reading of the files of edit data: JSON lines or lists, texts by the line, and where the file of a split is."""
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from common.errors import UserError
from data.download import data_folder
from data.fields import Fields
from data.files import read_json

T = TypeVar("T")


def file_of_split(path: str | None, usual: str, data_dir: str | Path | None, split: str, what: str) -> Path:
    """The file of ``split``: ``path`` with the split's name for ``{}``, else ``usual`` in the data folder.

    Raises UserError when it is not there: the line says where it is expected and what it should hold (``what``).
    """
    file = Path(path.replace("{}", split)) if path else data_folder(data_dir) / usual.replace("{}", split)
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected {what}. It is published without an address to download it from: put "
                        "it there, name another with its data.*_path, or use the built-in world (+model=world)")
    return file


def read_rows(path: Path, parse: Callable[[Fields], T | None], if_none: str = "") -> list[T]:
    """The rows that ``parse`` makes of a file's lines (or records, if it holds a JSON list), without those that are None.

    Raises UserError with the file and the line for what is not JSON or not of the schema; and, if it is given, with ``if_none``
    where no rows are left.
    """
    rows = [row for raw, place in _raw(path) if (row := parse(Fields(raw, place))) is not None]
    if if_none and not rows:
        raise UserError(f"{path}: {if_none}")
    return rows


def _raw(path: Path) -> Iterator[tuple[Any, str]]:
    """(raw row, what to call its place) for each of a file. Raises UserError."""
    if _holds_list(path):
        content = read_json(path)
        yield from ((raw, f"{path}, record {number}") for number, raw in enumerate(content))
        return
    empty = True
    for number, line in numbered_lines(path):
        if line.strip():
            empty = False
            try:
                yield json.loads(line), f"{path}, line {number}"
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not valid JSON ({error}); the file may be cut off there") from None
    if empty:
        raise UserError(f"{path}: it is empty")


def _holds_list(path: Path) -> bool:
    """Does the file begin with "[": one JSON list instead of lines?"""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return next((c for c in iter(lambda: file.read(1), "") if not c.isspace()), "") == "["
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers from 1. Raises UserError when it can't be read."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from enumerate((line.rstrip("\n") for line in file), 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from error
