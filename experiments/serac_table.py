"""``python -m experiments.serac_table FOLDER``: edit success and drawdown by algorithm and number of simultaneous edits.

Reads FOLDER/<ALG>/edits_<N>/results.json, as scripts/serac_table.sh leaves them, prints a table in Markdown, and writes
FOLDER/table.json and table.csv. Drawdown is the share of unrelated questions whose answer changed, in percent.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.files import read_json
from experiments.results.tables import Table
from experiments.run.cli import Parser, run_program

NAMES = {"rep": "SERAC", "gtn": "MEND", "mend": "MEND", "enn": "ENN", "lu": "LU", "ft": "FT", "efk": "KE"}


def rows(folder: Path) -> list[dict[str, Any]]:
    """One for each result: alg, edits, success and drawdown in percent. Raises UserError where there is none."""
    records = []
    for path in folder.glob("*/edits_*/results.json"):
        number = re.fullmatch(r"edits_(\d+)", path.parent.name)
        content = read_json(path)
        stats = content.get("results") if isinstance(content, dict) else None
        if not isinstance(stats, dict):
            raise UserError(f"{path}: not the results of experiments.train; delete the file to have them made again")
        if number and {"edit_success", "drawdown_retain"} <= stats.keys():
            records.append({"alg": path.parent.parent.name, "edits": int(number[1]), "success": 100 * stats["edit_success"],
                            "drawdown": 100 * stats["drawdown_retain"]})
    if not records:
        raise UserError(f"{folder}: no results (<ALG>/edits_<N>/results.json); bash scripts/serac_table.sh makes them")
    order = {alg: place for place, alg in enumerate(NAMES)}
    return sorted(records, key=lambda row: (order.get(row["alg"], len(order)), row["alg"], row["edits"]))


def by_edits(records: Sequence[dict[str, Any]]) -> Table:
    """success / drawdown, an algorithm a row, a number of edits a column; "-" where there is no result."""
    numbers = sorted({row["edits"] for row in records})
    cells = {(row["alg"], row["edits"]): f"{row['success']:.1f} / {row['drawdown']:.1f}" for row in records}
    algorithms = dict.fromkeys(row["alg"] for row in records)
    return Table(["success / drawdown (%)", *(f"{n:,} edit{'s' * (n > 1)}" for n in numbers)],
                 [[NAMES.get(alg, alg), *(cells.get((alg, n), "-") for n in numbers)] for alg in algorithms])


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m experiments.serac_table", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    records = rows(folder)
    for name in ("table.json", "table.csv"):
        Table.of_records(records).save(folder / name)
    print(by_edits(records).markdown())


if __name__ == "__main__":
    run_program(main)
