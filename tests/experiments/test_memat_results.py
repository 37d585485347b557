"""Tables and figures of runs in two languages, from stage folders with known numbers."""

import csv
import json
import math
from collections import Counter

import numpy as np
import pytest

from common.errors import UserError
import data
from experiments import memat_results
from experiments.results import memat_published
from figures import head_relevance, memat_comparison, memat_sweep, tokenisation

CHUNKS = ((0, 1), (2, 3), (4, 5))
EFFICACY = {0: (50, 100, 100), 8: (100, 100, 100), 16: (100, 50, 100)}
"""Heads -> efficacy success of each chunk."""


def case(case_id, chunk, new, true=0.5):
    probs = [{"target_new": new, "target_true": true}]
    post = {f"{group}_prompts_{key}": value for group in ("rewrite", "paraphrase", "neighborhood")
            for key, value in (("probs", probs), ("correct", [new < true]))}
    post["neighborhood_prompts_probs"] = [{"target_new": true, "target_true": 0.25}]
    return {"case_id": case_id, "grouped_case_ids": list(chunk), "num_edits": 2, "time": 1.0, "post": post, "pre": {}}


@pytest.fixture
def stage(tmp_path):
    """Writes a stage folder; efficacy success of each chunk as in EFFICACY."""
    def write(pair="EE", measured="english", heads=0, name="memat", alpha=None, profile="default", cases=6, efficacy=None):
        full = {"E": "english", "C": "catalan"}
        folder = tmp_path / "results" / f"{pair}_{profile}" / "run_000" / f"{name}_{heads}_{alpha}" / measured
        folder.mkdir(parents=True)
        flags = {"alg_name": "MEMAT", "model_name": "world", "ds_name": "world", "num_edits": 2}
        about = {"settings": {}, "flags": flags, "cases": 6, "stage": {
            "name": name if heads else "memit", "heads": heads, "alpha": alpha, "language": full[pair[0]],
            "language_eval": full[pair[1]], "measured": measured, "profile": profile}}
        (folder / "run.json").write_text(json.dumps(about))
        for chunk, success in zip(CHUNKS, efficacy or EFFICACY[heads]):
            for case_id, right in zip(chunk, (True, success == 100)):
                if case_id < cases:
                    content = case(case_id, chunk, 0.125 if right else 2.0)
                    (folder / f"2_edits-case_{case_id}.json").write_text(json.dumps(content))
        return folder
    return write


def test_values_are_means_over_chunks_and_gains_are_paired(stage, tmp_path):
    for heads in EFFICACY:
        stage(heads=heads)
    stages = memat_results.read([tmp_path])
    base, more = (stages["default", "EE", "english", name, heads, 0.0] for name, heads in (("memit", 0), ("memat", 8)))
    assert base.value("ES") == pytest.approx((250 / 3, np.std([50, 100, 100], ddof=1) / math.sqrt(3)))
    assert more.value("ES") == (100, 0) and more.gain(base, "ES") == pytest.approx((50 / 3, 50 / 3))
    assert base.value("NS") == (100, 0)
    assert more.value("EM")[0] == pytest.approx(100 * (math.exp(-0.125) - math.exp(-0.5)))
    assert more.value("NM")[0] == pytest.approx(100 * (math.exp(-0.25) - math.exp(-0.5)))
    harmonic = [3 / (2 / es + 1 / 100) for es in (50, 100, 100)]  # of each chunk; paraphrases are as the rewrites are
    assert base.value("Score")[0] == pytest.approx(np.mean(harmonic))


def test_table_has_gains_and_marks_published_values(stage, tmp_path, capsys):
    for heads in EFFICACY:
        stage(heads=heads)
        stage(heads=heads, profile="paper")
    markdown, table = memat_results.main([tmp_path], tmp_path / "table")
    text = markdown.read_text()
    assert text.count("| *published* |") == 6 and "*98.4*" in text and "Profile paper" in text
    assert "| EE | english | MEMAT K=8 | 100.0 ± 0.0 |" in text and "| +16.7 ± 16.7 |" in text
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 6 and rows[0]["ES_published"] == "98.39" and rows[0]["ES_gain"] == "" and rows[0]["chunks"] == "3"
    assert float(rows[1]["ES_gain"]) == pytest.approx(50 / 3)


