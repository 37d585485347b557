"""FastMEMIT's figure and tables, and the statistics that runs tell of."""

import csv
import json
import sys

import numpy as np
import pytest

from common.errors import UserError
from experiments.results import run_folder
from experiments.run.cli import run_program
from figures import fastmemit


def case(rewrite, paraphrase, neighborhood):
    """Metrics of a case with these success rates in quarters."""
    rates = {"rewrite": rewrite, "paraphrase": paraphrase, "neighborhood": neighborhood}
    worse = {"rewrite": 0.5, "paraphrase": 0.5, "neighborhood": 2.0}
    return {f"{group}_prompts_probs": [{"target_new": 1.0, "target_true": (2.5 - worse[group]) if i < rate else worse[group]}
                                       for i in range(4)] for group, rate in rates.items()}


@pytest.fixture
def write(tmp_path):
    """Writes a run of cases with these rates; returns its folder."""
    def run(m, rates, num_edits=1, alg_name="MEMIT", **layer):
        folder = tmp_path / "runs" / f"{alg_name}_m{m}_{num_edits}" / "run_000"
        flags = {"alg_name": alg_name, "model_name": "world", "ds_name": "world", "num_edits": num_edits}
        run_folder.write_json(folder / "run.json", {"settings": {}, "flags": flags, "cases": len(rates)})
        run_folder.write_json(folder / "params.json", {} if m is None else {"dynamic_multiplier": m})
        layers = {"0": {"keys": 4000, "documents": 50, "seconds": 3.0}}
        if m:
            few = {"keys": 100 * m, "documents": m, "seconds": 0.1, "condition": 1e6}
            layers = {"0": {**few, "rank": 90, "ridge": 1e-5}, "1": {**few, "rank": 80, "condition": 1e7}}
        run_folder.write_json(folder / "statistics.json", {name: {**values, **layer} for name, values in layers.items()})
        for case_id, of_case in enumerate(rates):
            run_folder.write_json(folder / f"{num_edits}_edits-case_{case_id}.json",
                               {"case_id": case_id, "time": 1.0, "pre": case(0, 0, 4), "post": case(*of_case)})
        return folder
    return run


FULL = [(4, 4, 4), (4, 2, 4), (4, 4, 2), (4, 2, 2)]
FAST = [(4, 4, 4), (4, 2, 2), (2, 4, 2), (4, 0, 4)]


def test_percent_of_the_full_statistics():
    fast, full = (np.array(rates).T / 4 for rates in (FAST, FULL))
    value, error = fastmemit.percent(fast, full)

    def score(means):
        return 3 / sum(1 / mean for mean in means)

    def ratio(keep):
        return 100 * score(fast[:, keep].mean(1)) / score(full[:, keep].mean(1))

    left_out = [ratio([i for i in range(4) if i != gone]) for gone in range(4)]
    assert value == pytest.approx(100 * score([0.875, 0.625, 0.75]) / score([1, 0.75, 0.75])) == ratio([0, 1, 2, 3])
    assert error == pytest.approx(np.sqrt(3 / 4 * np.square(np.array(left_out) - np.mean(left_out)).sum()))
    same = fastmemit.percent(full, full)
    assert same == (pytest.approx(100), pytest.approx(0))  # the same cases: no error of the ratio
    assert fastmemit.percent(full[2:], full[2:] * 0.5)[0] == pytest.approx(200)  # not capped
    assert fastmemit.percent(full * 0, full)[0] == 0 and np.isnan(fastmemit.percent(full, full * 0)[0])


def test_figure_and_tables(write, tmp_path):
    for batch in (1, 16):
        write(None, FULL, batch)
        write(2, FAST, batch)
        write(10, FULL, batch)
    files = fastmemit.main([tmp_path / "runs"], tmp_path / "out" / "fast")
    assert [file.name for file in files] == ["fast.pdf", "fast.png", "fast.md", "fast.csv"]
    assert all(file.stat().st_size > 100 for file in files)
    text = files[2].read_text()
    assert "| MEMIT | 2 | 200 | 5 | 2 | 80 | 1e+07 | 1e-05 | 0.1 |" in text
    assert "| MEMIT | full | 4,000 | 100 | 50 |  |  |  | 3 |" in text
    assert "| MEMIT | 16 | 4 | 90.0 ± " in text and "| 100.0 ± 0.0 | 81.8 |" in text
    rows = list(csv.DictReader(files[3].open()))
    assert [(row["num_edits"], row["m"]) for row in rows] == [("1", "2"), ("1", "10"), ("1", "full"),
                                                              ("16", "2"), ("16", "10"), ("16", "full")]
    assert float(rows[0]["efficacy_percent"]) == pytest.approx(87.5) and float(rows[0]["share"]) == 5
    figure = fastmemit.draw(fastmemit.read([tmp_path / "runs"]))
    efficacy = [line for line in figure.axes[1].get_lines() if len(line.get_xdata()) == 3]
    assert [list(line.get_ydata()) for line in efficacy] == [pytest.approx([87.5, 100, 100])] * 2
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["2", "10", "full"]


@pytest.mark.parametrize("change, message", [
    (lambda write: write(2, FAST, 4), "no run of MEMIT, batches of 4, full statistics to compare it with"),
    (lambda write: write(10, FULL[:3]), "has other cases than"),
    (lambda write: (write(2, FAST).parent / "run_001").mkdir() or run_folder.write_json(
        write(2, FAST).parent / "run_001" / "run.json", {}), "was not written by experiments.evaluate"),
    (lambda write: (write(10, FULL) / "statistics.json").unlink(), "has no statistics.json"),
    (lambda write: run_folder.write_json(write(10, FULL[:1]) / "1_edits-case_0.json", {"case_id": 0, "post": {}}),
     "its cases have no 'post_rewrite_success'"),
])
def test_runs_that_cannot_be_compared(write, tmp_path, change, message):
    write(None, FULL)
    write(2, FAST)
    change(write)
    with pytest.raises(UserError, match=message) as error:
        fastmemit.main([tmp_path / "runs"], tmp_path / "out")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("out*"))


def test_two_runs_of_the_same(write, tmp_path):
    run = write(None, FULL)
    run.rename(run.with_name("run_001"))
    write(None, FULL)
    with pytest.raises(UserError, match="run_001 and .*run_000 are both of MEMIT, batches of 1, full statistics"):
        fastmemit.read([tmp_path / "runs"])


def test_no_runs_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fastmemit", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        run_program(fastmemit.command)
    assert capsys.readouterr().err == f"error: no runs in {tmp_path}\n"


def test_runs_tell_their_statistics(run, hparams, tmp_path):
    """From the evaluation to the figure; 512 keys are twice their width."""
    for changes in ({}, {"dynamic_multiplier": 2}):
        folder = run("MEMIT", hparams_fname=hparams("MEMIT", **changes), num_edits=2, dataset_size_limit=4)
    statistics = json.loads((folder / "statistics.json").read_text())
    layers = json.loads((folder / "params.json").read_text())["layers"]
    assert list(statistics) == [str(layer) for layer in layers]
    assert all(layer["keys"] == 512 and layer["rank"] <= 256 and layer["documents"] > 0 for layer in statistics.values())
    points = fastmemit.read([tmp_path / "results"])
    assert [key for key in points] == [("MEMIT", 2, 2), ("MEMIT", 2, np.inf)]
    assert fastmemit.rows(points)[0]["share"] < 100
