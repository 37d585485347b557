"""Reading and writing of files: whole or not at all, and one clear line where they are not what they should be."""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from common.errors import UserError
from common.files import whole_file
from common.json_text import to_json


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises ``UserError`` when it is missing, unreadable, cut off or not JSON."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise not_json(path, error) from error


def not_json(path: str | Path, reason: object) -> UserError:
    """The complaint about a file that should hold JSON and doesn't."""
    size = Path(path).stat().st_size
    return UserError(f"{path}: not valid JSON ({reason}); with {size:,} bytes it may be cut off or damaged: "
                     "copy it again, or delete it to have it downloaded again")


def read_records(path: str | Path) -> list[Any]:
    """The records of a JSON file that holds a non-empty list of them. Raises ``UserError`` for any other content."""
    content = read_json(path)
    if not isinstance(content, list) or not content:
        kind = "an empty list" if content == [] else f"a JSON {type(content).__name__}"
        raise UserError(f"{path}: expected a list of records, found {kind}")
    return content


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write`` on a temporary file in the same folder, which is made, and put it in place when that has succeeded.

    Raises ``UserError`` where nothing can be written, or the disk is full.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part, open(part, "xb") as file:
            write(file)
    except OSError as error:
        raise UserError(f"{path}: can't be written ({error.strerror or error}); "
                        "make room there, or choose another folder") from error


def write_text(path: str | Path, text: str) -> None:
    """:func:`write_atomically` of ``text`` in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: str | Path, content: Any) -> None:
    """:func:`write_atomically` of ``content`` as JSON."""
    write_text(path, to_json(content))


def json_lines(rows: Iterable[Any]) -> str:
    """The text of a file of JSON lines: one object a line, all characters as they are."""
    return "".join(to_json(row, ensure_ascii=False) + "\n" for row in rows)


def checksum(path: str | Path, cache_dir: Path) -> str:
    """SHA-256 of a file, remembered in ``cache_dir`` for as long as its size and time of change stay the same."""
    path = Path(path).resolve()
    store = cache_dir / "checksums.json"
    checksums = read_json(store) if store.exists() else {}
    stat = path.stat()
    entry = checksums.get(str(path), {})
    if (entry.get("bytes"), entry.get("mtime_ns")) == (stat.st_size, stat.st_mtime_ns):
        return entry["sha256"]
    with open(path, "rb") as file:
        digest = sha256(file)
    checksums[str(path)] = {"sha256": digest, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    write_json(store, checksums)
    return digest


def sha256(file: IO[bytes]) -> str:
    """SHA-256 of what is left of an open file, read in pieces."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
