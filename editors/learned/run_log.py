"""The log of a training: a line of JSON for each report."""

import json
from collections.abc import Mapping
from pathlib import Path

from common.files import whole_file
from common.json_text import to_json

LOG = "log.jsonl"


def append(folder: Path, step: int, stats: Mapping[str, float]) -> None:
    """One line more."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG, "a", encoding="utf-8") as file:
        file.write(to_json({"step": step, **stats}) + "\n")


def cut(folder: Path, step: int) -> None:
    """Drops what a killed run logged after `step`, and a line that the kill has torn; whole or not at all."""
    path = folder / LOG
    if not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if _step(line) <= step]
    with whole_file(path) as part:
        part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _step(line: str) -> float:
    """Of a torn line: after everything."""
    try:
        return json.loads(line)["step"]
    except (ValueError, RecursionError):
        return float("inf")
