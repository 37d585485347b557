"""Summaries: the published figures from published folders, and what this toolkit adds."""

import csv
import json
import math
import shutil
import sys

import numpy as np
import pytest

from experiments import summarize
from experiments.results import summary


def test_equal_to_the_published_summaries(golden):
    expected = json.loads((golden / "evaluate_cli.json").read_text())
    for alg_name, runs in expected["summary"].items():
        by_run = {s["run_dir"][-7:]: s for s in summarize.main(alg_name, results_dir=golden / "results_example")}
        assert len(by_run) == len(runs)
        for theirs in runs:
            _same(by_run[theirs["run_dir"][-7:]], theirs)
    (first,) = summarize.main("MEMIT", ["run_000"], first_n_cases=3, results_dir=golden / "results_example")
    _same(first, expected["summary_first3"][0])
    (lists,) = summarize.main("MEMIT", ["run_001"], get_uncompressed=True, results_dir=golden / "results_example")
    assert sorted(lists) == expected["uncompressed_keys"][0]
    assert len(lists["post_rewrite_diff"]) == lists["num_cases"] == 5


def _same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key in theirs.keys() - {"run_dir"}:
        assert np.allclose(ours[key], theirs[key], rtol=1e-12, equal_nan=True), key


def _case(nll_new, nll_true, **more):
    probs = [{"target_new": nll_new, "target_true": nll_true}]
    return {"time": 1.0, "post": {f"{group}_prompts_probs": probs for group in summary.SCORED} | more}


def test_success_and_difference():
    values = summary.case_values(_case(0.1, 2.0))
    difference = math.exp(-0.1) - math.exp(-2.0)
    assert [values[f"post_{group}_success"] for group in summary.SCORED] == [1, 1, 0]
    assert [values[f"post_{group}_diff"] for group in summary.SCORED] == pytest.approx([difference, difference, -difference])


def test_the_gap_is_between_the_same_prompts():
    values = summary.case_values(_case(
        1, 2, rewrite_prompts_correct=[True, True, False, True], rewrite_prompts_generated_exact=[True, False, False, False],
        rewrite_prompts_generated_starts=[True, True, False, False]))
    assert (values["post_rewrite_acc"], values["post_rewrite_generated"], values["post_rewrite_gap"]) == (0.75, 0.25, 0.5)
    assert values["post_rewrite_generated_starts"] == 0.5


def test_standard_errors():
    lists = {"post_rewrite_acc": [1.0, 0.0, 1.0, 1.0], "time": [2.0, 2.0, 2.0, 2.0]}
    statistics = summary.statistics(lists)
    assert statistics["post_rewrite_acc"] == {"mean": 75.0, "se": pytest.approx(25.0), "n": 4}
    assert statistics["time"] == {"mean": 2.0, "se": 0.0, "n": 4}
    assert summary.statistics({"time": [2.0]})["time"]["se"] is None


def test_the_score_s_error_is_that_of_repeated_experiments():
    """The jackknife's standard error against the spread of the score over many drawn samples."""
    rng = np.random.default_rng(0)
    scores, errors = [], []
    for _ in range(300):
        values = np.clip(rng.normal(0.6, 0.2, (3, 60)) + rng.random((1, 60)) * 0.2, 0, 1)  # groups of a case go together
        lists = {f"post_{group}_success": list(row) for group, row in zip(summary.SCORED, values)}
        score = summary.statistics(lists)["post_score"]
        scores.append(score["mean"])
        errors.append(score["se"])
    assert np.mean(errors) == pytest.approx(np.std(scores), rel=0.15)


def test_a_score_with_a_zero_is_zero():
    lists = {f"post_{group}_success": [0.0, 0.0] if group == "rewrite" else [1.0, 1.0] for group in summary.SCORED}
    assert summary.published(lists)["post_score"][0] == 0
    assert summary.statistics(lists)["post_score"]["mean"] == 0


def test_a_score_where_one_case_lacks_paraphrases():
    lists = {f"post_{group}_success": [0.5, 1.0, 0.0] for group in summary.SCORED}
    del lists["post_paraphrase_success"][2]
    assert summary.statistics(lists)["post_score"] == {"mean": pytest.approx(100 * 3 / (2 + 4 / 3 + 2)), "se": None, "n": 2}
    assert summary.published(lists)["post_score"][0] == pytest.approx(summary.statistics(lists)["post_score"]["mean"])


