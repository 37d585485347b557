"""Retention in summaries, and the figures of sequential runs."""

import json
import shutil

import pytest

from common.errors import UserError
from experiments import report, summarize
from experiments.results import run_folder
from experiments.results.sequences import read_sequence
from figures import lines, sequential, sequential_model
from figures import summary as summary_figure


def case(success, right):
    """Metrics of a case: success and teacher-forced correctness of the rewrite and all else."""
    probs = [{"target_new": 1.0, "target_true": 2.0 if success else 0.5}]
    return {f"{group}_prompts_{key}": value for group in ("rewrite", "paraphrase", "neighborhood")
            for key, value in (("probs", probs), ("correct", [right]))}


@pytest.fixture
def sequence(tmp_path):
    """Writes a run of three batches of two edits; of the first two, one is forgotten at 4 edits and the other at 6."""
    def write(alg_name="MEMIT", **flags):
        flags = {"alg_name": alg_name, "model_name": "world", "ds_name": "world", "num_edits": 2, "sequential": True, **flags}
        run = tmp_path / alg_name / "run_000"
        ids = [50, 3, 20, 21, 7, 6]
        run_folder.write_json(run / "run.json", {"settings": {}, "flags": flags, "cases": 6})
        for case_id in ids:
            run_folder.write_json(run / f"2_edits-case_{case_id}.json", {
                "case_id": case_id, "grouped_case_ids": [case_id], "time": 1.0, "pre": case(False, False),
                "post": case(True, True)})
        unedited = {"batch": 0, "edits": 0, "perplexity": 5.0, "downstream": nli(9)}
        run_folder.write_json(run / "batches" / "000000.json", unedited)
        for batch, edits in enumerate((2, 4, 6), 1):
            weights = {f"h.{layer}.c_proj": {"distance_from_original": 1e-4 * batch, "relative_distance": 0.1 * batch,
                                             "norm": 5.0 + batch} for layer in (9, 10)}
            weights["h.9.c_proj.bias"] = {"norm": 1.0}
            content = {"batch": batch, "edits": edits, "case_ids": ids[edits - 2:edits], "seconds": 1.0, "memory_mb": 600.0,
                       "weights": weights}
            run_folder.write_json(run / "batches" / f"{edits:06d}.json", content | (
                {"perplexity": 5.0 + batch, "downstream": nli(9 - batch)} if edits > 2 else {}))
        for edits, wrong in ((4, [3]), (6, [3, 50])):
            history = [{"case_id": i, "post": case(i not in wrong, i not in wrong)} for i in ids[:edits]]
            path = run / "history" / f"{edits:06d}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in history))
        return run
    return write


def nli(correct):
    return {"nli": {"accuracy": correct / 10, "f1": correct / 10, "accuracy_new": correct / 10, "total": 10, "majority": 0.5}}


def test_a_sequence_in_the_order_of_its_edits(sequence):
    run = read_sequence(sequence())
    assert [case["right"] for case in run.cases] == [1] * 6
    assert {edits: [case["right"] for _, case in sorted(cases.items())] for edits, cases in run.history.items()} == {
        4: [1, 0, 1, 1], 6: [0, 0, 1, 1, 1, 1]}


def test_retention_stands_beside_pre_and_post(sequence, tmp_path, monkeypatch, capsys):
    about, lists = summarize.read_run(sequence())
    assert sorted(lists["retention_rewrite_success"]) == [0, 0, 1, 1, 1, 1] and lists["post_rewrite_success"] == [1] * 6
    assert (lists["pre_perplexity"], lists["retention_perplexity"]) == ([5], [8])
    assert (lists["pre_nli_f1"], lists["retention_nli_f1"]) == ([0.9], [0.6])
    _, first = summarize.read_run(tmp_path / "MEMIT" / "run_000", first_n_cases=10)
    assert first["retention_rewrite_success"] == [0, 1, 1]  # 3, 6, 7
    monkeypatch.setattr("sys.argv", ["summarize", "--dir_name", "MEMIT", "--results_dir", str(tmp_path)])
    summarize.command()
    out = capsys.readouterr().out
    rows = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in out.splitlines())}
    assert rows["cases"] == ["6", "6", "6"] and rows["perplexity"] == ["5.0", "", "8.0"]
    assert rows["efficacy success"] == ["0.0 ± 0.0", "100.0 ± 0.0", "66.7 ± 21.1"]
    assert "retention: measured again after 6 edits" in out


