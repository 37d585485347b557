"""Sweeps: failures stop nothing, a sweep goes on where it stopped, and one table and figure show it all."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from common.errors import UserError
from experiments import sweep
from experiments.results import sweep_table
from experiments.run import sweep_job
from experiments.run.cli import run_program
from figures import sweep as figure
from tests.conftest import ROOT


@pytest.fixture
def start(monkeypatch, capfd, golden, tmp_path, hparams):
    """Runs the program in this process (its jobs have their own); returns (exit code, output, errors)."""
    flags = [f"model_name={golden / 'tiny-gpt2'}", f"ds_name={golden / 'multi_counterfact.json'}", f"results_dir={tmp_path}",
             f"hparams_fname={hparams('FT')}", "skip_generation_tests=true", "dataset_size_limit=3"]

    def program(*argv):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr("sys.argv", ["sweep", *flags, *argv])
        capfd.readouterr()
        try:
            run_program(sweep.command)
            code = 0
        except SystemExit as ended:
            code = ended.code
        return code, *capfd.readouterr()
    return program


def test_a_sweep(start, tmp_path, monkeypatch):
    settings = ("name=mine", "alg_name=FT", "hparams.lr=-1,0.005")
    code, out, err = start(*settings)
    folder = tmp_path / "sweeps" / "mine"
    assert code == 1 and "1 of 2 jobs done" in out  # the failure came first
    failure, = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert "lr=-1" in failure and "lr: -1 must be a finite number above 0" in failure
    for suffix in (".json", ".csv", ".md", ".pdf", ".png"):
        assert (folder / f"sweep{suffix}").stat().st_size > 0
    content = json.loads((folder / "sweep.json").read_text())
    assert content["varied"] == ["hparams.lr"] and len(content["jobs"]) == 2
    rows = [line.split(" | ") for line in (folder / "sweep.md").read_text().splitlines()]
    assert [row[:3] for row in rows[2:]] == [["| -1", "failed", "0"], ["| 0.005", "done", "3"]]
    assert re.fullmatch(r"\d+\.\d ± \d+\.\d", rows[3][3])
    run = next(folder.glob("*lr=0.005*/run_000"))
    assert json.loads((run / "params.json").read_text())["lr"] == 0.005

    # Killed in the midst of that job: the same command goes on with its run, and then there is nothing left to do.
    job, commands = run.parent / "job.json", []
    job.write_text(json.dumps(json.loads(job.read_text()) | {"status": "unfinished"}))
    changed = json.loads((run / "params.json").read_text())
    (run / "params.json").write_text(json.dumps(changed | {"num_steps": 99}))
    job.write_text(json.dumps(json.loads(job.read_text()) | {"status": "done"}))
    before = json.loads(job.read_text())
    code, _, err = start(*settings)
    assert code == 2 and "done with another num_steps, the file of hyper-parameters has changed since" in err
    assert "once more" not in err
    last_row = (folder / "sweep.md").read_text().splitlines()[-1]
    assert last_row.split(" | ")[:3] == ["| 0.005", "failed", "0"]  # none of its numbers
    other = start("name=mine", "alg_name=FT", "hparams.lr=-1")  # asks nothing of that job
    assert other[0] == 2 and "1 of 2 jobs done" in other[1]
    assert (folder / "sweep.md").read_text().splitlines()[-1].split(" | ")[:3] == ["| 0.005", "done", "3"]
    assert [json.loads(job.read_text())[key] for key in ("status", "seconds")] == [before["status"], before["seconds"]]
    (run / "params.json").write_text(json.dumps(changed))
    code, _, err = start("-m", "name=mine", "alg_name=FT", "hparams.lr=0.005")  # -m: what it does in any case
    assert code == 0 and "error" not in json.loads(job.read_text())
    job.write_text(json.dumps(json.loads(job.read_text()) | {"status": "unfinished"}))
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command) or done)
    assert start(*settings)[1].startswith("failed: ")
    (evaluate,) = [command for command in commands if "experiments.evaluate" in command]
    assert evaluate[-2:] == ["--continue_from_run", "run_000"] and str(run.parent / "hparams.json") in evaluate
    assert json.loads(job.read_text())["status"] == "done"
    commands.clear()
    right = start("name=mine", "alg_name=FT", "hparams.lr=0.005")  # without the mistake: that job counts no more
    assert right[0] == 0 and "1 of 1 jobs done" in right[1] and "failed in an earlier command" in right[2]
    assert "done before: " in start(*settings)[1] and not [command for command in commands if "experiments.evaluate" in command]
    job.write_text("[]")  # not a sweep's: written anew, and the run goes on
    errors = start("name=mine", "alg_name=FT", "hparams.lr=0.005")[2]
    assert "was not written by experiments.sweep; it is written anew" in errors
    assert json.loads(job.read_text())["status"] == "done"
    commands.clear()
    start("name=mine", "alg_name=FT", "processes=2")
    torchrun = next(command for command in commands if "experiments.evaluate" in command)
    assert torchrun[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]

    # A finished job whose results are gone is no finished job, and a table without its figure no success.
    right = ("name=mine", "alg_name=FT", "hparams.lr=0.005")
    done.returncode = 2
    assert start(*right)[0] == 1
    done.returncode = 0
    assert start(*right)[0] == 0
    case = next(run.glob("*case_*.json"))
    case.rename(tmp_path / "case")
    commands.clear()
    code, out, err = start(*right)
    assert code == 1 and "0 of 1 jobs done" in out and "done before" not in out and "unfinished: " in err
    assert any("experiments.evaluate" in command and "--continue_from_run" in command for command in commands)
    shutil.rmtree(run)
    assert start(*right)[0] == 1 and "experiments.evaluate" in commands[-1] and "--continue_from_run" not in commands[-1]


def test_joblib_runs_jobs_side_by_side(golden, tmp_path, hparams):
    command = [sys.executable, "-m", "experiments.sweep", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
               "alg_name=FT,MENIT", "hparams.lr=0.005", f"hparams_fname=null,{hparams('FT')}",
               f"model_name={golden / 'tiny-gpt2'}", f"ds_name={golden / 'multi_counterfact.json'}",
               "dataset_size_limit=1", "skip_generation_tests=true", f"results_dir={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 1, done.stderr
    assert "1 of 4 jobs done" in done.stdout and "unknown editor 'MENIT', did you mean 'MEMIT'" in done.stderr
    assert "FT has no hyper-parameters of its own" in done.stderr and "Traceback" not in done.stderr
    jobs = json.loads((tmp_path / "sweeps" / "sweep" / "sweep.json").read_text())["jobs"]
    good, = [job for job in jobs if job["status"] == "done"]
    assert good["cases"] == 1 and good["settings"]["alg_name"] == "FT" and good["statistics"]["post_rewrite_success"]["n"] == 1


def test_a_job_that_the_launcher_lost(start, tmp_path, monkeypatch):
    launcher = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    launch, begun = launcher.launch, 0

    def lose(self, job_overrides, initial_job_idx):
        launch(self, job_overrides[:begun], initial_job_idx)
        raise RuntimeError("job 7 has\nno output")

    monkeypatch.setattr(launcher, "launch", lose)
    assert start("alg_name=FT", "hparams.lr=-1,-2") == (2, "", "error: RuntimeError: job 7 has no output\n")
    begun = 1
    code, out, err = start("alg_name=FT", "hparams.lr=-1,-2")
    assert code == 1 and "0 of 1 jobs done" in out and (tmp_path / "sweeps" / "sweep" / "sweep.md").is_file()
    assert "lr: -1 must be a finite number above 0" in err
    assert "error: not all jobs ran to their end: RuntimeError: job 7 has no output\n" in err


def test_a_defect_in_a_job_stops_nothing(start, tmp_path, monkeypatch):
    evaluated = iter([KeyError("lost"), None])

    def evaluate(*_):
        error = next(evaluated)
        if error:
            raise error
        return "no such model", True

    monkeypatch.setattr(sweep_job, "_evaluate", evaluate)
    code, out, err = start("alg_name=FT", "num_edits=1,2")
    assert code == 1 and "0 of 2 jobs done" in out and "KeyError: 'lost'" in err and "no such model" in err


def test_stages_and_languages_are_rows(golden, tmp_path, capfd):
    case = next((golden / "results_example" / "MEMIT" / "run_000").glob("*case_*.json"))
    run, places = tmp_path / "a" / "run_000", ["heads_8/catalan", "heads_8/english", "memit/catalan", "memit/english"]
    flags = {"alg_name": "MEMAT", "model_name": "world", "ds_name": "world", "num_edits": 1}
    for place in ["", *places]:
        (run / place).mkdir(parents=True)
        (run / place / "run.json").write_text(json.dumps({"settings": {}, "flags": flags, "cases": 1}))
        if place:
            shutil.copy(case, run / place)
    (tmp_path / "a" / "job.json").write_text(json.dumps({"status": "done", "command": "now", "settings": flags}))
    sweep._finish(tmp_path, "now", None)
    assert "1 of 1 jobs done" in capfd.readouterr().out and (tmp_path / "sweep.pdf").is_file()
    head, *rows = sweep_table.table(json.loads((tmp_path / "sweep.json").read_text())).texts()
    assert head[:4] == ["stage", "measured", "status", "cases"] and all(row[4] for row in rows)
    assert [row[:4] for row in rows] == [[*place.split("/"), "done", "1"] for place in places]
    assert list(figure.read(tmp_path)[1]) == ["measured catalan", "measured english"]


@pytest.mark.parametrize(("argv", "message"), [
    (["alg_nmae=FT"], "alg_nmae"),
    ([], "give alg_name=..."),
    (["alg_name=FT", "dir_name=x"], "dir_name"),
    (["alg_name=FT", "name=a/b"], "name=a/b: give the name of a folder"),
    (["alg_name=FT", "name=a,b"], "name=a,b"),
    (["alg_name=FT", "name=.."], "name=..: give the name of a folder"),
    (["alg_name=FT", "++name=."], "name=.: give the name of a folder"),
    (["alg_name=FT", "results_dir="], "results_dir=: give the path of a folder"),
    (["alg_name=FT", "results_dir=null"], "results_dir=None: give the path"),
    (["alg_name=FT", "hydra.sweep.dir=elsewhere"],
     "hydra.sweep.dir=elsewhere: where a sweep is written is told by results_dir"),
    (["alg_name=FT", "~processes"], "~processes: settings are given as key=value"),
    (["alg_name=FT", "num_edits=[1"], "at input '[1'"),
    (["alg_name=FT", "--num_edits", "3"], "--num_edits: settings are given as key=value"),
    (["alg_name=FT", "hydra/launcher=nowhere"], "hydra/launcher/nowhere"),
    pytest.param(["alg_name=FT", "hydra/launcher=ray_cluster"], "pip install hydra-ray-launcher",
                 marks=pytest.mark.skipif(find_spec("hydra_plugins.hydra_ray_launcher") is not None, reason="it is there")),
])
def test_mistakes(start, tmp_path, argv, message):
    code, out, err = start(*argv)
    lines = err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not list(tmp_path.glob("sweeps/*/*/job.json"))


def test_changes_of_automatic_hparams_are_refused(start, tmp_path):
    code, _, err = start("alg_name=MEMIT", "hparams_fname=auto", "hparams.v_lr=1")
    assert code == 2 and "hparams.* changes a file, and hparams_fname is auto" in err


@pytest.mark.parametrize(("setting", "message"), [
    ("hparams=3", "hparams=3: name a key"), ("processes=abc", "processes=abc: give a whole number"),
    ("processes=0", "processes=0"),
    ("num_edits=0", "'0' should be a whole number from 1"), ("alg_name=null", "alg_name=None: give text"),
    ("model_name=null", "model_name=None: give text"), ("hparams_fname=7", "hparams_fname=7: give text"),
])
def test_a_mistake_that_all_jobs_share(start, setting, message):
    code, out, err = start("alg_name=FT", setting)
    assert code == 2 and "0 of 1 jobs done" in out and message in err and "Traceback" not in err


def test_lists_are_sorted_too(tmp_path):
    for number, value in enumerate([[1], None, 0.5, [0, 1], "x", 2]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "job.json").write_text(json.dumps({"status": "done", "settings": {"hparams.layers": value}}))
    content = sweep_table.summarise(tmp_path)
    assert [job["settings"]["hparams.layers"] for job in content["jobs"]] == [None, 0.5, 2, [0, 1], [1], "x"]
    (tmp_path / "0" / "job.json").write_text("{}")
    with pytest.raises(UserError, match="job.json: was not written by experiments.sweep"):
        sweep_table.summarise(tmp_path)
    for content in ({}, {"jobs": [{}], "varied": []}, {"jobs": 3, "varied": []}):
        (tmp_path / "sweep.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="sweep.json: was not written by experiments.sweep"):
            figure.main(tmp_path)


@pytest.mark.parametrize(("launcher", "target"), [
    ("slurm", "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"), ("joblib", None),
    ("ray_cluster", None)])
def test_launchers_are_configured(launcher, target):
    """The Ray plugin need not be there: a node of its shape stands for it."""
    store = ConfigStore.instance()
    if launcher == "ray_cluster":
        node = {"_target_": "ray", "ray": {"init": {"address": None}, "remote": {}}}
        store.store(group="hydra/launcher", name="ray", node=node)
    store.store(name="flags", node={"alg_name": "FT", "results_dir": "results"})
    with hydra.initialize_config_dir(str(sweep.CONFIGS), version_base="1.3"):
        cfg = hydra.compose("config", [f"hydra/launcher={launcher}"], return_hydra_config=True)
    assert target is None or (cfg.hydra.launcher._target_ == target and cfg.hydra.launcher.gpus_per_node == 1)
    assert launcher != "ray_cluster" or cfg.hydra.launcher.ray.init.address == "auto"


def test_labels_tell_jobs_apart_and_nothing_else():
    one = {"alg_name": "FT", "hparams.lr": "0.1", "name": "a", "results_dir": "x"}
    assert sweep_job.label(one) == sweep_job.label({**one, "name": "b", "results_dir": "y", "device": "cuda"})
    others = [{"hparams.lr": "0.2"}, {"model_name": "a/b"}, {"model_name": "c/b"}, {"ds_name": "x" * 500}]
    names = {sweep_job.label(one | other) for other in [{}, *others]}
    assert len(names) == 5 and all(re.fullmatch(r"[\w.,=+-]{1,120}", name) for name in names)


def jobs(settings, score=50.0, keys=("score", "rewrite_success", "paraphrase_success", "neighborhood_success")):
    statistics = {f"post_{key}": {"mean": score, "se": 2.0, "n": 9} for key in keys}
    return [{"settings": values, "status": "done", "statistics": statistics, "folder": "x", "cases": 9} for values in settings]


def write(folder, varied, content):
    folder.mkdir(exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"varied": varied, "jobs": content}))


def test_the_figure_chooses_its_axis_and_averages_seeds(tmp_path):
    settings = [{"alg_name": a, "num_edits": n, "seed": s} for a in ("FT", "ROME") for n in (1, 10, 100) for s in (0, 1)]
    write(tmp_path, ["alg_name", "num_edits", "seed"], jobs(settings))
    x_name, points = figure.read(tmp_path)
    assert x_name == "num_edits" and list(points) == ["alg_name FT", "alg_name ROME"]
    assert {x: len(runs) for x, runs in points["alg_name FT"].items()} == {1: 2, 10: 2, 100: 2}
    drawn = figure.draw(x_name, points)
    assert len(drawn.axes) == 4 and all(ax.get_xscale() == "log" for ax in drawn.axes)
    write(tmp_path, ["alg_name"], jobs([{"alg_name": a} for a in ("FT", "ROME")], keys=("score_acc", "rewrite_acc")))
    assert [path.suffix for path in figure.main(tmp_path)] == [".pdf", ".png"]


@pytest.mark.parametrize(("content", "message"), [(None, "no sweep.json there"), ([], "no job has results")])
def test_folders_without_results(tmp_path, content, message):
    if content is not None:
        write(tmp_path, [], content)
    with pytest.raises(UserError, match=message):
        figure.main(tmp_path)
    assert not list(tmp_path.glob("*.p*"))
