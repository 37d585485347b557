"""What every program shares: types of flags, and one clear line for a user's mistake."""

import argparse
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NoReturn

from common import programs
from common.errors import UserError
from editors.core import ranks

PATIENCE = 5
"""Seconds in which torchrun ends the other processes after one has said what is wrong."""


def run_program(main: Callable[[], object], several: bool = False) -> None:
    """:func:`common.programs.run_program`, for programs that torchrun may start, too.

    Warnings are one line each, and what the editors log is printed.
    several: ``main`` knows how to share its work among the processes that torchrun starts; one of them speaks for all.
    """
    programs.run_program(main, partial(_started, several), _fail)


@contextmanager
def _started(several: bool) -> Iterator[None]:
    """Inside, this process is one of torchrun's where there are several, and only the first one is heard."""
    if ranks.processes() > 1 and not several:
        raise UserError("this program runs in one process: start it with python -m, not with torchrun")
    ranks.check_environment()
    with warnings.catch_warnings(), ranks.started():
        if ranks.rank() > 0:
            warnings.simplefilter("ignore")
            sys.stdout, sys.stderr = open(os.devnull, "w"), _NoTerminal(sys.stderr)
        else:
            warnings.showwarning = lambda message, *where: print(f"warning: {message}", file=sys.stderr)
        with _logged() if ranks.rank() == 0 else nullcontext():
            yield


@contextmanager
def _logged() -> Iterator[None]:
    """What ``editors`` logs goes to standard error."""
    log, handler = logging.getLogger("editors"), logging.StreamHandler()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _fail(message: str, of_all: bool) -> NoReturn:
    """of_all: all processes fail alike, and one says it."""
    if ranks.processes() == 1:
        programs.fail(message)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if of_all else signal.SIG_IGN)
    if of_all and not ranks.first_to_say():
        time.sleep(PATIENCE)
        sys.exit(2)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        programs.fail(message if of_all else f"process {ranks.process()}: {message}")
    finally:
        os._exit(2)  # at once: connections to processes that are gone may wait


class _NoTerminal:
    """A stream on which no progress is drawn."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def isatty(self) -> bool:
        return False


class Parser(argparse.ArgumentParser):
    """Of programs that torchrun may start: one of its processes says what is wrong with the flags, and the program ends."""

    def error(self, message: str) -> NoReturn:
        words = message.partition("unrecognized arguments: ")[2].split()
        named = [f"--{word.partition('=')[0]}" for word in words if "=" in word and not word.startswith("-")]
        meant = [name for name in named if name in self._option_string_actions]
        _fail(f"{message}{'; did you mean ' + ', '.join(meant) + '?' if meant else ''} (see {self.prog} --help)", of_all=True)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def at_least_one(text: str) -> int:
    """The type of a flag that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from 1")
    return int(text)


def a_count(text: str) -> int:
    """The type of a flag that may count nothing."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from 0")
    return int(text)


def above_zero(text: str) -> float:
    """The type of a flag that is a positive number."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} should be a number above 0")
    return number


def a_seed(text: str) -> int:
    """The type of a flag that seeds random numbers: what torch takes."""
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} should be a whole number from 0 to 2^63 - 1")
    return int(text)
