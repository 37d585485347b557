"""The table of a sweep (:mod:`experiments.sweep`): a row for each job, or for each stage and language of one."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.files import write_atomically
from experiments.results import run_folder, summary
from experiments.summarize import read_run

JOB, TABLE, RUN = "job.json", "sweep.json", "run_000"
ELSEWHERE = ("name", "results_dir", "data_dir", "stats_dir", "processes", "device", "command")
"""Settings that say where and how, not what: a job is the same whatever they are."""
METRICS = {
    "score": "score", "rewrite_success": "efficacy", "paraphrase_success": "paraphrase",
    "neighborhood_success": "neighbourhood", "score_acc": "score of accuracies", "rewrite_acc": "efficacy acc.",
    "paraphrase_acc": "paraphrase acc.", "neighborhood_acc": "neighbourhood acc.",
}
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
    """A head, and a row for each job, or each stage and language of one: the settings that vary, its outcome, and means ±
    standard errors over cases."""
    jobs = content["jobs"]
    shown = [key for key in METRICS if any(_shows(job["statistics"], key) for job in jobs)]
    rows = [[*content["varied"], "status", "cases", *(METRICS[key] for key in shown), "seconds an edit batch"]]
    for job in jobs:
        cells = [str(job["settings"].get(key, "")) for key in content["varied"]]
        numbers = [job["statistics"].get(f"post_{key}") if _shows(job["statistics"], key) else None for key in shown]
        numbers.append(job["statistics"].get("time"))
        rows.append([*cells, status(job), str(job["cases"]), *map(_cell, numbers)])
    return rows


def status(job: Mapping[str, Any]) -> str:
    """A job that was done with other hyper-parameters than are asked for now has failed, and shows none of its numbers."""
    return "failed" if "error" in job else job["status"]


def _shows(statistics: Mapping[str, Any], key: str) -> bool:
    return f"post_{key}" in statistics and (not key.endswith("acc") or "post_score" not in statistics)


def _cell(value: Mapping[str, float | None] | None) -> str:
    if value is None:
        return ""
    return f"{value['mean']:.1f}" + ("" if value["se"] is None else f" ± {value['se']:.1f}")
