"""``python -m experiments.sweep name=NAME alg_name=A,B ... [flag=value,...] [hparams.key=value,...]``: evaluations over settings.

    python -m experiments.sweep name=lambda alg_name=MEMIT num_edits=10,100 seed=0,1 hparams.mom2_update_weight=50,200 \\
        dataset_size_limit=100 skip_generation_tests=true
    python -m experiments.sweep hydra/launcher=joblib hydra.launcher.n_jobs=2 name=editors alg_name=ROME,MEMIT,EMMET
    python -m experiments.sweep hydra/launcher=slurm hydra.launcher.partition=gpu name=big model_name=gpt2-xl \\
        alg_name=MEMIT,EMMET

Every combination of the values (Hydra's multirun) is a job: experiments.evaluate in a process of its own. Any of its flags can
be set, and under ``hparams.`` any key of the editor's hyper-parameter file. A job that fails stops no other and is listed at
the end; the same command again runs what is not finished, another command of the same name adds its jobs. The folder
``<results_dir>/sweeps/<name>`` holds, for each job, ``job.json``, ``log.txt`` and ``run_000``; then sweep.json, .csv and .md,
a row for each job (of a run that tells languages apart, for each stage and language), and the figure.
Exit code: 0 when all jobs of the command are done and drawn, 2 when all failed for mistakes in their settings, else 1.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import UserError
from data.files import write_atomically
from experiments.results import run_folder
from experiments.run.cli import run_program

CONFIGS = Path(__file__).resolve().parent.parent / "hparams" / "sweep"
ROOT = CONFIGS.parent.parent
JOB, LOG, TABLE, RUN = "job.json", "log.txt", "sweep.json", "run_000"
ELSEWHERE = ("name", "results_dir", "data_dir", "stats_dir", "processes", "device", "command")
"""Settings that say where and how, not what: a job is the same whatever they are."""
METRICS = {
    "score": "score", "rewrite_success": "efficacy", "paraphrase_success": "paraphrase",
    "neighborhood_success": "neighbourhood", "score_acc": "score of accuracies", "rewrite_acc": "efficacy acc.", "paraphrase_acc": "paraphrase acc.",
    "neighborhood_acc": "neighbourhood acc.",
}
"""Columns of the table, after the edit; the accuracies only of jobs without successes (zsRE)."""


def run_job(cfg: DictConfig) -> None:
    """One job, unless it is done: its outcome is written, never raised."""
    settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    overrides = dict(word.lstrip("+").split("=", 1) for word in HydraConfig.get().overrides.task)
    folder = Path(HydraConfig.get().sweep.dir) / label(overrides)
    started, mistake = time.perf_counter(), True
    about = {"overrides": overrides, "command": settings["command"], "settings": {
        key: value for key, value in settings.items() if key not in ("hparams", "command")}}
    try:
        about["settings"] |= {f"hparams.{key}": value for key, value in _changes(settings).items()}
        before = _before(folder / JOB)
        if before.get("status") == "done" and _complete(folder / RUN):
            _go_by_before(before, settings, folder)
            return
        run_folder.write_json(folder / JOB, about | {"status": "unfinished"})
        error, mistake = _evaluate(settings, folder)
    except (UserError, OSError) as caught:
        error = str(caught)
    except Exception as caught:  # a defect: neither the other jobs nor the table fall with this one
        traceback.print_exc()
        error, mistake = f"{type(caught).__name__}: {caught}", False
    outcome = {"status": "failed", "error": " ".join(error.split()), "mistake": mistake} if error else {"status": "done"}
    run_folder.write_json(folder / JOB, about | outcome | {"seconds": time.perf_counter() - started})
    print(f"{outcome['status']}: {folder.name}" + (f": {outcome['error']}" if error else ""), flush=True)


def _before(path: Path) -> dict[str, Any]:
    """What a job.json says that is there already; a file of somebody else's is written over."""
    try:
        return read_job(path) if path.exists() else {}
    except UserError:
        print(f"{path}: was not written by experiments.sweep; it is written anew", file=sys.stderr)
        return {}


def _complete(run: Path) -> bool:
    """Whether a run has all its cases."""
    return (run / run_folder.RUN).is_file() and all(
        len(run_folder.case_files(part)) >= run_folder.read_about(part)["cases"] for part in run_folder.runs_in(run))


