"""Writing folders: whole or not at all, and refused before the work rather than after it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import UserError
from common.files import part_of, sweep_once


def check_writable(folder: Path, what: str) -> None:
    """Make the folder, and raise UserError now rather than after hours of work if nothing can be written there."""
    probe = part_of(folder / "probe")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep_once(folder)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{folder}: {what} can't be written there ({error.strerror}): choose another folder") from None


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Inside, an empty folder to fill, which appears as `folder` when all went well and not at all otherwise.

    Raises UserError if `folder` is there already, or can't be made.
    """
    if folder.exists():
        raise UserError(f"{folder}: is there already; choose another name, or delete it")
    check_writable(folder.absolute().parent, "a folder")
    part = part_of(folder.absolute())
    part.mkdir()
    try:
        yield part
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
