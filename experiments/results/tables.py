"""Tables of results, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import write_atomically


def markdown(head: Sequence[str], body: Sequence[Sequence[str]], labels: int = 1) -> list[str]:
    """Lines of a Markdown table; the first ``labels`` columns are to the left, the others are numbers."""
    rules = ["---"] * labels + ["---:"] * (len(head) - labels)
    return ["| " + " | ".join(cells) + " |" for cells in (head, rules, *body)]


def write(out: str | Path, text: str, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Writes <out>.md with the text and <out>.csv with the rows, which have the same keys; returns the files."""
    content = io.StringIO()
    writer = csv.DictWriter(content, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files = [Path(f"{out}.md"), Path(f"{out}.csv")]
    for file, written in zip(files, (text, content.getvalue())):
        write_atomically(file, lambda opened, written=written: opened.write(written.encode()))
    return files
