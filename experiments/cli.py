"""What every program shares: the flags of the model, and one clear line for a user's mistake."""

import argparse
import os
import sys
from collections.abc import Callable

from data.errors import DataError
from editors.errors import EditingError

DTYPES = ("auto", "float32", "float16", "bfloat16", "float64")


def run_program(main: Callable[[], object]) -> None:
    """Run ``main`` and exit: 0 when it returns, 2 with one ``error:`` line on standard error for a user's mistake
    (:class:`EditingError`, :class:`DataError`) or a place that can't be read or written (``OSError``), 130 when interrupted.

    Any other exception is a defect of the program and keeps its traceback.
    """
    try:
        main()
    except (EditingError, DataError) as error:
        _fail(str(error))
    except BrokenPipeError:
        # The reader of our output (head, less) left. Nothing more can be printed, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _fail(place + (error.strerror or str(error)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--dtype`` and ``--device``, as :func:`experiments.models.load_model` understands them."""
    parser.add_argument("--dtype", choices=DTYPES, default="auto",
                        help="of the model; auto: the checkpoint's own, but float32 where a CPU would compute in 16 bits")
    parser.add_argument("--device", default="auto",
                        help="auto (cuda, mps or cpu, the first there is), cpu, cuda, cuda:1, mps, "
                             "or map: spread a model over all devices (accelerate's device_map)")

