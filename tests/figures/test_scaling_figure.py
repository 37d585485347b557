"""The figure of scaling curves, its table, the scripts that lead to it, and runs that do not go together."""

import csv
import os
import subprocess
import sys

import pytest

from common.errors import UserError
from experiments.results import run_folder
from experiments.run.cli import run_program
from figures import scaling
from tests.conftest import ROOT


def prompts(rate, count=4):
    """Of a group of prompts, `rate` that prefer the new target."""
    return [{"target_new": 0.5 if i < rate else 2.0, "target_true": 1.0} for i in range(count)]


@pytest.fixture
def write(tmp_path):
    """Writes a run; the rates of efficacy, paraphrase and neighbourhood after the edit are in quarters."""
    def run(editor, edits, rates=(4, 2, 3), known_rate=4, cases=2, model="world", name=None, zsre=False):
        folder = tmp_path / "runs" / (name or f"{editor}_{edits}") / "run_000"
        flags = {"alg_name": editor, "model_name": model, "ds_name": "world", "num_edits": edits}
        run_folder.write_json(folder / "run.json", {"settings": {}, "flags": flags, "cases": cases})
        run_folder.write_json(folder / "params.json", {})

        def measured(new, paraphrase, neighbours):
            if zsre:
                return {f"{group}_prompts_correct": [i < rate for i in range(4)]
                        for group, rate in (("rewrite", new), ("paraphrase", paraphrase), ("neighborhood", neighbours))}
            return {"rewrite_prompts_probs": prompts(new), "paraphrase_prompts_probs": prompts(paraphrase),
                    "neighborhood_prompts_probs": prompts(4 - neighbours)}

        for case in range(cases):
            run_folder.write_json(folder / f"{edits}_edits-case_{case}.json",
                               {"case_id": case, "time": 1.0, "pre": measured(0, 0, known_rate), "post": measured(*rates)})
        return folder
    return run


def test_curves_and_table(write, tmp_path):
    write("MEMIT", 1)
    write("MEMIT", 100, (4, 4, 4))
    write("MEMIT", 10000, (3, 3, 1), known_rate=2)
    write("FT", 100, (4, 4, 0))
    files = scaling.main([tmp_path / "runs"], tmp_path / "out" / "scaling")
    assert [file.name for file in files] == ["scaling.pdf", "scaling.png", "scaling.csv"]
    rows = list(csv.DictReader(files[2].open()))
    assert [(row["editor"], row["num_edits"], row["knows_neighbours"]) for row in rows] == [
        ("FT", "100", "True"), ("MEMIT", "1", "True"), ("MEMIT", "100", "True"), ("MEMIT", "10000", "False")]
    assert float(rows[1]["post_score"]) == pytest.approx(3 / (1 + 2 + 4 / 3) * 100, abs=0.01)
    assert rows[0]["post_score"] == "0.00"
    assert float(rows[1]["pre_neighborhood_success"]) == 100 and rows[1]["cases"] == "2"

    schema, points = scaling.read([tmp_path / "runs"])
    figure = scaling.draw(schema, points)
    drawn = {tuple(line.get_xdata()): list(line.get_ydata()) for line in figure.axes[1].get_lines()
             if line.get_marker() != "x" and line.get_color() != "black"}
    assert drawn[1, 100, 10000] == pytest.approx([100, 100, 75]) and figure.axes[0].get_xscale() == "log"
    marks = [line for line in figure.axes[1].get_lines() if line.get_color() == "black" and line.get_marker() == "s"]
    assert len(marks) == 1 and list(marks[0].get_ydata()) == [96.6, 99.38, 98.12, 96.33, 93.95]
    crosses = [list(line.get_xdata()) for line in figure.axes[3].get_lines() if line.get_marker() == "x"]
    assert crosses == [[], [10000]]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "MEMIT, published for Llama-2 7B on CounterFact (FastMEMIT, tables 26 and 31)" in labels
    assert "facts that the model does not know" in labels
    without = scaling.draw(schema, points, published=False)
    assert all(len(ax.get_lines()) < len(with_them.get_lines()) for ax, with_them in zip(without.axes, figure.axes))


def test_published_points_are_harmonic_means():
    for points in scaling.PUBLISHED.values():
        for *parts, score in points.values():
            assert 3 / sum(1 / part for part in parts) == pytest.approx(score, abs=0.03)


def test_zsre_has_accuracies(write, tmp_path):
    write("MEMIT", 10, (4, 2, 4), zsre=True)
    write("MEMIT", 100, (2, 2, 2), zsre=True)
    schema, points = scaling.read([tmp_path / "runs"])
    assert schema == "zsre"
    figure = scaling.draw(schema, points)
    assert [ax.get_title() for ax in figure.axes] == ["score of accuracies", "efficacy", "paraphrase", "specificity"]
    assert [len(ax.get_lines()) for ax in figure.axes] == [2] * 4  # what was before, and one editor


@pytest.mark.parametrize("change, message", [
    (lambda write: write("MEMIT", 100, name="again"), "a second run of MEMIT with 100 edits"),
    (lambda write: write("FT", 1, model="gpt2"), "runs of different models: gpt2 .*, world"),
    (lambda write: write("FT", 1, zsre=True), "runs of different schemas"),
    (lambda write: run_folder.write_json(
        write("FT", 1, cases=1) / "1_edits-case_0.json", {"case_id": 0, "time": 1.0, "post": {}}),
     "neither success nor accuracy"),
    (lambda write: run_folder.write_json(write("FT", 1) / "run.json", {}), "was not written by experiments.evaluate"),
])
def test_runs_that_do_not_go_together(write, tmp_path, change, message):
    write("MEMIT", 100)
    change(write)
    with pytest.raises(UserError, match=message) as error:
        scaling.main([tmp_path / "runs"], tmp_path / "out")
    assert "\n" not in str(error.value) and not list(tmp_path.glob("out*"))


def test_a_run_without_cases_is_left_out(write, tmp_path, capsys):
    write("MEMIT", 100)
    begun = write("FT", 1)
    for path in begun.glob("*case*"):
        path.unlink()
    assert list(scaling.read([tmp_path / "runs"])[1]) == ["MEMIT"]
    assert capsys.readouterr().err == f"left out: {begun}, it has no cases yet\n"


def test_no_runs_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        run_program(scaling.command)
    assert capsys.readouterr().err == f"error: no runs with cases in {tmp_path}\n"


def bash(script, **environment):
    """What a script that has scripts/evaluate.sh prints."""
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", f"source scripts/evaluate.sh; {script}"], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "PYTHON": sys.executable, **environment}, check=True)
    return done.stdout.split()


def test_scripts_find_the_hyperparameters():
    assert bash("editors ROME MEMIT EMMET FT nothing; hparams_of FT; hparams_of FT:world_constr.json") == [
        "ROME", "MEMIT", "EMMET", "FT", "world.json", "world_constr.json"]
    # MEND's network ships; of a model without one it is said what is lacking.
    assert bash("editors MEND") == ["MEND"]
    assert bash("lacking MEND gpt2-xl.json 2>/dev/null", MODEL="gpt2-xl", KE_DATA_DIR="nowhere")
    assert bash("hparams_of FT; hparams_of ROME", MODEL="EleutherAI/gpt-j-6B") == [
        "EleutherAI_gpt-j-6B_wd.json", "EleutherAI_gpt-j-6B.json"]
    assert bash("hparams_of FT", MODEL="gpt2-xl") == ["gpt2-xl_unconstr.json"]
