"""The one exception that a mistake in the data, or in what was asked of it, ends in, and how a program ends with it."""

import sys
from collections.abc import Callable


class DataError(ValueError):
    """What was wrong, where, and what to do about it, in one line."""


def run_program(main: Callable[[], object]) -> None:
    """Run a program of this package: a mistake, or a place that can't be read or written, is one line and exit code 2."""
    try:
        main()
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
