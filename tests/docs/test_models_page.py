"""docs/models.md: it lists every model type, and the rows of the supported families are what the toolkit gives today."""

import contextlib
import re

import pytest

from scripts import models
from tests.decoders import TYPES

SUPPORTED = (
    "gpt2", "gptj", "gpt_neox", "falcon", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "opt", "bloom",
    "olmo2", "cohere", "granite", "mixtral", "gpt_bigcode",
)
"""Those of tests.models, and others that are common."""


def rows_of_page():
    """{type: its row}"""
    return dict(re.findall(r"^\| `([^`]+)` (\|.*)\|$", models.PAGE.read_text(), re.MULTILINE))


def test_every_type_is_on_the_page():
    assert not set(TYPES) - rows_of_page().keys(), "stale: python -m scripts.models"


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_rows_are_up_to_date(model_type, monkeypatch):
    monkeypatch.setenv("KE_STATS_DIR", "")  # which the checks set, so that it is put back
    with contextlib.redirect_stdout(None):
        row = models.row_of(model_type)
    ours, written = cells(row.markdown().split("`", 2)[2]), cells(rows_of_page()[model_type])
    assert len(ours) == len(written), f"another group, {row.group}: python -m scripts.models"
    for one, other in zip(ours, written):
        if number(one) is None or number(other) is None:
            assert one == other
        else:  # shares, whose last digits are the machine's
            assert number(one) == pytest.approx(number(other), rel=0.2, abs=0.02)


def cells(row):
    return [cell.strip() for cell in row.strip(" |").split(" | ")]


def number(cell):
    return float(cell) if re.fullmatch(r"\d+(\.\d+)?(e[+-]?\d+)?", cell) else None
