"""The one exception that a mistake in the data, or in what was asked of it, ends in, and how a program ends with it."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class DataError(ValueError):
    """What was wrong, where, and what to do about it, in one line."""


class Parser(argparse.ArgumentParser):
    """Of the programs of this package: a mistake in the flags is one line, too."""

    def error(self, message: str) -> NoReturn:
        raise DataError(f"{message} (see --help)")


def run_program(main: Callable[[], object]) -> None:
    """Run a program of this package: a mistake, or a place that can't be read or written, is one line and exit code 2, interrupted 130."""
    try:
        main()
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
