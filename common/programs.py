"""How a program ends: one clear line for a user's mistake, and an exit code that says what happened."""

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NoReturn

from common.errors import UserError

Fail = Callable[[str, bool], NoReturn]
"""Ends the program over a mistake: (its text, whether every process of the program has made the same)."""


OF_LIBRARIES = {
    "SafetensorError": "a file of tensors can't be read or written",
    "OutOfMemoryError": "the device's memory does not suffice",
    "MemoryError": "the memory does not suffice",
    "RecursionError": "something that was read is nested too deeply",
    "OverflowError": "a number is too large",
}
"""Errors that a machine or an input causes, wherever they arise: by the names of their types, since libraries are slow to
import -> what they mean."""


class Terminated(KeyboardInterrupt):
    """Somebody sent SIGTERM."""


def fail(message: str, of_all: bool = False) -> NoReturn:
    """Says what was wrong in one line on standard error, and exits with code 2."""
    sys.stdout.flush()
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(2)


def run_program(
    main: Callable[[], object], around: Callable[[], AbstractContextManager] = nullcontext, failing: Fail = fail
) -> None:
    """Run ``main`` inside ``around()`` and exit: 0 when it returns, 2 with one ``error:`` line on standard error for a user's
    mistake (:class:`UserError`), a place that can't be read or written (``OSError``) or a memory that does not suffice; 130
    when interrupted, 143 after SIGTERM, with a line that says how to go on (:func:`goes_on`).

    Any other exception is a defect of the program and keeps its traceback.
    """
    try:
        with _stopping(), around():
            main()
    except UserError as error:
        failing(str(error), getattr(error, "of_all_ranks", False))
    except BrokenPipeError:
        # The reader of our output (head, less) left. Nothing more can be printed, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        full = ": make room there, or choose another folder" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        failing(place + (error.strerror or str(error)) + full, False)
    except KeyboardInterrupt as interruption:
        asked, code = ("terminated", 143) if isinstance(interruption, Terminated) else ("interrupted", 130)
        print("; ".join([asked, *map(str, interruption.args)]), file=sys.stderr)
        sys.exit(code)
    except Exception as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        meaning = next((OF_LIBRARIES[name] for name in names if name in OF_LIBRARIES), None)
        if meaning is None:
            raise
        failing(f"{meaning} ({type(error).__name__}: {str(error)[:300]})", False)


@contextmanager
def goes_on(how: Callable[[], str]) -> Iterator[None]:
    """Where the block inside is interrupted, the program's last line also tells ``how()``: where it stands, how to go on."""
    try:
        yield
    except KeyboardInterrupt as interruption:
        if not interruption.args:
            interruption.args = (how(),)
        raise


def guard_start(package: str) -> None:
    """Called first thing by a package of programs: until :func:`run_program` takes over, Ctrl-C, SIGTERM and a package that is
    not installed end ``python -m package.program`` in one line, too."""
    at = sys.orig_argv.index("-m") + 1 if "-m" in sys.orig_argv[:-1] else 0
    name = sys.orig_argv[at] if at else ""
    if sys.argv[:1] != ["-m"] or not f"{name}.".startswith(f"{package}.") or not _in_main_thread():
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
    if _alone() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _end_at_once)
    sys.excepthook = _not_installed


def _end_at_once(number: int, frame: object) -> NoReturn:
    """Nothing has begun yet that would have to be put in order; and modules that are half imported may swallow exceptions."""
    os.write(2, b"interrupted\n" if number == signal.SIGINT else b"terminated\n")
    os._exit(128 + number)


def _not_installed(kind: type[BaseException], error: BaseException, traceback: object) -> None:
    if isinstance(error, ModuleNotFoundError):
        while isinstance(error.__cause__, ModuleNotFoundError):  # transformers names its own class, and this the package
            error = error.__cause__
        print(f"error: {error}: install it, or call the python of the environment that has it (.venv/bin/python after "
              "scripts/setup.sh)", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


@contextmanager
def _stopping() -> Iterator[None]:
    """Inside, Ctrl-C raises KeyboardInterrupt and SIGTERM Terminated, so that what was begun is put in order."""
    if not _in_main_thread():
        yield
        return

    def terminated(number: int, frame: object) -> NoReturn:
        raise Terminated

    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.excepthook is _not_installed:
        sys.excepthook = sys.__excepthook__
    before = signal.getsignal(signal.SIGTERM)
    if before not in (signal.SIG_DFL, _end_at_once) or not _alone():
        yield
        return
    signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _alone() -> bool:
    """Whether this is no process of torchrun's, which ends its processes by SIGTERM."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


class Parser(argparse.ArgumentParser):
    """A mistake in the flags is one line, too. Raises UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")
