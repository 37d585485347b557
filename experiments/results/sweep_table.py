"""The table of a sweep (:mod:`experiments.sweep`): a row for each job, or for each stage and language of one."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from experiments.results import run_folder, summary
from experiments.results.names import HEADLINES, LABELS, OF_EDITS, SCORED
from experiments.results.runs import read_run
from experiments.results.tables import Cell, Table

JOB, TABLE, RUN = "job.json", "sweep.json", "run_000"
ELSEWHERE = ("name", "results_dir", "data_dir", "stats_dir", "processes", "device", "command")
"""Settings that say where and how, not what: a job is the same whatever they are."""
METRICS = {**HEADLINES["counterfact"], "score_acc": LABELS["score_acc"],
           **{f"{group}_acc": f"{title} acc." for group, title in SCORED.items()}}
"""Columns of the table, after the edit; the accuracies only of jobs without successes (zsRE)."""


def read_job(path: Path) -> dict[str, Any]:
    """The content of a job.json. Raises UserError if no sweep wrote it."""
    job = run_folder.read_json(path)
    if not isinstance(job, dict) or not isinstance(job.get("settings"), dict) or "status" not in job:
        raise UserError(f"{path}: was not written by experiments.sweep")
    return job


def is_complete(run: Path) -> bool:
    """Whether a run has all its cases."""
    return (run / run_folder.RUN).is_file() and all(
        len(run_folder.case_files(part)) >= run_folder.read_about(part)["cases"] for part in run_folder.runs_in(run))


def summarise(folder: Path, command: str | None = None) -> dict[str, Any]:
    """Writes the table of all jobs in the folder as sweep.json, .csv and .md; returns sweep.json's content.

    command: jobs of others are in it only where they are done; None: all are.
    """
    jobs = []
    for path in sorted(folder.glob(f"*/{JOB}")):
        run, job = path.parent / RUN, {"folder": path.parent.name, "cases": 0, "statistics": {}, **read_job(path)}
        if job["status"] == "done" and not is_complete(run):
            job["status"] = "unfinished"
        if command is not None and job.get("command") != command:
            if job["status"] != "done":
                print(f"left out: {path.parent}, {job['status']} in an earlier command", file=sys.stderr)
                continue
            # This command asks nothing of it.
            job = {key: value for key, value in job.items() if key not in ("error", "mistake")}
        shown = run.is_dir() and not (job["status"] == "done" and "error" in job)
        parts = list(run_folder.runs_in(run)) if shown else []
        for part in parts:
            about, lists = read_run(part)
            place = dict(zip(("stage", "measured"), part.relative_to(run).parts))
            jobs.append(job | {"settings": job["settings"] | place, "cases": about["num_cases"],
                               "statistics": summary.statistics(lists)})
        if not parts:
            jobs.append(job)
    keys = dict.fromkeys(key for job in jobs for key in job["settings"] if key not in ELSEWHERE)
    varied = [key for key in keys if len({repr(job["settings"].get(key)) for job in jobs}) > 1]
    jobs.sort(key=lambda job: [_order(value) for value in map(job["settings"].get, varied)])
    content = {"varied": varied, "jobs": jobs}
    run_folder.write_json(folder / TABLE, content)
    for name in ("sweep.csv", "sweep.md"):
        table(content).save(folder / name)
    return content


def _order(value: Any) -> tuple[int, float, str]:
    """Nothing before numbers before all else."""
    if isinstance(value, (int, float)):
        return 1, value, ""
    return 2 * (value is not None), 0, str(value)


def table(content: Mapping[str, Any]) -> Table:
    """A row for each job, or each stage and language of one: the settings that vary, its outcome, and each metric's mean over
    cases with its standard error."""
    jobs = content["jobs"]
    shown = [key for key in METRICS if any(_shows(job["statistics"], key) for job in jobs)]
    head = [*content["varied"], "status", "cases", *(METRICS[key] for key in shown), OF_EDITS["time"]]
    rows = []
    for job in jobs:
        settings = [str(job["settings"].get(key, "")) for key in content["varied"]]
        values = [job["statistics"].get(f"post_{key}") if _shows(job["statistics"], key) else None for key in shown]
        rows.append([*settings, status(job), job["cases"], *map(Cell.of, [*values, job["statistics"].get("time")])])
    return Table(head, rows, words=len(head))


def status(job: Mapping[str, Any]) -> str:
    """A job that was done with other hyper-parameters than are asked for now has failed, and shows none of its numbers."""
    return "failed" if "error" in job else job["status"]


def _shows(statistics: Mapping[str, Any], key: str) -> bool:
    return f"post_{key}" in statistics and (not key.endswith("acc") or "post_score" not in statistics)
