"""A run killed at random moments and continued loses no case and ends with the numbers of a run never killed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.bench.kill import content, disturb

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def options(golden, hparams, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return ["--alg_name", "MEMIT", "--model_name", str(golden / "tiny-gpt2"),
            "--hparams_fname", str(hparams("MEMIT", v_num_grad_steps=5)), "--ds_name", str(golden / "multi_counterfact.json"),
            "--num_edits", "2", "--skip_generation_tests"]


def test_killed_while_it_writes(options, tmp_path):
    """Two kills soon after a first and a later case file appeared: always in the midst of the work."""
    def start(folder, *more):
        return subprocess.Popen([sys.executable, "-m", "experiments.evaluate", *options, "--results_dir", str(folder), *more],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait() == 0
    expected = content(tmp_path / "whole" / "MEMIT" / "run_000")
    assert len(expected[0]) == 12

    rng = random.Random(os.getpid())
    run, more = tmp_path / "killed" / "MEMIT" / "run_000", []
    for kill in range(2):
        process = start(tmp_path / "killed", *more)
        while not len(list(run.glob("*case_*.json"))) > 3 * kill and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        more = ["--continue_from_run", "run_000"]
    written = len(list(run.glob("*case_*.json")))
    assert start(tmp_path / "killed", *more).wait() == 0
    assert content(run) == expected
    assert 0 < written < 12


@pytest.mark.slow
def test_killed_at_any_moment(options, tmp_path):
    """Also while it starts, as the benchmark does it."""
    assert sum(disturb(options, times=2, seed=0, folder=tmp_path)) == 2
