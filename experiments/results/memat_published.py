"""MEMAT's published values (Tamayo et al. 2024), percent, on Aguila-7b and multi-CounterFact in English and Catalan.

memat_published.csv beside this file holds figure 9 (memit: 7 chunks of 1,000 facts, memat: 3), bilingual edits (C+E the sum of
two, (C+E) a joint one), ITI on one chunk, and heads of the first 1,000 facts applied to others (ported). Read from the
coordinates of the vector figures that the authors' repository ships, good to about 0.01. A pair is the first letter of the
language that MEMIT edits in, and that of the language that heads are chosen and corrections trained in.
"""

import csv
from pathlib import Path

from experiments.results.names import PUBLISHED

COLUMNS = (*PUBLISHED, "Score")
"""The metrics, and the harmonic mean of the successes."""


def _read() -> dict[tuple[str, str, str, int, float], dict[str, float]]:
    with open(Path(__file__).with_suffix(".csv"), newline="") as file:
        return {(row["method"], row["measured"], row["pair"], int(row["heads"]), float(row["alpha"] or 0)):
                {name: float(row[name]) for name in COLUMNS if row[name]} for row in csv.DictReader(file)}


VALUES = _read()
"""(method, measured in, pair, heads, alpha) -> values; 0 heads: MEMIT alone."""


def values(method: str, measured: str, pair: str, heads: int, alpha: float) -> dict[str, float] | None:
    """What was published of a stage (see :data:`experiments.memat_results.Key`), or None."""
    if method == "memit" and len(pair) == 2:
        pair = pair[0] + measured[0].upper()  # without heads the second letter means nothing
    return VALUES.get((method, measured, pair, heads, alpha if method == "iti" else 0.0))
