"""``python -m experiments.sweep name=NAME alg_name=A,B [flag=value,...] [hparams.key=value,...]``: evaluations over settings.

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

import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import fields, MISSING
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from common.errors import UserError
from experiments.results.sweep_table import JOB, read_job, status, summarise
from experiments.run import sweep_job
from experiments.run.cli import run_program
from experiments.run.config import RunConfig

CONFIGS = sweep_job.ROOT / "hparams" / "sweep"
FIRST = ("alg_name", "model_name", "hparams_fname", "ds_name", "dataset_size_limit", "num_edits")
LAST = ("seed", "dtype", "device")
"""Columns at the edges of a table."""
BY_SWEEP = ("dir_name", "continue_from_run", "set")
"""Flags that the sweep gives its jobs by itself; instead of set it has hparams.*."""


def _finish(folder: Path, command: str, launch_error: str | None) -> None:
    """Table, figure and failures. launch_error: why not all jobs of the command ran to their end.

    Raises UserError if none was begun; SystemExit if one failed or was lost: 2 if all failed, for mistakes, else 1.
    """
    if not any(read_job(path).get("command") == command for path in folder.glob(f"*/{JOB}")):
        raise UserError(launch_error or f"{folder}: no job was begun there")
    content = summarise(folder, command)
    print("\n" + (folder / "sweep.md").read_text())
    drawn = True
    if any(job["statistics"] for job in content["jobs"]):
        # Figures are drawn by a program of their own, which reads the results as everyone else does.
        program = [sys.executable, "-m", "figures.sweep", str(folder)]
        drawn = subprocess.run(program, env={**os.environ, "PYTHONPATH": str(sweep_job.ROOT)}).returncode == 0
    jobs = list({job["folder"]: job for job in content["jobs"]}.values())  # one with several languages has several rows
    unfinished = [job for job in jobs if status(job) != "done"]
    print(f"{len(jobs) - len(unfinished)} of {len(jobs)} jobs done: {folder}")
    for job in unfinished:
        print(f"{status(job)}: {job['folder']}: {job.get('error', 'was interrupted')}", file=sys.stderr)
    if launch_error:
        print(f"error: not all jobs ran to their end: {launch_error}", file=sys.stderr)
        print("others may still run; when they have ended, the same command again does what is left", file=sys.stderr)
    elif not all(job.get("mistake") for job in unfinished):
        print("the same command again runs these once more", file=sys.stderr)
    if unfinished or launch_error or not drawn:
        of_command = [job for job in jobs if job.get("command") == command]
        raise SystemExit(2 if not launch_error and all(job.get("mistake") for job in of_command) else 1)


def _arguments(words: Sequence[str]) -> list[str]:
    """Keys of hyper-parameter files may be named without Hydra's plus."""
    return [f"+{word}" if word.startswith("hparams.") else word for word in words]


def sweep_flags() -> dict[str, Any]:
    """The flags of experiments.evaluate with their defaults, in the order of a table's columns; "???": it must be given."""
    defaults = {field.name: "???" if field.default is MISSING else field.default for field in fields(RunConfig)}
    order = [*FIRST, *(name for name in defaults if name not in (*FIRST, *LAST)), *LAST]
    return {name: defaults[name] for name in order if name not in BY_SWEEP}


def command() -> None:
    flags = sweep_flags()
    ConfigStore.instance().store(name="flags", node=flags)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach run_program as they are
    sys.argv[1:] = _arguments(sys.argv[1:])
    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    def main(cfg: DictConfig) -> None:
        sweep_job.run_job(cfg)

    try:
        sys.argv[1:] = [word for word in sys.argv[1:] if word not in ("-m", "--multirun")]  # that it is in any case
        dashed = [word for word in sys.argv[1:] if word.startswith(("-", "~"))]
        if set(dashed) & {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version"}:
            return main()  # Hydra answers
        if dashed:
            raise UserError(f"{dashed[0]}: settings are given as key=value (see --help)")
        folder, command_id = _folder(sys.argv[1:]), f"at_{time.time_ns()}"
        keys = [word.partition("=")[0] for word in sys.argv[1:]]
        lacking = [key for key, value in flags.items() if value == "???" and key not in keys]
        if lacking:
            raise UserError(f"give {', '.join(f'{key}=...' for key in lacking)}; given are {', '.join(keys) or 'no settings'}")
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from None
    sys.argv.append(f"command={command_id}")
    launch_error = None
    try:
        main()
    except Exception as error:  # a launcher's, of a job that was killed or ran out of time: what the others did is there
        launch_error = _one_line(error)
    _finish(folder, command_id, launch_error)


def _one_line(error: Exception) -> str:
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
