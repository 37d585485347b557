"""Files that are written whole or not at all: under another name first, which takes the place of the old file at once.

What is not yet whole has a name that tells its process, so that what a killed one left is swept when its folder is next written
to, and what a living one writes stays.
"""

import errno
import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from .errors import UserError

_PART = re.compile(r"\..+\.([0-9a-f]{6}-\d+-\d+)-[0-9a-f]{8}\.part")


def part_of(path: Path) -> Path:
    """A hidden name beside ``path`` for what is not yet whole, of its own for each of several writers."""
    return path.with_name(f".{path.name}.{owner()}-{secrets.token_hex(4)}.part")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Inside, the path of a temporary file to write; it becomes ``path`` when all went well, and is removed otherwise.

    Several processes may write the same file: the last one stays. Raises OSError where the folder can't take a file.
    """
    sweep_once(path.parent)
    part = part_of(path)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def owner() -> str:
    """This process: its machine, number and time of start, which no other process has."""
    return f"{_machine()}-{os.getpid()}-{_start_of(os.getpid()) or 0}"


def may_live(name: str) -> bool:
    """Whether the process that called itself so (:func:`owner`) may still be there: unless it is known not to be."""
    machine, pid, start = name.split("-")
    return machine != _machine() or str(_start_of(int(pid)) or 0) == start


def sweep(folder: Path) -> None:
    """Removes what processes that are gone left unfinished in a folder."""
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = _PART.fullmatch(entry.name)
            if match and not may_live(match[1]):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink(missing_ok=True)


def sweep_once(folder: Path) -> None:
    """:func:`sweep`, once a process: a folder may hold many files."""
    _sweep_once(os.path.abspath(folder), os.getpid())


@contextmanager
def held(folder: Path, doing: str, wait: bool = False) -> Iterator[None]:
    """Inside, no other process holds the folder; a process that ends in whatever way lets go.

    doing: what the other one does, for the UserError where one holds it. wait: until it is free instead.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: another process is {doing}; wait until it is done, or choose another folder") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EBADF, errno.EINVAL, errno.ENOTSUP):
                raise  # else a file system without locks
        yield
    finally:
        os.close(handle)


@cache
def _sweep_once(folder: str, pid: int) -> None:
    sweep(Path(folder))


@cache
def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _start_of(pid: int) -> str | None:
    """When a process of this machine began, in ticks since the machine did; None where there is none, or it can't be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
