"""Editing batches by themselves: each into the unmodified model, taken out again before the next (``experiments.evaluate``).

Cases are measured before their edits, and target states sought, in blocks of at least :data:`BLOCK`; a block that is begun
again is measured as a whole, for the same numbers to the last digit. Of several processes each takes batches of its own; all
work at the same one where there are fewer batches than processes.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.records import Record
from editors.core import ranks
from experiments.results import run_folder
from experiments.run.checkups import Checkups
from experiments.run.job import RunJob
from experiments.run.measure import measure
from experiments.run.unedited import measure_unedited

BLOCK = 64
"""Cases that are measured together before their edits, and whose target states are sought together, at least."""

TARGETS = ".targets"
"""Folder in a run, while it works, of the target states of a block."""


def evaluate(job: RunJob, run: Path) -> None:
    """Edits and measures every batch whose files are not all there, and writes them."""
    try:
        _evaluate(job, run)
    finally:
        if ranks.rank() == 0:
            shutil.rmtree(run / TARGETS, ignore_errors=True)


def _evaluate(job: RunJob, run: Path) -> None:
    num_edits = job.config.num_edits
    checkups = Checkups(job, run)
    checkups.unedited_once()
    prepared = ranks.world_size() == 1
    with tqdm(total=len(job.records), desc=job.config.alg_name, unit="case", disable=ranks.rank() > 0) as bar:
        for start, block in _blocks(job.records, num_edits):
            unfinished = ranks.from_first(partial(_unfinished, job, run, start, block))
            bar.update(sum(map(len, block)) - sum(len(block[i]) for i in unfinished))
            if not unfinished:
                continue
            if not prepared:  # all together: statistics and contexts, which each would else collect by itself
                job.editor.begin(job.model, job.tok, job.context_templates)
                prepared = True
            first = start * num_edits
            before = measure_unedited(job, first, first + sum(map(len, block)))
            z_cache, seconds = _targets(job, run, block)
            apart = len(unfinished) >= ranks.world_size()
            of_process = unfinished[ranks.rank()::ranks.world_size()] if apart else unfinished
            with ranks.alone() if apart else nullcontext():
                for i in of_process:
                    about_edit, after = _edit_and_measure(job, run, block[i], start + i + 1, checkups, z_cache, seconds)
                    if ranks.rank() == 0:
                        run_folder.write_cases(run, num_edits, block[i], about_edit, before, after)
                    bar.update(len(block[i]))
            bar.update(sum(len(block[i]) for i in set(unfinished) - set(of_process)))
    ranks.barrier()


def _targets(job: RunJob, run: Path, block: Sequence[Sequence[Record]]) -> tuple[Path | None, float]:
    """(folder where the edits of a block find their target states, seconds a request that it took to seek them).

    They are sought together for all its batches: each is edited into the unmodified model, so none depends on another.
    """
    if len(block) == 1:
        return job.z_cache, 0.0
    started = time.perf_counter()
    folder = job.z_cache or run / TARGETS
    requests = [record.request() for chunk in block for record in chunk]
    job.editor.seek(job.model, job.tok, requests, folder, job.context_templates)
    ranks.barrier()
    return folder, (time.perf_counter() - started) / len(requests)


def _unfinished(job: RunJob, run: Path, start: int, block: Sequence[Sequence[Record]]) -> list[int]:
    """Which batches of a block, before which there are `start`, do not have all their files."""

    def files(i: int) -> Iterator[Path]:
        yield from (run_folder.case_path(run, job.config.num_edits, record.case_id) for record in block[i])
        if job.config.save_edits:
            yield _edit_path(run, start + i)

    return [i for i in range(len(block)) if not all(path.exists() for path in files(i))]


def _edit_path(run: Path, batch: int) -> Path:
    """Where the edit of a batch, counted from 0, is kept."""
    return run / run_folder.EDITS / f"{batch:06d}.safetensors"


def _edit_and_measure(
    job: RunJob, run: Path, chunk: Sequence[Record], number: int, checkups: Checkups, z_cache: Path | None,
    sought: float
) -> tuple[dict[str, float], dict[int, dict[str, Any]]]:
    """(what the edit took and lost, metrics of each record under it). The model is afterwards what it was, bit by bit.

    number: of the batch, counted from 1. z_cache, sought: of :func:`_targets`.
    """
    started = time.perf_counter()
    requests = [record.request() for record in chunk]
    edit = job.editor.edit(job.model, job.tok, requests, job.context_templates, z_cache=z_cache)
    if job.config.save_edits and ranks.rank() == 0:
        edit.save(_edit_path(run, number - 1))
    edit.apply(job.model, originals_device=job.originals_device)
    seconds = time.perf_counter() - started + len(chunk) * sought
    try:
        checkups.edited_once(number, chunk, edit, number == -(-len(job.records) // job.config.num_edits))
        return run_folder.about_edit(seconds, edit.info), measure(job, chunk)
    finally:
        edit.revert(job.model)


def _blocks(records: Sequence[Record], num_edits: int) -> Iterator[tuple[int, list[list[Record]]]]:
    """(number of batches before it, block): batches of ``num_edits`` records, the last may be shorter, in blocks of at least
    :data:`BLOCK` records."""
    chunks = [list(records[i:i + num_edits]) for i in range(0, len(records), num_edits)]
    size = -(-BLOCK // num_edits)
    yield from ((i, chunks[i:i + size]) for i in range(0, len(chunks), size))
