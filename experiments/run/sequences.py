"""Sequential editing: every batch goes into what the earlier ones left (``experiments.evaluate --sequential``).

Beside the case files (``pre``: before the case's own batch, ``post``: right after it) a run holds

    batches/<edits>.json      after each batch: seconds, statistics, norms and distances of the edited weights, objective
                              (editors/closed_form/objective.py), memory, downstream figures
    history/<edits>.jsonl     earlier edits measured again: a line a case
    checkpoint.safetensors    from which a killed run goes on, to the same last bit

``<edits>`` counts the edits in the model; 0 is the unedited one.
"""

import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from common.errors import UserError
from common.files import sweep
from data.records import Record
from editors.core import ranks
from editors.sequence import EditSequence
from experiments.results import run_folder
from experiments.run.checkups import Checkups
from experiments.run.job import RunJob
from experiments.run.measure import measure

CHECKPOINT, FINISHED = "checkpoint.safetensors", "finished.json"


def evaluate(job: RunJob, run: Path) -> None:
    """Runs, or continues, the whole sequence in ``run``. The model is afterwards what it was, bit by bit."""
    num_edits = job.config.num_edits
    if ranks.from_first((run / FINISHED).exists):
        _check_cases(run, num_edits, job.records)
        return
    chunks = [job.records[start:start + num_edits] for start in range(0, len(job.records), num_edits)]
    sequence = EditSequence(job.editor, job.model, job.tok, job.context_templates, z_cache=job.z_cache,
                            originals_device=job.originals_device)
    try:
        _run(job, run, sequence, chunks)
    finally:
        sequence.revert()


def _run(job: RunJob, run: Path, sequence: EditSequence, chunks: Sequence[Sequence[Record]]) -> None:
    config, num_edits = job.config, job.config.num_edits
    identity = json.loads(json.dumps({"settings": job.settings(), "hparams": job.hparams}))
    checkups = Checkups(job, run)
    if ranks.from_first(partial(_is_there, run / CHECKPOINT)):
        sequence.restore(run / CHECKPOINT, identity)
        if sequence.batches > len(chunks):
            raise UserError(f"{run / CHECKPOINT}: tells of {sequence.batches} batches of {len(chunks)}: delete the run's "
                            "folder and begin anew")
    else:
        checkups.unedited()

    edited = job.records[:sequence.batches * num_edits]
    _check_cases(run, num_edits, edited)
    writes = ranks.rank() == 0
    with tqdm(total=len(job.records), initial=len(edited), desc=config.alg_name, unit="case", disable=not writes) as bar:
        for chunk in chunks[sequence.batches:]:
            before = measure(job, chunk)
            started = time.perf_counter()
            edit = sequence.edit([record.request() for record in chunk])
            seconds = time.perf_counter() - started
            after = measure(job, chunk)
            if writes:
                run_folder.write_cases(run, num_edits, chunk, run_folder.about_edit(seconds, edit.info), before, after)
            edited = edited + chunk
            last = sequence.batches == len(chunks)
            if last:
                sequence.close()
            checkups.after_batch(sequence, edited, seconds, edit.info, last)
            if writes and (last or sequence.batches % config.checkpoint_steps == 0):
                sequence.save(run / CHECKPOINT, identity)
            bar.update(len(chunk))
    if writes:
        run_folder.write_json(run / FINISHED, {"batches": sequence.batches, "edits": len(edited)})


def _check_cases(run: Path, num_edits: int, edited: Sequence[Record]) -> None:
    """Raises UserError for a case of the batches that are done which has gone since."""
    paths = [run_folder.case_path(run, num_edits, record.case_id) for record in edited]
    missing = ranks.from_first(lambda: [path for path in paths if not path.exists()])
    if missing:
        raise UserError(f"{missing[0]}: is gone, and the model is past that batch, so it can't be made again; start a new run")


def _is_there(checkpoint: Path) -> bool:
    sweep(checkpoint.parent)  # what a kill in the midst of writing one has left
    return checkpoint.exists()
