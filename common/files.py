"""Files that are written whole or not at all: under another name first, which takes the place of the old file at once."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def part_of(path: Path) -> Path:
    """A hidden name beside ``path`` for what is not yet whole, of its own for each of several writers."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Inside, the path of a temporary file to write; it becomes ``path`` when all went well, and is removed otherwise.

    Several processes may write the same file: the last one stays. Raises OSError where the folder can't take a file.
    """
    part = part_of(path)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