def test_published_values():
    published = memat_published.values
    assert Counter(key[0] for key in memat_published.VALUES) == {"memit": 8, "memat": 34, "iti": 20, "ported": 8}
    assert published("memit", "english", "EC", 0, 0) == published("memit", "english", "EE", 0, 0)
    assert published("memat", "catalan", "CE", 16, 0)["EM"] == 73.40 != published("ported", "catalan", "CE", 16, 0)["EM"]
    assert published("iti", "english", "CE", 10, 15.0)["EA"] == 37.10
    assert published("memit", "english", "(C+E)", 0, 0)["ES"] == 93.4
    for nothing in (("memat", "english", "EE", 24, 0), ("iti", "catalan", "CE", 10, 15.0), ("ported", "english", "EE", 8, 0)):
        assert published(*nothing) is None
    for values in memat_published.VALUES.values():  # the score is the harmonic mean of the successes
        if "Score" in values:
            assert 3 / sum(1 / values[key] for key in ("ES", "PS", "NS")) == pytest.approx(values["Score"], abs=0.25)


def test_bilingual_and_ported_stages_are_of_their_own_kind(stage, tmp_path):
    for name, settings, flags in (
        ("a", {"bilingual": "sum"}, {}), ("b", {"bilingual": "joint"}, {}), ("c", {"profile": None}, {}),
        ("d", {"name": "memat", "heads": 16}, {"head_ind": "heads.npy"}),
    ):
        folder = stage("CE", profile=name)
        about = json.loads((folder / "run.json").read_text())
        about["stage"] |= {"profile": "default", **settings}
        about["flags"] |= flags
        (folder / "run.json").write_text(json.dumps(about))
    keys = [key[1:5] for key in memat_results.read([tmp_path])]
    assert keys == [("(C+E)", "english", "memit", 0), ("C+E", "english", "memit", 0), ("CE", "english", "memit", 0),
                    ("CE", "english", "ported", 16)]
    rows = memat_results.rows(memat_results.read([tmp_path]))
    assert [row["ES_published"] for row in rows] == [93.4, 98.3, 88.76, 89.5]
    assert memat_sweep.pair_name("(C+E)") == "(C+E): joint edits and heads in Catalan and English"
    assert "| *89.5* |" in memat_results.text_of(rows)


@pytest.mark.parametrize("spoil, message", [
    (lambda stage: None, "no stages of runs in two languages"),
    (lambda stage: stage(cases=5), "has 5 of 6 cases"),
    (lambda stage: stage(heads=8), "can't be compared with MEMIT alone: there is none"),
])
def test_what_can_not_be_compared_is_said(stage, tmp_path, spoil, message):
    spoil(stage)
    with pytest.raises(UserError, match=message):
        memat_results.main([tmp_path], tmp_path / "table")
    assert not (tmp_path / "table.md").exists()


def test_two_runs_of_a_kind_are_refused(stage, tmp_path):
    (tmp_path / "again").mkdir()
    folder = stage(heads=8)
    (folder.parent / "copy").mkdir()
    (folder.parent / "copy" / "run.json").write_text((folder / "run.json").read_text())
    for file in folder.glob("*case*"):
        (folder.parent / "copy" / file.name).write_text(file.read_text())
    with pytest.raises(UserError, match="are both of MEMAT, 8 heads .EE, measured in english, profile default."):
        memat_results.read([tmp_path])


# ---- figures

def drawn(files):
    for path in files:
        assert path.read_bytes().startswith({".pdf": b"%PDF", ".png": b"\x89PNG"}[path.suffix]) and path.stat().st_size > 5000
    return [path.stem for path in files if path.suffix == ".png"]


