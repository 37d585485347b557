"""The benchmark of SERAC's memory runs, agrees with itself, and its figure is drawn."""

import json

import pytest

from common.errors import UserError
from experiments.bench import memory
from figures import memory as figure


def test_benchmark_and_figure(tmp_path, capsys):
    out = tmp_path / "bench" / "memory.json"
    rows = memory.main(["--sizes", "20", "1", "--width", "64", "--layers", "1", "--queries", "4", "--repeats", "1",
                        "--threads", "1", "--out", str(out)])
    assert [row["edits"] for row in rows] == [1, 20]
    assert all(row[key] > 0 for row in rows for key in ("search", "plain", "encoder"))
    assert json.loads(out.read_text())["sizes"] == rows and "20 edits" in capsys.readouterr().out
    figure.main([str(out)])
    assert all((tmp_path / "bench" / f"memory.{kind}").stat().st_size > 1000 for kind in ("pdf", "png"))
    out.write_text("{}")
    with pytest.raises(UserError, match="not a file of experiments.bench memory"):
        figure.main([str(out)])
