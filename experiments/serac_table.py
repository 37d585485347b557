"""``python -m experiments.serac_table FOLDER``: edit success and drawdown by algorithm and number of simultaneous edits.

Reads FOLDER/<ALG>/edits_<N>/results.json, as scripts/serac_table.sh leaves them, prints a table in Markdown, and writes
FOLDER/table.json and table.csv. Drawdown is the share of unrelated questions whose answer changed, in percent.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.files import read_json, write_atomically
from experiments.results import run_folder
from experiments.run.cli import Parser, run_program

NAMES = {"rep": "SERAC", "gtn": "MEND", "mend": "MEND", "enn": "ENN", "lu": "LU", "ft": "FT", "efk": "KE"}


def rows(folder: Path) -> list[dict[str, Any]]:
    """One for each result: alg, edits, success and drawdown in percent. Raises UserError where there is none."""
    found = []
    for path in folder.glob("*/edits_*/results.json"):
        number = re.fullmatch(r"edits_(\d+)", path.parent.name)
        content = read_json(path)
        stats = content.get("results") if isinstance(content, dict) else None
        if not isinstance(stats, dict):
            raise UserError(f"{path}: not the results of experiments.train; delete the file to have them made again")
        if number and {"edit_success", "drawdown_retain"} <= stats.keys():
            found.append({"alg": path.parent.parent.name, "edits": int(number[1]), "success": 100 * stats["edit_success"],
                          "drawdown": 100 * stats["drawdown_retain"]})
    if not found:
        raise UserError(f"{folder}: no results (<ALG>/edits_<N>/results.json); bash scripts/serac_table.sh makes them")
    order = {alg: place for place, alg in enumerate(NAMES)}
    return sorted(found, key=lambda row: (order.get(row["alg"], len(order)), row["alg"], row["edits"]))


def markdown(found: Sequence[dict[str, Any]]) -> str:
    """success / drawdown, an algorithm a line, a number of edits a column; "-" where there is no result."""
    columns = sorted({row["edits"] for row in found})
    cells = {(row["alg"], row["edits"]): f"{row['success']:.1f} / {row['drawdown']:.1f}" for row in found}
    head = ["success / drawdown (%)", *(f"{n:,} edit{'s' * (n > 1)}" for n in columns)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for alg in dict.fromkeys(row["alg"] for row in found):
        lines.append(f"| {NAMES.get(alg, alg)} | " + " | ".join(cells.get((alg, n), "-") for n in columns) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m experiments.serac_table", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    found = rows(folder)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(found[0]))
    writer.writeheader()
    writer.writerows(found)
    run_folder.write_json(folder / "table.json", found)
    write_atomically(folder / "table.csv", lambda file: file.write(text.getvalue().encode()))
    print(markdown(found))


if __name__ == "__main__":
    run_program(main)
