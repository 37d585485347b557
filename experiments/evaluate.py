"""``python -m experiments.evaluate``: apply an editor to a data set, batch by batch, and measure each case before and after.

    python -m experiments.evaluate --alg_name MEMIT --num_edits 100 --dataset_size_limit 100     # the built-in world
    python -m experiments.evaluate --alg_name ROME --model_name gpt2-xl --hparams_fname gpt2-xl.json --ds_name mcf

Consecutive batches of ``num_edits`` records are edited into the unmodified model, one batch after another (each is taken out
again, bit by bit, before the next). Results: see :mod:`experiments.results`. A run that was killed at any moment goes on with
``--continue_from_run run_<NNN>`` and ends with the same numbers: a batch is done anew unless all its files are there, and
everything is computed in groups that only the data and ``num_edits`` decide.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import data
import editors
from data.download import data_folder
from data.records import Record
from experiments import results
from experiments.cli import HelpFormatter, add_model_flags, run_program
from experiments.job import Job, is_sampled, prepare
from experiments.metrics.counterfact import counterfact_metrics
from experiments.metrics.zsre import zsre_metrics

METRICS = {"counterfact": counterfact_metrics, "zsre": zsre_metrics}

BLOCK = 64
"""Cases that are measured together before their edits, at least."""


def main(
    alg_name: str,
    model_name: str | tuple[PreTrainedModel, PreTrainedTokenizerBase] = "world",
    hparams_fname: str | Path | None = None,
    ds_name: str | None = None,
    dataset_size_limit: int | None = None,
    continue_from_run: str | None = None,
    skip_generation_tests: bool = False,
    generation_test_interval: int = 1,
    conserve_memory: bool = False,
    dir_name: str | None = None,
    num_edits: int = 1,
    use_cache: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    data_dir: str | Path | None = None,
    stats_dir: str | Path | None = None,
    results_dir: str | Path = "results",
) -> Path:
    """Evaluates an editor as the command line does (whose help explains the arguments); returns the run's folder.

    ``model_name`` may be a (model, tok) pair. Raises EditingError or DataError for a user's mistake; nothing is then left
    behind by a run that had not finished a batch.
    """
    flags, loaded = dict(locals()), None
    _set_folders(data_dir, stats_dir)
    if not isinstance(model_name, str):
        loaded, flags["model_name"] = model_name, model_name[0].config._name_or_path
    flags["dir_name"] = dir_name or alg_name
    flags["ds_name"] = str(ds_name or ("world" if flags["model_name"] == "world" else "mcf"))
    folder = Path(results_dir) / flags["dir_name"]
    continued = None if continue_from_run is None else results.existing_run(folder, continue_from_run)

    job = prepare(flags, loaded)
    run = open_run(folder, job, continued)
    try:
        evaluate(job, run)
    except (editors.EditingError, data.DataError):
        if continued is None:
            results.remove_unused(run)
        raise
    return run


def open_run(folder: Path, job: Job, continued: Path | None) -> Path:
    """The folder of a new run, with params.json and run.json; or ``continued``, if that is of the same configuration."""
    settings = job.settings()
    if continued is not None:
        results.check_same(continued, results.read_json(continued / results.PARAMS), job.hparams)
        results.check_same(continued, results.read_json(continued / results.RUN)["settings"], settings)
        return continued
    flags = {key: str(value) if isinstance(value, Path) else value for key, value in job.flags.items()}
    about = {"settings": settings, "flags": flags, "cases": len(job.records), **results.provenance()}
    return results.new_run(folder, {results.PARAMS: job.hparams, results.RUN: about})


def evaluate(job: Job, run: Path) -> None:
    """Edits and measures every batch whose case files are not all there, and writes them."""
    num_edits = job.flags["num_edits"]

    def path(record: Record) -> Path:
        return results.case_path(run, num_edits, record.case_id)

    with tqdm(total=len(job.records), desc=job.flags["alg_name"], unit="case") as bar:
        for block in _blocks(job.records, num_edits):
            todo = [chunk for chunk in block if not all(path(record).exists() for record in chunk)]
            bar.update(sum(map(len, block)) - sum(map(len, todo)))
            if not todo:
                continue
            # Measured in one go; the whole block, also when part of it is done, for the same numbers to the last digit.
            before = measure(job, [record for chunk in block for record in chunk])
            for chunk in todo:
                seconds, after = _edit_and_measure(job, chunk)
                for record, post in zip(chunk, after):
                    results.write_json(path(record), {
                        "case_id": record.case_id, "grouped_case_ids": [r.case_id for r in chunk], "num_edits": num_edits,
                        "requested_rewrite": record.requested_rewrite(), "time": seconds, "post": post,
                        "pre": before[record.case_id],
                    })
                bar.update(len(chunk))


def measure(job: Job, records: Sequence[Record]) -> dict[int, dict[str, Any]]:
    """The metrics of each record on the model as it is now, by case id."""
    metrics = METRICS[records[0].schema](job.model, job.tok, records)
    by_case = {record.case_id: result for record, result in zip(records, metrics)}
    if job.generate:
        sampled = [record for record in records if is_sampled(record, job.flags)]
        for record, result in zip(sampled, job.generate(sampled)):
            by_case[record.case_id].update(result)
    return by_case


def _edit_and_measure(job: Job, chunk: Sequence[Record]) -> tuple[float, list[dict[str, Any]]]:
    """(seconds that the edit took, metrics of each record under it). The model is afterwards what it was, bit by bit."""
    started = time.perf_counter()
    cache = data_folder(job.flags["data_dir"]) / "z_cache" if job.flags["use_cache"] else None
    edit = job.editor.edit(job.model, job.tok, [record.request() for record in chunk], z_cache=cache)
    edit.apply(job.model, originals_device="cpu" if job.flags["conserve_memory"] else None)
    seconds = time.perf_counter() - started
    try:
        by_case = measure(job, chunk)
    finally:
        edit.revert(job.model)
    return seconds, [by_case[record.case_id] for record in chunk]


def _blocks(records: Sequence[Record], num_edits: int) -> Iterator[list[list[Record]]]:
    """Batches of ``num_edits`` records (the last may be shorter), in blocks of at least :data:`BLOCK` records."""
    chunks = [list(records[i:i + num_edits]) for i in range(0, len(records), num_edits)]
    size = -(-BLOCK // num_edits)
    yield from (chunks[i:i + size] for i in range(0, len(chunks), size))


def _set_folders(data_dir: str | Path | None, stats_dir: str | Path | None) -> None:
    """The editors look for statistics where the environment says."""
    for name, folder in (("KE_DATA_DIR", data_dir), ("KE_STATS_DIR", stats_dir)):
        if folder is not None:
            os.environ[name] = str(folder)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def _interval(text: str) -> int:
    if int(text) < 1 and int(text) != -1:
        raise argparse.ArgumentTypeError(f"{text} is neither at least 1 nor -1 (never)")
    return int(text)


def command() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.evaluate", description=__doc__.split("\n\n")[0],
                                     formatter_class=HelpFormatter)
    parser.add_argument("--alg_name", required=True, help=f"editor: {', '.join(editors.names())}")
    parser.add_argument("--model_name", default="world", help="Hugging Face hub id, local folder, or the built-in world")
    parser.add_argument("--hparams_fname", help="file in hparams/<alg_name>/, or a path; by default <model_name>.json")
    parser.add_argument("--ds_name", help="mcf, cf, zsre, world, or the path of a .json file in the schema of one of them; "
                                          "by default world for the model world, else mcf")
    parser.add_argument("--dataset_size_limit", type=_positive, help="only the first so many records")
    parser.add_argument("--num_edits", type=_positive, default=1, help="records that are edited into the model together")
    parser.add_argument("--continue_from_run", metavar="run_<NNN>", help="go on with this run of the same configuration")
    parser.add_argument("--skip_generation_tests", action="store_true",
                        help="no sampled texts: fluency, consistency, essence")
    parser.add_argument("--generation_test_interval", type=_interval, default=1,
                        help="sample texts for cases whose case_id is a multiple of this; -1: never")
    parser.add_argument("--use_cache", action="store_true",
                        help="keep target states (z) on disk, and reuse those that were computed from all the same")
    parser.add_argument("--conserve_memory", action="store_true",
                        help="keep the original weights on the CPU while an edit is in the model")
    parser.add_argument("--dir_name", help="folder of the run in the results folder; by default the editor's name")
    parser.add_argument("--results_dir", default="results", help="the results folder")
    parser.add_argument("--data_dir",
                        help="data files and caches; by default KE_DATA_DIR, else ~/.cache/knowledge-editing/data")
    parser.add_argument("--stats_dir", help="second moments; by default KE_STATS_DIR, else stats in the data folder")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is sampled: contexts and texts")
    add_model_flags(parser)
    run = main(**vars(parser.parse_args()))
    print(f"results: {run}")


if __name__ == "__main__":
    run_program(command)