def _go_by_before(before: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Keeps a finished job, which counts as failed in this command if it was done with other hyper-parameters."""
    about = {key: value for key, value in before.items() if key not in ("error", "mistake")} | {"command": settings["command"]}
    try:
        _check_same_hparams(settings, folder)
        print(f"done before: {folder.name}")
    except UserError as caught:
        about |= {"error": " ".join(str(caught).split()), "mistake": True}
        print(f"failed: {folder.name}: {about['error']}", flush=True)
    run_folder.write_json(folder / JOB, about)


def label(overrides: Mapping[str, str]) -> str:
    """The folder of a job: readable, and different for different settings."""
    what = {key: value for key, value in sorted(overrides.items()) if key not in ELSEWHERE}
    paths_last = sorted(what.items(), key=lambda item: "/" in item[1])  # what is cut off is the least telling
    text = ",".join(f"{key.removeprefix('hparams.')}={value.rpartition('/')[2]}" for key, value in paths_last)
    digest = hashlib.sha256(repr(what).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.,=+-]+', '-', text)[:100]}-{digest}"


def _changes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The changes to the hyper-parameters. Raises UserError for what is none, for names that are no text, and for a wrong
    number of processes."""
    for key in ("alg_name", "model_name", "hparams_fname"):
        if not isinstance(settings[key], str) and (key != "hparams_fname" or settings[key] is not None):
            raise UserError(f"{key}={settings[key]}: give text")
    if not isinstance(settings["hparams"], dict):
        raise UserError(f"hparams={settings['hparams']}: name a key, as in hparams.v_lr=0.1")
    if not isinstance(settings["processes"], int) or settings["processes"] < 1:
        raise UserError(f"processes={settings['processes']}: give a whole number from 1")
    return settings["hparams"]


def _flags(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of experiments.evaluate."""
    return {key: value for key, value in settings.items() if key not in ("name", "hparams", "processes", "command")}


def read_job(path: Path) -> dict[str, Any]:
    """The content of a job.json. Raises UserError if no sweep wrote it."""
    job = run_folder.read_json(path)
    if not isinstance(job, dict) or not isinstance(job.get("settings"), dict) or "status" not in job:
        raise UserError(f"{path}: was not written by experiments.sweep")
    return job


def _evaluate(settings: Mapping[str, Any], folder: Path) -> tuple[str | None, bool]:
    """Runs experiments.evaluate in a process of its own; returns what went wrong, if anything, and whether for a user's mistake."""
    flags = _flags(settings)
    if settings["hparams"]:
        flags["hparams_fname"] = _changed_hparams(flags, settings["hparams"], folder)
    flags |= {"results_dir": folder.parent, "dir_name": folder.name}
    if (folder / RUN).is_dir():
        flags["continue_from_run"] = RUN
    command = [sys.executable, "-m"]
    if settings["processes"] > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={settings['processes']}", "-m"]
    command += ["experiments.evaluate"]
    for key, value in flags.items():
        if value is True:
            command.append(f"--{key}")
        elif value is not None and value is not False:
            command += [f"--{key}", str(value)]
    with open(folder / LOG, "w+") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        log.seek(0)
        lines = [line.rpartition("\r")[2].strip() for line in log if line.strip()]
    if done.returncode == 0:
        return None, False
    said = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "")
    # torchrun ends with 1 whatever its processes end with; a mistake is told by all of them together.
    mistake = done.returncode == 2 or settings["processes"] > 1 and re.match(r"error: (?!process \d)", said) is not None
    return said.removeprefix("error: ") or f"ended with code {done.returncode}", mistake


def _changed_hparams(flags: Mapping[str, Any], changes: Mapping[str, Any], folder: Path) -> Path:
    """The file that the flags name, with changes, in the job's folder."""
    from editors import load
    from experiments.run.auto_hparams import is_automatic

    if is_automatic(flags["hparams_fname"]):
        raise UserError(f"hparams.* changes a file, and hparams_fname is {flags['hparams_fname']}: name a file")
    path = folder / "hparams.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the job says the same
        values = _hparams(flags, changes)
        load(flags["alg_name"], values)  # raises UserError for a key that the editor doesn't have, or a wrong value
    run_folder.write_json(path, values)
    return path.absolute()


def _hparams(flags: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    from experiments.run.job import load_editor  # torch is slow to import

    return {**load_editor(flags)[0], **changes}


def _check_same_hparams(settings: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError for a job whose file of hyper-parameters has changed since it was done."""
    from experiments.run.auto_hparams import is_automatic

    flags, path = _flags(settings), folder / RUN / run_folder.PARAMS
    if is_automatic(flags["hparams_fname"]) or not path.is_file():
        return
    was, now = run_folder.read_json(path), _hparams(flags, settings["hparams"])
    differing = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    if differing:
        raise UserError(f"done with another {', '.join(differing)}, the file of hyper-parameters has changed since: choose another "
                           f"name=, or delete {folder}")


def summarise(folder: Path, command: str | None = None) -> dict[str, Any]:
    """Writes the table of all jobs in the folder as sweep.json, .csv and .md; returns sweep.json's content.

    command: jobs of others are in it only where they are done; None: all are.
    """
    from experiments.results import summary
    from experiments.summarize import read_run

    jobs = []
    for path in sorted(folder.glob(f"*/{JOB}")):
        run, job = path.parent / RUN, {"folder": path.parent.name, "cases": 0, "statistics": {}, **read_job(path)}
        if job["status"] == "done" and not _complete(run):
            job["status"] = "unfinished"
        if command is not None and job.get("command") != command:
            if job["status"] != "done":
                print(f"left out: {path.parent}, {job['status']} in an earlier command", file=sys.stderr)
                continue
            job = {key: value for key, value in job.items() if key not in ("error", "mistake")}  # this command asks nothing of it
        shown = run.is_dir() and not (job["status"] == "done" and "error" in job)
        parts = list(run_folder.runs_in(run)) if shown else []
        for part in parts:
            about, lists = read_run(part)
            place = dict(zip(("stage", "measured"), part.relative_to(run).parts))
            jobs.append(job | {"settings": job["settings"] | place, "cases": about["num_cases"], "statistics": summary.statistics(lists)})
        if not parts:
            jobs.append(job)
    keys = dict.fromkeys(key for job in jobs for key in job["settings"] if key not in ELSEWHERE)
    varied = [key for key in keys if len({repr(job["settings"].get(key)) for job in jobs}) > 1]
    jobs.sort(key=lambda job: [_order(value) for value in map(job["settings"].get, varied)])
    content = {"varied": varied, "jobs": jobs}
    run_folder.write_json(folder / TABLE, content)
    rows = table(content)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    markdown = "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]) + "\n"
    for name, written in (("sweep.csv", text.getvalue()), ("sweep.md", markdown)):
        write_atomically(folder / name, lambda file, written=written: file.write(written.encode()))
    return content


def _order(value: Any) -> tuple[int, float, str]:
    """Nothing before numbers before all else."""
    if isinstance(value, (int, float)):
        return 1, value, ""
    return 2 * (value is not None), 0, str(value)


def table(content: Mapping[str, Any]) -> list[list[str]]:
    """A head, and a row for each job, or each stage and language of one: the settings that vary, its outcome, and means ± standard errors
    over cases."""
    jobs = content["jobs"]
    shown = [key for key in METRICS if any(_shows(job["statistics"], key) for job in jobs)]
    rows = [[*content["varied"], "status", "cases", *(METRICS[key] for key in shown), "seconds an edit batch"]]
    for job in jobs:
        cells = [str(job["settings"].get(key, "")) for key in content["varied"]]
        numbers = [job["statistics"].get(f"post_{key}") if _shows(job["statistics"], key) else None for key in shown]
        numbers.append(job["statistics"].get("time"))
        rows.append([*cells, _status(job), str(job["cases"]), *map(_cell, numbers)])
    return rows


def _status(job: Mapping[str, Any]) -> str:
    """A job that was done with other hyper-parameters than are asked for now has failed, and shows none of its numbers."""
    return "failed" if "error" in job else job["status"]


def _shows(statistics: Mapping[str, Any], key: str) -> bool:
    return f"post_{key}" in statistics and (not key.endswith("acc") or "post_score" not in statistics)


def _cell(value: Mapping[str, float | None] | None) -> str:
    if value is None:
        return ""
    return f"{value['mean']:.1f}" + ("" if value["se"] is None else f" ± {value['se']:.1f}")


def _finish(folder: Path, command: str, lost: str | None) -> None:
    """Table, figure and failures. lost: why not all jobs of the command ran to their end.

    Raises UserError if none was begun; SystemExit if one failed or is lost: 2 if all failed, for mistakes, else 1.
    """
    if not any(read_job(path).get("command") == command for path in folder.glob(f"*/{JOB}")):
        raise UserError(lost or f"{folder}: no job was begun there")
    content = summarise(folder, command)
    print("\n" + (folder / "sweep.md").read_text())
    drawn = True
    if any(job["statistics"] for job in content["jobs"]):
        # Figures are drawn by a program of their own, which reads the results as everyone else does.
        program = [sys.executable, "-m", "figures.sweep", str(folder)]
        drawn = subprocess.run(program, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0
    jobs = list({job["folder"]: job for job in content["jobs"]}.values())  # one with several languages has several rows
    unfinished = [job for job in jobs if _status(job) != "done"]
    print(f"{len(jobs) - len(unfinished)} of {len(jobs)} jobs done: {folder}")
    for job in unfinished:
        print(f"{_status(job)}: {job['folder']}: {job.get('error', 'was interrupted')}", file=sys.stderr)
    if lost:
        print(f"error: not all jobs ran to their end: {lost}", file=sys.stderr)
        print("others may still run; when they have ended, the same command again does what is left", file=sys.stderr)
    elif not all(job.get("mistake") for job in unfinished):
        print("the same command again runs these once more", file=sys.stderr)
    if unfinished or lost or not drawn:
        own = [job for job in jobs if job.get("command") == command]
        raise SystemExit(2 if not lost and all(job.get("mistake") for job in own) else 1)


def _arguments(words: Sequence[str]) -> list[str]:
    """Keys of hyper-parameter files may be named without Hydra's plus."""
    return [f"+{word}" if word.startswith("hparams.") else word for word in words]


def command() -> None:
    from experiments import evaluate

    flags = {action.dest: "???" if action.required else action.default for action in evaluate.command_line()._actions
             if action.dest not in ("help", "dir_name", "continue_from_run") and "--device_map" not in action.option_strings}
    ConfigStore.instance().store(name="flags", node=flags)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_program as they are
    sys.argv[1:] = _arguments(sys.argv[1:])
    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    def main(cfg: DictConfig) -> None:
        run_job(cfg)

    try:
        sys.argv[1:] = [word for word in sys.argv[1:] if word not in ("-m", "--multirun")]  # that it is in any case
        dashed = [word for word in sys.argv[1:] if word.startswith(("-", "~"))]
        if set(dashed) & {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version"}:
            return main()  # Hydra answers
        if dashed:
            raise UserError(f"{dashed[0]}: settings are given as key=value (see --help)")
        folder, own = _folder(sys.argv[1:]), f"at_{time.time_ns()}"
        lacking = [key for key, value in flags.items() if value == "???" and not any(word.startswith(f"{key}=") for word in sys.argv[1:])]
        if lacking:
            given = ", ".join(word.partition("=")[0] for word in sys.argv[1:]) or "no settings"
            raise UserError(f"give {', '.join(f'{key}=...' for key in lacking)}; given are {given}")
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_told(error)) from None
    sys.argv.append(f"command={own}")
    lost = None
    try:
        main()
    except Exception as error:  # a launcher's, of a job that was killed or ran out of time: what the others did is there
        lost = _told(error)
    _finish(folder, own, lost)


def _told(error: Exception) -> str:
    """An error of Hydra or a launcher in one line."""
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return f"{type(error).__name__}: {textwrap.shorten(str(error), 300)}"
    cause = error.__cause__ or error  # Hydra tells the cause in the chained error, over several lines
    text = " ".join(f"{error} {cause if cause is not error else ''}".split())
    return text + ("; pip install hydra-ray-launcher" if "'hydra/launcher/ray'" in text else "")


def _folder(words: Sequence[str]) -> Path:
    """The folder of the sweep that the command line asks for."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose("config", [word for word in words if word.lstrip("+").startswith(("name=", "results_dir="))])
    if not re.fullmatch(r"[\w+-][\w.+-]*", str(cfg.name)):
        raise UserError(f"name={cfg.name}: give the name of a folder, of letters, digits and . _ + -, that begins with no dot")
    if not isinstance(cfg.results_dir, str) or not cfg.results_dir:
        raise UserError(f"results_dir={cfg.results_dir}: give the path of a folder")
    elsewhere = next((word for word in words if re.match(r"\+*hydra\.sweep\b", word)), None)
    if elsewhere:
        raise UserError(f"{elsewhere}: where a sweep is written is told by results_dir and name")
    return Path(cfg.results_dir) / "sweeps" / str(cfg.name)


if __name__ == "__main__":
    run_program(command)
