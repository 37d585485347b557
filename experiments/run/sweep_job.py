"""One job of a sweep (:mod:`experiments.sweep`): experiments.evaluate in a process of its own, and its job.json."""

import hashlib
import os
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from common.errors import UserError
from experiments.results import run_folder
from experiments.results.sweep_table import ELSEWHERE, is_complete, JOB, read_job, RUN
from experiments.run.config import RunConfig
from experiments.run.hparams_file import is_automatic, load_editor, with_changes

ROOT = Path(__file__).resolve().parents[2]
LOG = "log.txt"


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
        earlier = _earlier(folder / JOB)
        if earlier.get("status") == "done" and is_complete(folder / RUN):
            _keep(earlier, settings, folder)
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


def _earlier(path: Path) -> dict[str, Any]:
    """What a job.json says that is there already; a file of somebody else's is written over."""
    try:
        return read_job(path) if path.exists() else {}
    except UserError:
        print(f"{path}: was not written by experiments.sweep; it is written anew", file=sys.stderr)
        return {}


def _keep(job: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    """Keeps a finished job, which counts as failed in this command if it was done with other hyper-parameters."""
    about = {key: value for key, value in job.items() if key not in ("error", "mistake")} | {"command": settings["command"]}
    try:
        _check_same_hparams(settings, folder)
        print(f"done before: {folder.name}")
    except UserError as caught:
        about |= {"error": " ".join(str(caught).split()), "mistake": True}
        print(f"failed: {folder.name}: {about['error']}", flush=True)
    run_folder.write_json(folder / JOB, about)


def label(overrides: Mapping[str, str]) -> str:
    """The folder of a job: readable, and different for different settings."""
    settings = {key: value for key, value in sorted(overrides.items()) if key not in ELSEWHERE}
    paths_last = sorted(settings.items(), key=lambda item: "/" in item[1])  # what is cut off is the least telling
    text = ",".join(f"{key.removeprefix('hparams.')}={value.rpartition('/')[2]}" for key, value in paths_last)
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_.,=+-]+', '-', text)[:100]}-{digest}"


def _changes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The changes to the hyper-parameters.

    Raises UserError for what is none, for names that are no text, and for a wrong number of processes.
    """
    for key in ("alg_name", "model_name", "hparams_fname"):
        if not isinstance(settings[key], str) and (key != "hparams_fname" or settings[key] is not None):
            raise UserError(f"{key}={settings[key]}: give text")
    if not isinstance(settings["hparams"], dict):
        raise UserError(f"hparams={settings['hparams']}: name a key, as in hparams.v_lr=0.1")
    if not isinstance(settings["processes"], int) or settings["processes"] < 1:
        raise UserError(f"processes={settings['processes']}: give a whole number from 1")
    return settings["hparams"]


def _evaluate(settings: Mapping[str, Any], folder: Path) -> tuple[str | None, bool]:
    """Runs experiments.evaluate in a process of its own; returns what went wrong, if anything, and whether by a user's mistake.
    """
    flags = {key: value for key, value in settings.items() if key not in ("name", "hparams", "processes", "command")}
    if settings["hparams"]:
        flags |= {"hparams_fname": _changed_hparams(settings, folder)}
    flags |= {"results_dir": folder.parent, "dir_name": folder.name}
    if (folder / RUN).is_dir():
        flags |= {"continue_from_run": RUN}
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
        process = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        log.seek(0)
        lines = [line.rpartition("\r")[2].strip() for line in log if line.strip()]
    if process.returncode == 0:
        return None, False
    error = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else "")
    # torchrun ends with 1 whatever its processes end with; a mistake is told by all of them together.
    mistake = process.returncode == 2 or settings["processes"] > 1 and re.match(r"error: (?!process \d)", error) is not None
    return error.removeprefix("error: ") or f"ended with code {process.returncode}", mistake


def _changed_hparams(settings: Mapping[str, Any], folder: Path) -> Path:
    """The hyper-parameter file that the settings name, with their changes, in the job's folder."""
    if is_automatic(settings["hparams_fname"]):
        raise UserError(f"hparams.* changes a file, and hparams_fname is {settings['hparams_fname']}: name a file")
    path = folder / "hparams.json"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the job says the same
        values = _hparams(settings)
    run_folder.write_json(path, values)
    return path.absolute()


def _hparams(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the file that the settings name, with their changes."""
    config = RunConfig(**{key: settings[key] for key in ("alg_name", "model_name", "hparams_fname", "data_dir")})
    return with_changes(settings["alg_name"], load_editor(config)[0], settings["hparams"], "hparams")


def _check_same_hparams(settings: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError for a job whose file of hyper-parameters has changed since it was done."""
    path = folder / RUN / run_folder.PARAMS
    if is_automatic(settings["hparams_fname"]) or not path.is_file():
        return
    saved, current = run_folder.read_json(path), _hparams(settings)
    differing = sorted(key for key in saved.keys() | current.keys() if saved.get(key) != current.get(key))
    if differing:
        raise UserError(f"done with another {', '.join(differing)}, the file of hyper-parameters has changed since: choose "
                        f"another name=, or delete {folder}")
