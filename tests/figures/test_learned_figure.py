"""The figure of training curves shows what the logs say."""

import json

import pytest

from common.errors import UserError
from figures import learned


@pytest.fixture
def run(tmp_path):
    lines = [
        {"step": 2, "edit/acc_train": 0.5, "kl/edit_train": 0.2},
        {"step": 4, "edit/acc_val": 0.75, "kl/edit_val": 0.1, "loss/total_edit_val": 0.3},
        {"step": 8, "edit/acc_val": 1.0, "kl/edit_val": 0.05, "loss/total_edit_val": 0.2},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_lines(run, tmp_path):
    figure = learned.draw([learned.read_log(run)], ["MEND"])
    first = figure.axes[0]
    assert [list(line.get_xydata().flatten()) for line in first.get_lines()] == [[2, 50], [4, 75, 8, 100]]
    learned.main([str(run), "--labels", "MEND", "--out", str(tmp_path / "curves")])
    assert {p.suffix for p in tmp_path.glob("curves.*")} == {".pdf", ".png"}


def test_what_is_no_log(run, tmp_path):
    for text in ("", "{", '["step"]', '{"loss": 1}'):
        (run / "log.jsonl").write_text(text)
        with pytest.raises(UserError, match="not a log"):
            learned.read_log(run)
    with pytest.raises(UserError, match="no such log"):
        learned.read_log(tmp_path / "nowhere")
    with pytest.raises(SystemExit):
        learned.main([str(run), "--labels", "a,b"])
