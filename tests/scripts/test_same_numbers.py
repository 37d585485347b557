"""The comparison of two code states' results finds any number that has moved, and nothing else."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from scripts.same_numbers import compare, Folder


@pytest.fixture
def folders(tmp_path):
    """Two equal folders; function that compares them."""
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        (folder / "places.txt").write_text(f"/repository/{name}\n{folder}\n")
        case = {"score": 0.1, "time": 3.0 if name == "a" else 4.0, "file": f"{folder}/x"}
        (folder / "case.json").write_text(json.dumps(case))
        (folder / "table.csv").write_text("editor,score\nMEMIT,81.5\n")
        save_file({"delta": torch.tensor([1.0, 2.0])}, folder / "edit.safetensors", {"edit": '{"format": 1}'})
    return tmp_path / "a", tmp_path / "b"


def outcome(folders):
    return compare(*map(Folder, folders))


def test_times_and_places_do_not_count(folders, capsys):
    assert outcome(folders) == (3, 0) and not capsys.readouterr().out


@pytest.mark.parametrize("name, change, message", [
    ("case.json", lambda path: path.write_text(path.read_text().replace("0.1", "0.10000000000000002")), "score: 0.1 |"),
    ("table.csv", lambda path: path.write_text("editor,score\nMEMIT,81.6\n"), "81.6"),
    ("edit.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x41"), "delta (1 of 2, first at 1)"),
    ("edit.safetensors", lambda path: path.unlink(), "only in A"),
])
def test_what_has_moved_is_named(folders, capsys, name, change, message):
    change(folders[1] / name)
    assert outcome(folders)[1] == 1 and message in capsys.readouterr().out


def test_another_folder_is_refused(folders):
    shutil.rmtree(folders[0])
    folders[0].mkdir()
    with pytest.raises(SystemExit, match="not a folder of"):
        outcome(folders)
