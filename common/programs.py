"""How a program ends: one clear line for a user's mistake, and an exit code that says what happened."""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

from common.errors import UserError

Fail = Callable[[str, bool], NoReturn]
"""Ends the program over a mistake: (its text, whether every process of the program has made the same)."""


def fail(message: str, of_all: bool = False) -> NoReturn:
    """Says what was wrong in one line on standard error, and exits with code 2."""
    sys.stdout.flush()
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(2)


def run_program(
    main: Callable[[], object], around: Callable[[], AbstractContextManager] = nullcontext, failing: Fail = fail
) -> None:
    """Run ``main`` inside ``around()`` and exit: 0 when it returns, 2 with one ``error:`` line on standard error for a user's
    mistake (:class:`UserError`) or a place that can't be read or written (``OSError``), 130 when interrupted.

    Any other exception is a defect of the program and keeps its traceback.
    """
    try:
        with around():
            main()
    except UserError as error:
        failing(str(error), getattr(error, "of_all_ranks", False))
    except BrokenPipeError:
        # The reader of our output (head, less) left. Nothing more can be printed, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        failing(place + (error.strerror or str(error)), False)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


class Parser(argparse.ArgumentParser):
    """A mistake in the flags is one line, too. Raises UserError."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")
