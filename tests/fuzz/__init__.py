"""Bad inputs, made from good ones by class and seed: each must be refused in one line, or mean exactly what it did before.

    python -m tests.fuzz --cases 5000 --seed 1

A case is a function of a seeded ``random.Random`` and an empty folder. It returns "refused" or "accepted"; anything else that
happens, a traceback, a line of several, a number that changed, a file left behind, code that a pickle ran, is a failure.
"""

import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from common.errors import UserError

Case = Callable[[random.Random, Path], str]


class Failure(AssertionError):
    """What a program should not do with an input."""


def refused(error: UserError) -> str:
    """That an error says in one line, not a long one."""
    text = str(error)
    if "\n" in text or not text.strip() or len(text) > 2000:
        raise Failure(f"not one line: {text[:300]!r}")
    return "refused"


def run(cases: int, seed: int, folder: Path, only: str | None = None) -> tuple[Counter, list[str]]:
    """({(class, outcome): count}, failures with what makes them again) of so many cases, each class in its turn."""
    from tests.fuzz.classes import CLASSES

    names = [name for name in CLASSES if only is None or only in name]
    outcomes, failures = Counter(), []
    for number in range(cases):
        name = names[number % len(names)]
        place = folder / f"{number}"
        place.mkdir()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                outcome = CLASSES[name](random.Random(f"{seed}-{number}-{name}"), place)
        except UserError as error:
            try:
                outcome = refused(error)
            except Failure as failure:
                outcome, _ = "failure", failures.append(f"{name}, case {number} of seed {seed}: {failure}")
        except Exception as error:  # a traceback is what is looked for
            outcome = "failure"
            failures.append(f"{name}, case {number} of seed {seed}: {type(error).__name__}: {str(error)[:300]}")
        finally:
            shutil.rmtree(place)
        outcomes[name, outcome] += 1
    return outcomes, failures