def test_a_broken_model_s_perplexity_is_null_in_json(sequence, tmp_path, monkeypatch, capsys):
    run = sequence()
    content = json.loads((run / "batches" / "000006.json").read_text())
    (run / "batches" / "000006.json").write_text(json.dumps(content | {"perplexity": float("inf")}))
    monkeypatch.setattr("sys.argv", ["summarize", "--dir_name", "MEMIT", "--results_dir", str(tmp_path)])
    summarize.command()
    (written,) = json.loads((tmp_path / "MEMIT" / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert written["metrics"]["retention_perplexity"]["mean"] is None and "inf" in capsys.readouterr().out
    assert sequential_model.draw_perplexity([("a run", read_sequence(run))])


def test_lines_show_the_values(sequence):
    run = read_sequence(sequence())
    grid = sequential.draw_retention([("a run", run)]).axes
    lines = [(list(line.get_xdata()), line.get_ydata()[-1]) for line in grid[0].get_lines()]
    assert lines == [([4, 6], pytest.approx(200 / 3))]
    top, of_edits, of_learnt = sequential.draw_forgetting([("a run", run)]).axes
    assert sum(bar.get_height() for bar in top.patches) == 2
    assert top.get_title() == "MEMIT: 2 of 6 learnt\nmean 3.5, std 1.5"  # withstood 2 and 5 further edits
    assert of_edits.get_lines()[0].get_ydata().tolist() == of_learnt.get_lines()[0].get_ydata().tolist() == [
        25, pytest.approx(100 / 3)]
    norms = sequential_model.draw_norms([("a run", run)]).axes
    assert [ax.get_title() for ax in norms[:3]] == ["layer 9", "layer 9, bias", "layer 10"]
    assert list(norms[0].get_lines()[0].get_ydata()) == pytest.approx([0.1, 0.2, 0.3])
    downstream = sequential_model.draw_downstream([("a run", run)]).axes
    assert list(downstream[0].get_lines()[0].get_ydata()) == pytest.approx([90, 70, 60])
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in sequential_model.draw_cost([("a run", run)]).axes] == [
        ("edits in the model", "memory of the process (MiB)"), ("edits in the model", "seconds an edit batch")]


def test_the_report_takes_the_distances_that_there_are(sequence, tmp_path):
    text = report.main([sequence()], tmp_path / "report.html").read_text()
    assert "distance of the weights" in text and "seconds a batch" in text


def test_current_edits_are_means_of_five(sequence):
    path = sequence()
    (path / "2_edits-case_20.json").write_text(json.dumps({"case_id": 20, "post": case(False, True)}))
    (path / "2_edits-case_7.json").unlink()  # what is missing is passed over
    axes = sequential.draw_current([("a run", read_sequence(path))]).axes
    mean, average = axes[0].get_lines()
    assert list(mean.get_xdata()) == [5] and list(mean.get_ydata()) == list(average.get_ydata()) == [75]
    assert axes[3].get_ylabel().startswith("accuracy") and axes[3].get_lines()[0].get_ydata() == [100]


def test_figures_are_written_of_what_there_is(sequence, tmp_path, monkeypatch, capsys):
    runs = [sequence("ROME"), sequence("MEMIT")]
    shutil.rmtree(runs[0] / "history")  # what one run lacks is drawn of the other
    monkeypatch.setattr(sequential, "FIGURES", {name: sequential.FIGURES[name] for name in ("retention", "perplexity")})
    files = sequential.main(runs, tmp_path / "figures" / "both")
    assert [file.name for file in files] == [
        "both_retention.pdf", "both_retention.png", "both_perplexity.pdf", "both_perplexity.png"]
    assert all(file.read_bytes().startswith(b"%PDF" if file.suffix == ".pdf" else b"\x89PNG") for file in files)
    assert capsys.readouterr().out == ""
    shutil.rmtree(runs[1] / "history")
    assert len(sequential.main(runs, tmp_path / "figures" / "less")) == 2
    assert capsys.readouterr().out == "not drawn: retention; no run has a history (--history_eval_steps)\n"


def test_runs_are_told_apart_without_colour():
    looks = [tuple(str(lines.style(number)[key]) for key in ("color", "linestyle", "marker")) for number in range(20)]
    assert len(set(looks)) == 20
    assert all(a != b for one, next_one in zip(looks, looks[1:]) for a, b in zip(one, next_one))


def test_the_summary_figure_shows_retention(sequence):
    _, lists = summarize.read_run(sequence())
    statistics = summarize.summary.statistics(lists)
    success = summary_figure.draw([("a run", statistics)]).axes[0]
    assert [line.get_ydata()[0] for line in success.get_lines() if line.get_marker() == "D"] == [pytest.approx(200 / 3)] * 2 + [
        pytest.approx(100 / 3)]
    only = {key: value for key, value in statistics.items() if not key.startswith("post_")}  # an AlphaEdit folder
    assert len(summary_figure.draw([("a run", only)]).axes) == 2


def test_a_run_that_is_no_sequence(sequence, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="FT/run_000: not a sequential run"):
        sequential.main([sequence("FT", sequential=False)], tmp_path / "drawn")
    with pytest.raises(UserError, match="no runs in "):
        sequential.main([tmp_path / "FT" / "run_000" / "batches"], tmp_path / "drawn")
    run = sequence("ROME")
    path = run / "history" / "000004.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match="000004.jsonl: line 4 can't be read"):
        sequential.main([run], tmp_path / "drawn")
    for post in (None, {"rewrite_prompts_probs": [1, 2]}):
        path.write_text(json.dumps({"case_id": 50, "post": post}))
        path.with_name("000006.jsonl").write_text(path.read_text())  # a summary reads the last
        for read in (read_sequence, summarize.read_run):
            with pytest.raises(UserError, match="jsonl: line 1 can't be read"):
                read(run)
    shutil.rmtree(run / "history")
    for content in ([], {"edits": "x"}, {"edits": 2, "weights": [1]}, {"edits": 2, "downstream": None}):
        (run / "batches" / "000002.json").write_text(json.dumps(content))
        for read in (lambda run: sequential.main([run], tmp_path / "drawn"), summarize.read_run):
            with pytest.raises(UserError, match="000002.json: not written by experiments.evaluate"):
                read(run)
    assert not list(tmp_path.glob("drawn*"))
