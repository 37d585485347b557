"""What figures of causal traces share: averages.json, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from editors.errors import EditingError
from experiments import results
from experiments.causal_trace import AVERAGES


def read_averages(folder: Path) -> dict[str, Any]:
    """The content of a trace's averages.json. Raises EditingError if it is missing, unfinished or not of this program."""
    path = folder / AVERAGES
    if not path.is_file():
        raise EditingError(f"{folder}: has no {AVERAGES}; finish the trace with experiments.causal_trace")
    average = results.read_json(path)
    if not isinstance(average, dict) or not {"indirect_effect", "classes", "settings", "proposal"} <= average.keys():
        raise EditingError(f"{path}: was not written by experiments.causal_trace")
    return average
