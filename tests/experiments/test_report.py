"""The report: complete, self-contained, and safe whatever the texts hold."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from common.errors import UserError
from experiments import report
from experiments.results import html, summary
from experiments.results.runs import read_run
from experiments.run.cli import run_program


class Page(HTMLParser):
    """What a browser would load (`addresses`), the tags, whether every one that was opened is closed, and the text."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.tags, self.open, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        names = ("src", "href", "srcset", "action", "data", "poster", "xlink:href")
        self.addresses += [value for name, value in attributes if name in names or (name == "style" and "url(" in value)]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "img"):
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(path) -> Page:
    text = path.read_text()
    page = Page(text)
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", text) and "script" not in page.tags and "link" not in page.tags
    return page


def test_two_runs(run, tmp_path):
    folders = [run("FT", num_edits=2, dataset_size_limit=4), run("FT", num_edits=1, dataset_size_limit=3)]
    page = read(report.main(folders, tmp_path / "report.html"))
    table = summary.comparison([summary.statistics(lists) for _, lists in map(read_run, folders)])
    for cell in {cell for row in table.texts() for cell in row if cell}:  # every number of the summary is there
        assert cell in page.text
    assert "[1] FT/run_000: FT" in page.text and "[2] FT/run_001: FT" in page.text
    assert page.tags.count("svg") > 2 and page.tags.count("details") == 6
    case = json.loads((folders[0] / "2_edits-case_1.json").read_text())
    assert case["requested_rewrite"]["subject"] in page.text
    assert f"{case['post']['rewrite_prompts_probs'][0]['target_new']:.2f}" in page.text
    assert "settings.seed" in page.text and "norm_constraint" in page.text
    assert not list(tmp_path.glob(".*"))


def test_a_sweeps_folder(run, tmp_path, capsys):
    for name in ("a", "b"):
        run("FT", num_edits=1, dataset_size_limit=1, results_dir=tmp_path / "sweeps", dir_name=name)
    page = read(report.main([tmp_path / "sweeps"], tmp_path / "report.html"))
    assert "[1] a/run_000: FT" in page.text and "[2] b/run_000: FT" in page.text
    next((tmp_path / "sweeps" / "a" / "run_000").glob("*case_*.json")).unlink()  # a job that failed
    capsys.readouterr()
    assert "[1] b/run_000: FT" in read(report.main([tmp_path / "sweeps"], tmp_path / "report.html")).text
    assert "left out: " in capsys.readouterr().err


def test_a_sequence_and_its_pictures(run, tmp_path):
    folder = run("FT", num_edits=2, dataset_size_limit=6, sequential=True, history_eval_steps=1)
    (folder / "curve.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (tmp_path / "other.png").write_bytes(b"\x89PNG")
    page = read(report.main([folder.parent], tmp_path / "report.html", figures=[tmp_path / "other.png"], cases=2))
    assert len(page.addresses) == 2 and "curve.svg" in page.text and "other.png" in page.text
    assert "Over the sequence" in page.text and "distance of the weights" in page.text and "cases (2 of 6)" in page.text
    assert page.tags.count("polyline") >= 5


def test_old_folders(golden, tmp_path):
    page = read(report.main([golden / "results_example" / "MEMIT" / "run_000"], tmp_path / "report.html"))
    assert "efficacy success" in page.text and "hyper-parameters" in page.text


def test_texts_stay_texts(run, tmp_path):
    folder = run("FT", dataset_size_limit=1)
    path, = folder.glob("*case_*.json")
    case = json.loads(path.read_text())
    case["requested_rewrite"]["subject"] = "<script>alert(1)</script> & \" \ud800"
    path.write_text(json.dumps(case))
    page = read(report.main([folder], tmp_path / "report.html", title="a < b"))
    assert "<script>alert(1)</script> & \"" in page.text and "a < b" in page.text


@pytest.mark.parametrize(("argv", "message"), [
    (["nowhere"], "nowhere: no such folder of results"),
    (["empty"], "no runs in .*empty"),
    (["FT", "--figures", "none.png"], "none.png: no such picture"),
    (["FT", "--figures", "figure.pdf"], "figure.pdf: a page holds pictures that end in .png"),
    (["FT", "--out", "file/report.html"], "file/report.html: can't be written"),
    (["FT", "--cases", "0"], "'0' should be a whole number from 1"),
])
def test_mistakes(golden, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(golden / "results_example" / "FT", tmp_path / "FT")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "figure.pdf").write_text("")
    monkeypatch.setattr("sys.argv", ["report", *argv])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_program(report.command)
    line, = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert caught.value.code == 2 and re.search(message, line)
    assert not list(tmp_path.rglob("*.html"))


def test_a_run_without_cases(golden, tmp_path):
    folder = shutil.copytree(golden / "results_example" / "FT" / "run_000", tmp_path / "run_000")
    for path in folder.glob("*case_*.json"):
        path.write_text("{")
    with pytest.raises(UserError, match="no cases to report"):
        report.main([folder])


def test_ticks_are_round_and_inside():
    for low, high in ((0, 1), (0, 0.013), (0, 99.7), (3, 3), (0, 1234), (-0.4, 7), (10, 60)):
        ticks = html._ticks(low, high)
        assert 1 <= len(ticks) <= 7 and low - 1e-9 <= min(ticks) and max(ticks) <= max(high, low + 1) + 1e-9