def test_sweep_over_heads(stage, tmp_path):
    for pair in ("EE", "CE"):
        for heads in EFFICACY:
            stage(pair, "english", heads)
    figures = memat_sweep.main([tmp_path], tmp_path / "heads", published=True)
    assert drawn(figures) == ["heads_default_english", "heads_default_scores"]
    stages = memat_results.read([tmp_path])
    curves = memat_sweep.over_heads([stage for key, stage in stages.items() if key[2] == "english"])
    assert list(curves) == ["CE", "EE"] and [stage.heads for stage in curves["EE"]] == [0, 8, 16]
    figure = memat_sweep.grid(curves, lambda s: s.heads, "heads", ["a", "b"], memat_sweep.published_in("english"))
    line, marks = figure.axes[0].get_lines()[:2]
    assert list(line.get_xdata()) == [0, 8, 16] and list(line.get_ydata()) == pytest.approx([250 / 3, 100, 250 / 3])
    assert list(marks.get_ydata()) == [88.76, 90.47, 90.83]  # CE, measured in English
    assert [ax.get_ylabel()[:2] for ax in figure.axes] == ["ES", "EA", "EM", "PS", "PA", "PM", "NS", "NA", "NM"]
    assert drawn(memat_comparison.main([tmp_path], tmp_path / "bars")) == ["bars_default_english"]


def test_sweep_over_alpha(stage, tmp_path):
    stage("CE", "english", 0)
    with pytest.raises(UserError, match="none of these runs has ITI's stages"):
        memat_sweep.main([tmp_path], tmp_path / "iti", over="alpha")
    for heads in (1, 5):
        for alpha in (1.0, 15.0):
            stage("CE", "english", heads, "iti", alpha, efficacy=(100, 100, 50))
    assert drawn(memat_sweep.main([tmp_path], tmp_path / "iti", over="alpha", published=True)) == ["iti_default_CE_english"]
    assert "ITI K=5 α=15" in memat_results.main([tmp_path], tmp_path / "t")[0].read_text()


def test_head_relevance(tmp_path):
    run = tmp_path / "run_000"
    with pytest.raises(UserError, match="no relevance of heads"):
        head_relevance.main([run], tmp_path / "map")
    (run / "relevance").mkdir(parents=True)
    for chunk, best in enumerate((0.9, 0.7)):
        accuracy = np.full((3, 4), 0.5)
        accuracy[1, 2] = best
        (run / "relevance" / f"{chunk:06d}.json").write_text(json.dumps({
            "chunk": chunk, "language": "catalan", "language_eval": "english", "accuracy": accuracy.tolist(),
            "heads": [[1, 2], [0, chunk]]}))
    relevance = head_relevance.read(run)
    assert relevance.label.startswith("CE: edits in Catalan, heads in English") and relevance.chunks == 2
    assert relevance.accuracy[1, 2] == pytest.approx(80) and relevance.accuracy.max() == relevance.accuracy[1, 2]
    assert relevance.chosen[1, 2] == 1 and relevance.chosen[0, :2].tolist() == [0.5, 0.5]
    assert head_relevance.read(run, heads=1).chosen.sum() == 1
    assert drawn(head_relevance.main([run, run], tmp_path / "map.pdf")) == ["map"]
    assert drawn(head_relevance.main([run], tmp_path / "by_head", by_head=True)) == ["by_head"]


def test_tokenisation_of_the_golden_records(golden, tmp_path):
    records = {name: json.loads((golden / "memat" / f"records_{name}.json").read_text()) for name in ("english", "catalan")}
    records["english"][3]["requested_rewrite"]["subject"] = "zzz qqq"
    for language, content in records.items():
        (tmp_path / f"{language}_CF.json").write_text(json.dumps(content))
    files = tokenisation.main(str(golden / "memat" / "tiny-falcon"), "english_CF.json", tmp_path / "tok", data_dir=tmp_path,
                              subsets=tmp_path / "subsets")
    assert drawn(files[:2]) == ["tok"]
    rows = list(csv.DictReader(files[2].open()))
    assert len(rows) == 30 and all(sum(int(row["facts"]) for row in rows if row["part"] == part) == 24
                                   for part in ("subject", "relation", "target"))
    assert sorted(path.name for path in files[3:]) == sorted(
        f"data_{tag}_{kind}_subj.json" for tag in ("cat", "eng") for kind in ("dif", "eq"))
    different = data.load_aligned(str(tmp_path / "subsets" / "data_cat_dif_subj.json"), ["catalan", "english"])
    assert records["english"][3]["case_id"] in [record.case_id for record in different["english"]]
    assert len(data.load(tmp_path / "subsets" / "data_eng_eq_subj.json", language="english")) >= 15


def test_tenths_of_similarities():
    assert tokenisation.counts([0, 0.1, 1 / 3, 0.3, 0.7, 1 - 0.3, 1]) == [1, 1, 0, 2, 0, 0, 0, 2, 0, 1]