def test_rome_folders(golden, tmp_path):
    """case_<id>.json, with pre and post."""
    run = tmp_path / "ROME" / "run_000"
    run.mkdir(parents=True)
    for path in (golden / "results_example" / "ROME" / "run_000").glob("*case*.json"):
        case = json.loads(path.read_text())
        case["pre"] = case["post"]
        (run / path.name.replace("1_edits-", "")).write_text(json.dumps(case))
    (folder_summary,) = summarize.main("ROME", results_dir=tmp_path)
    assert folder_summary["pre_score"][0] == folder_summary["post_score"][0] == pytest.approx(73.6166, abs=1e-4)


def test_a_damaged_case_is_reported_and_not_counted(golden, tmp_path, capsys):
    run = shutil.copytree(golden / "results_example" / "MEMIT" / "run_000", tmp_path / "MEMIT" / "run_000")
    broken = run / "5_edits-case_4.json"
    broken.write_text(broken.read_text()[:100])
    (run / "5_edits-case_6.json").write_text('["of another program"]')
    (run / "5_edits-case_7.json").write_text('{"post": {"rewrite_prompts_probs": [{"target_new": 1}]}}')
    (folder_summary,) = summarize.main("MEMIT", results_dir=tmp_path)
    assert folder_summary["num_cases"] == 9
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition("edits-case_")[2][:1] for line in errors] == ["4", "6", "7"]


def test_command_writes_what_it_prints(golden, tmp_path, monkeypatch, capsys):
    argv = ["summarize", "--dir_name", "MEMIT,ROME,FT", "--results_dir", golden / "results_example", "--out", tmp_path]
    monkeypatch.setattr("sys.argv", [*map(str, argv), "--all"])
    summarize.command()
    assert "[6] post" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", list(map(str, argv)))
    summarize.command()
    printed = capsys.readouterr().out
    assert "[5] ROME/run_000" in printed and "62.4 ± 4.1" in printed
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    assert head[:6] == ["in %", "cases", "score", "score (acc.)", "ES", "PS"] and len(rows) == 6
    assert rows[0][:3] == ["[1] post", "12", "62.4 ± 4.1"]
    assert max(map(len, printed.splitlines())) < 200
    assert (tmp_path / "summary.md").read_text().strip() in printed
    runs = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(runs) == 6 and runs[0]["published"]["post_score"] == [pytest.approx(62.39016), None]
    assert runs[0]["metrics"]["post_rewrite_success"]["n"] == 12
    with open(tmp_path / "summary.csv") as file:
        rows = list(csv.DictReader(file))
    assert {row["run_dir"] for row in rows} == {run["run_dir"] for run in runs}
    assert float(next(row["mean"] for row in rows if row["metric"] == "post_rewrite_success")) == 75.0


def test_own_folders_tell_gap_and_progress(run, tmp_path, monkeypatch, capsys):
    folder = run("FT", num_edits=4)
    (folder / "4_edits-case_11.json").unlink()
    monkeypatch.setattr("sys.argv", ["summarize", "--dir_name", "FT", "--results_dir", str(tmp_path / "results")])
    summarize.command()
    out, err = capsys.readouterr()
    for text in ("FT, tiny-gpt2, multi_counterfact.json, 4 edits", "efficacy generated exactly", "[1] pre", "in %"):
        assert text in out
    assert "gap teacher-forced" not in out
    monkeypatch.setattr("sys.argv", [*sys.argv, "--all"])
    summarize.command()
    assert "gap teacher-forced - generated" in capsys.readouterr().out
    assert "11 of 12 cases" in err
    assert (tmp_path / "results" / "FT" / "summary.json").exists()
    run("FT", num_edits=4, continue_from_run="run_000")  # a summary beside the runs is no run


def test_figure(golden, run, tmp_path):
    from figures import summary as figure
    run_folder = run("FT", num_edits=4, dataset_size_limit=4)
    files = figure.main([run_folder, golden / "results_example" / "ROME"], tmp_path / "figures" / "both")
    assert [file.name for file in files] == ["both.pdf", "both.png"]
    assert files[0].read_bytes().startswith(b"%PDF") and files[1].read_bytes().startswith(b"\x89PNG")
    statistics = [(name, {"post_rewrite_success": {"mean": 50.0 + i, "se": 1.0, "n": 4}}) for i, name in enumerate("abc")]
    statistics.append(("zsre", {f"{prefix}_rewrite_acc": {"mean": 9.0, "se": None, "n": 1} for prefix in summary.PREFIXES}))
    drawn = figure.draw(statistics)
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    # Also of runs that the first panel has no bars of.
    assert legend == ["a", "b", "c", "zsre", "before the edit", "left at the end of the sequence"]
    panel, _ = drawn.axes
    assert [bar.get_height() for bar in panel.patches] == [50, 51, 52]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in panel.patches}) == 3
