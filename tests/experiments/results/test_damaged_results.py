"""Damaged folders of results: a damaged case is named and left out, all else ends in one line."""

import json

import pytest

from common.errors import UserError
from experiments import report
from experiments.results import run_folder, summary
from experiments.results.runs import read_run
from figures import scaling, sweep

PROBS = {f"{group}_prompts_probs": [{"target_new": 0.5, "target_true": 1.0}] for group in summary.SCORED}
CASE = {"requested_rewrite": {"prompt": "{} plays the", "subject": "Astrid", "target_new": {"str": "drum"}}, "time": 1.0,
        "post": PROBS}
FLAGS = {"alg_name": "FT", "model_name": "world", "ds_name": "world", "num_edits": 1}


@pytest.fixture
def run(tmp_path):
    """A run of two cases; a test spoils one of its files."""
    folder = tmp_path / "FT" / "run_000"
    run_folder.write_json(folder / "run.json", {"settings": {}, "flags": FLAGS, "cases": 2})
    run_folder.write_json(folder / "params.json", {})
    for case_id in range(2):
        run_folder.write_json(folder / f"1_edits-case_{case_id}.json", CASE | {"case_id": case_id})
    return folder


@pytest.mark.parametrize("content", [
    "", '{"post"', "\udcff", [], None, {"post": None}, {"post": {"rewrite_prompts_probs": [1, 2]}}, {"time": None},
    {"grouped_case_ids": None}, {"requested_rewrite": None},
])
def test_the_report_shows_the_other_cases(run, tmp_path, capsys, content):
    text = content if isinstance(content, str) else json.dumps(CASE | content if isinstance(content, dict) else content)
    (run / "1_edits-case_0.json").write_bytes(text.encode(errors="surrogateescape"))
    assert "cases (1 of 2)" in report.main([run], tmp_path / "report.html").read_text()
    (line,) = capsys.readouterr().err.splitlines()
    assert "1_edits-case_0.json: " in line and line.endswith(("(left out)", "(not shown)"))


@pytest.mark.parametrize(("change", "message"), [
    ({"flags": 2}, "was not written by experiments.evaluate, or is damaged"),
    ({"flags": {"alg_name": "FT"}}, "was not written by"),
    ({"flags": FLAGS | {"num_edits": None}}, "was not written by"),
    ({"cases": None}, "was not written by"),
    ("{", "not readable as JSON .* start a new run in another folder"),
    (None, "params.json: holds no hyper-parameters; start a new run in another folder"),
])
def test_what_a_run_was_made_with(run, change, message):
    path = run / "run.json"
    if change is None:
        path.unlink()
        (run / "params.json").write_text("[1]")
    else:
        about = {"settings": {}, "flags": FLAGS, "cases": 2}
        path.write_text(change if isinstance(change, str) else json.dumps(about | change))
    with pytest.raises(UserError, match=message):
        read_run(run)
    if change is not None:
        with pytest.raises(UserError, match=message):
            scaling.read([run])


@pytest.mark.parametrize("value", [3, {"mean": 50.0}, {"mean": None, "se": None}])
def test_the_table_of_a_sweep(tmp_path, value):
    job = {"settings": {}, "statistics": {"post_score": value}}
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": [job], "varied": []}))
    with pytest.raises(UserError, match="sweep.json: was not written by experiments.sweep"):
        sweep.read(tmp_path)
