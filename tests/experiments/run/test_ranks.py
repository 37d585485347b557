"""Several processes end with the bits of one; one that dies ends the run, and nothing is lost."""

import hashlib
import os
import subprocess
import sys

import pytest

from common.tensor_files import read_tensors
from editors.core import ranks
from experiments import evaluate, summarize
from experiments.bench.kill import content
from experiments.results import run_folder
from experiments.run.cli import run_program
from tests.conftest import ROOT
from tests.experiments import several


def torchrun(processes, *arguments):
    """Runs a module or script in so many processes with one thread each, as a user would."""
    program = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def everything(folder):
    """All that the evaluations of several.py wrote: cases, checkups between batches, final weights, statistics, targets."""
    written = {name: content(folder / name / "run_000")[0] for name in ("apart", "together", "sequence")}
    files = [*folder.glob("data/stats/*/*/*"), *folder.glob("stats/*/*/*"), *folder.glob("data/z_cache/*")]
    for path in files:
        _, tensors = read_tensors(path, "file")
        written[path.name] = {name: hashlib.sha256(t.numpy().tobytes()).hexdigest() for name, t in tensors.items()}
    return written


@pytest.fixture(scope="module")
def of_one(tmp_path_factory):
    """What one process writes."""
    folder = tmp_path_factory.mktemp("one")
    torchrun(1, "-m", "tests.experiments.several", folder, "evaluations").check_returncode()
    return everything(folder)


@pytest.mark.parametrize("processes", [2, 3])
def test_same_bits(of_one, tmp_path, processes):
    done = torchrun(processes, "-m", "tests.experiments.several", tmp_path, "primitives", "evaluations")
    assert done.returncode == 0, done.stderr
    written = everything(tmp_path)
    assert written.keys() == of_one.keys() and len(written) > 3 + 6  # 6 target states, and statistics
    for name, expected in of_one.items():
        assert written[name] == expected, name
    assert len(written["apart"]) == 6 and any("text" in case["post"] for case in written["apart"].values() if "post" in case)
    assert done.stdout.count("statistics in") == 1
    assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("unfinished*"))


def test_a_dead_process_ends_the_run_which_then_goes_on(tmp_path):
    done = torchrun(2, "-m", "tests.experiments.several", tmp_path, "dying")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ") or "\rerror: " in line]
    assert done.returncode != 0 and len(lines) == 1, done.stderr
    assert "another process of this run has died; what is finished is kept" in lines[0]
    assert "--continue_from_run run_000" in lines[0]
    run = tmp_path / "FT" / "run_000"
    finished = {path.name: path.stat().st_mtime_ns for _, path in run_folder.case_files(run)}
    assert 2 <= len(finished) < 12 and not list(run.glob(".*"))
    assert several.killed(tmp_path, continue_from_run="run_000") == run
    assert all((run / name).stat().st_mtime_ns == time for name, time in finished.items())
    (tmp_path / "undisturbed").mkdir()
    assert content(run) == content(several.killed(tmp_path / "undisturbed"))


def test_one_process_says_what_is_wrong():
    done = torchrun(2, "-m", "experiments.evaluate", "--alg_name", "MENIT")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if "error: " in line]
    assert lines == [line for line in lines if "unknown editor 'MENIT', did you mean 'MEMIT'" in line] and len(lines) == 1


def test_programs_for_one_process(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(os, "_exit", sys.exit)
    monkeypatch.setattr(evaluate, "main", lambda: pytest.fail("it ran"))
    with pytest.raises(SystemExit) as caught:
        run_program(summarize.command)
    assert caught.value.code == 2
    assert "this program runs in one process: start it with python -m, not with torchrun" in capsys.readouterr().err


@pytest.mark.parametrize("environment, message", [
    ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is abc"), ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT is not set"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
])
def test_half_of_what_torchrun_sets(monkeypatch, capsys, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as caught:
        run_program(lambda: pytest.fail("it ran"), several=True)
    assert caught.value.code == 2 and f"WORLD_SIZE is in the environment, and {message}: start" in capsys.readouterr().err


def test_a_map_of_devices_is_one_process_s(monkeypatch):
    from experiments.run.models import load_model

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(several.UserError, match="--device map: spreads one process"):
        load_model("world", device="map")


def test_without_torchrun_everything_is_a_plain_call():
    assert (ranks.rank(), ranks.world_size(), ranks.process(), ranks.processes()) == (0, 1, 0, 1)
    with ranks.started(), ranks.alone():
        assert ranks.each(str, [1, 2]) == ["1", "2"]
        assert ranks.from_first(lambda: 3) == ranks.in_turn(lambda: 3) == ranks.same(3) == 3
    error = ranks.RankLost()
    assert isinstance(error, several.UserError) and "start again" in str(error)
