"""What is left by processes that were killed, and what several do at once."""

import os
import subprocess
import sys

import pytest

from common.errors import UserError
from common.files import held, may_live, owner, part_of, sweep, whole_file
from tests.conftest import ROOT

KILLED = """
import os, sys
from pathlib import Path
from common.files import part_of, whole_file
folder = Path(sys.argv[1])
part_of(folder / "model").mkdir()
with whole_file(folder / "x.json") as part:
    part.write_text("half")
    print(flush=True)
    sys.stdin.readline()
    os._exit(9)
"""


def process(code, *arguments):
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True, cwd=ROOT)


def test_parts_of_dead_processes_are_swept_and_of_living_ones_not(tmp_path):
    other = process(KILLED, tmp_path)
    other.stdout.readline()
    own = part_of(tmp_path / "mine")
    own.write_text("half")
    elsewhere = tmp_path / own.name.replace(owner(), f"aaaaaa-1-{owner().rpartition('-')[2]}")
    elsewhere.write_text("of another machine")
    (tmp_path / ".notes.part").write_text("of nobody knows whom")
    sweep(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    other.communicate("\n")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {own.name, elsewhere.name, ".notes.part"}


def test_a_number_that_another_process_has_now():
    machine, pid, start = owner().split("-")
    assert may_live(owner()) and not may_live(f"{machine}-{pid}-{int(start) - 1}") and may_live(f"ffffff-{pid}-0")


def test_writing_sweeps(tmp_path):
    other = process(KILLED, tmp_path)
    other.stdout.readline()
    other.communicate("\n")
    assert len(list(tmp_path.iterdir())) == 2
    with whole_file(tmp_path / "x.json") as part:
        part.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_one_at_a_time(tmp_path):
    with held(tmp_path, "at it"), pytest.raises(UserError, match="another process is at it"), held(tmp_path, "at it"):
        pass
    with held(tmp_path, "at it"):
        pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError), held(tmp_path / "x", "at it"):
        pass


def test_memories_that_many_change_at_once_lose_nothing(tmp_path):
    """In threads of control that share nothing but the file."""
    code = "import sys\nfrom experiments.memory import main\n" \
           "for i in range(10): main(['add', sys.argv[1], f'question {sys.argv[2]} {i}', 'x'])"
    from editors.memory.store import EditStore
    from experiments import memory

    path = tmp_path / "m.memory"
    memory.main(["create", str(path)])
    writers = [process(code, path, number) for number in range(3)]
    assert [writer.communicate()[1] for writer in writers] == [None] * 3 and {w.returncode for w in writers} == {0}
    store, _ = EditStore.load(path)
    assert len(store) == 30 and os.listdir(tmp_path) == ["m.memory"]
