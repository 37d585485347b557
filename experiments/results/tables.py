"""A table is data; it is printed, or written as Markdown, CSV, JSON or HTML."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from common.json_text import to_json
from data.files import write_text


class Cell(NamedTuple):
    """A mean and its standard error (None: not known, as of a single case)."""

    mean: float
    error: float | None = None

    @classmethod
    def of(cls, statistic: Mapping[str, float | None] | None) -> Cell | None:
        """Of an entry of :func:`summary.statistics`, if it is there."""
        return statistic and cls(statistic["mean"], statistic["se"])

    def __format__(self, form: str) -> str:
        """Both in the form; a sign stands at the mean alone."""
        return f"{self.mean:{form}}" + ("" if self.error is None else f" ± {self.error:{form.lstrip('+')}}")

    def __str__(self) -> str:
        return f"{self:.1f}"


@dataclass(frozen=True)
class Table:
    """Rows of cells, words and numbers under the names of their columns; None is an empty place."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell | str | float | None]]
    words: int = 1
    """So many columns, the first ones, are words, to the left; the others are numbers."""

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, Any]]) -> Table:
        """The records have the same keys: the columns."""
        return cls(list(records[0]), [list(record.values()) for record in records])

    def records(self) -> list[dict[str, Any]]:
        """The rows as a dictionary each."""
        return [dict(zip(self.columns, row)) for row in self.rows]

    def texts(self) -> list[list[str]]:
        """The head, then the rows."""
        return [list(self.columns), *(["" if value is None else str(value) for value in row] for row in self.rows)]

    def text(self) -> str:
        """For a terminal."""
        return "\n".join("  ".join(row).rstrip() for row in self._padded(self.texts()))

    def markdown(self, padded: bool = False) -> str:
        """padded: columns line up as plain text, too."""
        head, *rows = self.texts()
        rules = ["---"] * self.words + ["---:"] * (len(head) - self.words)
        if padded:
            widths = [max(map(len, column)) for column in zip(head, *rows)]
            rules = ["-" * (width - len(rule) + 3) + rule[3:] for width, rule in zip(widths, rules)]
            head, rules, *rows = self._padded([head, rules, *rows])
        return "\n".join(f"| {' | '.join(row)} |" for row in (head, rules, *rows))

    def csv(self) -> str:
        """Numbers as they are, a cell as it is printed."""
        content = io.StringIO()
        rows = [[str(value) if isinstance(value, Cell) else value for value in row] for row in self.rows]
        csv.writer(content, lineterminator="\n").writerows([self.columns, *rows])
        return content.getvalue()

    def json(self) -> str:
        """A list of :meth:`records`; a cell is [mean, error]."""
        return to_json(self.records(), indent=1, ensure_ascii=False) + "\n"

    def html(self) -> str:
        """For a page of :mod:`experiments.results.html`."""
        def row(cells: Sequence[str], kind: str) -> str:
            return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"

        head, *rows = self.texts()
        kind = ' class="text"' if self.words == len(head) else ""
        return (f'<div class="wide"><table{kind}><thead>{row(head, "th")}</thead>'
                f"<tbody>{''.join(row(cells, 'td') for cells in rows)}</tbody></table></div>")

    def save(self, path: str | Path) -> Path:
        """Writes the form that the file's ending names: .csv, .json or .md."""
        path = Path(path)
        write_text(path, {".csv": self.csv, ".json": self.json, ".md": lambda: self.markdown() + "\n"}[path.suffix]())
        return path

    def _padded(self, rows: Sequence[Sequence[str]]) -> list[list[str]]:
        """Words to the left of their columns, numbers to the right."""
        widths = [max(map(len, column)) for column in zip(*rows)]
        return [[cell.ljust(width) if place < self.words else cell.rjust(width)
                 for place, (cell, width) in enumerate(zip(row, widths))] for row in rows]
