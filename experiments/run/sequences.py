"""Sequential editing: every batch goes into what the earlier ones left (``experiments.evaluate --sequential``).

Beside the case files (``pre``: before the case's own batch, ``post``: right after it) a run holds

    batches/<edits>.json      after each batch: seconds, statistics, norms and distances of the edited weights, objective
                              (editors/closed_form/objective.py), memory, downstream figures
    history/<edits>.jsonl     earlier edits measured again: a line a case
    checkpoint.safetensors    from which a killed run goes on, to the same last bit

``<edits>`` counts the edits in the model; 0 is the unedited one.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from common.errors import UserError
from data.download import data_folder
from data.files import write_atomically
from data.records import Record
from editors.core import ranks
from editors.core.corpus import find_corpus
from editors.sequence import EditSequence
from experiments import downstream
from experiments.results import run_folder
from experiments.run.job import Job
from experiments.run.measure import measure, metrics_of

CHECKPOINT, FINISHED = "checkpoint.safetensors", "finished.json"
PERPLEXITY_TEXTS = 20


def evaluate(job: Job, run: Path) -> None:
    """Runs, or continues, the whole sequence in ``run``. The model is afterwards what it was, bit by bit."""
    flags, records, num_edits = job.flags, job.records, job.flags["num_edits"]
    if ranks.from_first((run / FINISHED).exists):
        _check_cases(run, num_edits, records)
        return
    chunks = [records[start:start + num_edits] for start in range(0, len(records), num_edits)]
    cache = data_folder(flags["data_dir"]) / "z_cache" if flags["use_cache"] else None
    sequence = EditSequence(job.editor, job.model, job.tok, job.context_templates, z_cache=cache,
                            originals_device="cpu" if flags["conserve_memory"] else None)
    try:
        _run(job, run, sequence, chunks)
    finally:
        sequence.revert()


def _run(job: Job, run: Path, sequence: EditSequence, chunks: Sequence[Sequence[Record]]) -> None:
    flags, num_edits = job.flags, job.flags["num_edits"]
    identity = json.loads(json.dumps({"settings": job.settings(), "hparams": job.hparams}))
    checkups = Checkups(job, run)
    if ranks.from_first(partial(_is_there, run / CHECKPOINT)):
        sequence.restore(run / CHECKPOINT, identity)
    else:
        checkups.unedited()

    edited = job.records[:sequence.batches * num_edits]
    _check_cases(run, num_edits, edited)
    first = ranks.rank() == 0  # the one that writes
    with tqdm(total=len(job.records), initial=len(edited), desc=flags["alg_name"], unit="case", disable=not first) as bar:
        for chunk in chunks[sequence.batches:]:
            before = measure(job, chunk)
            started = time.perf_counter()
            edit = sequence.edit([record.request() for record in chunk])
            seconds = time.perf_counter() - started
            after = measure(job, chunk)
            for record in chunk if first else ():
                about = run_folder.about_edit(seconds, edit.info)
                run_folder.write_case(run, num_edits, record, chunk, about, before[record.case_id], after[record.case_id])
            edited = edited + chunk
            last = sequence.batches == len(chunks)
            if last:
                sequence.close()
            checkups.after_batch(sequence, chunk, edited, seconds, edit.info, last)
            if first and (last or sequence.batches % flags["checkpoint_steps"] == 0):
                sequence.save(run / CHECKPOINT, identity)
            bar.update(len(chunk))
    if first:
        run_folder.write_json(run / FINISHED, {"batches": sequence.batches, "edits": len(edited)})


def _check_cases(run: Path, num_edits: int, edited: Sequence[Record]) -> None:
    """Raises UserError for a case of the batches that are done which has gone since."""
    paths = [run_folder.case_path(run, num_edits, record.case_id) for record in edited]
    gone = ranks.from_first(lambda: [path for path in paths if not path.exists()])
    if gone:
        raise UserError(f"{gone[0]}: is gone, and the model is past that batch, so it can't be made again; start a new run")


def _is_there(checkpoint: Path) -> bool:
    for part in checkpoint.parent.glob(f".{checkpoint.name}.*.part"):  # left by a kill in the midst of writing one
        part.unlink()
    return checkpoint.exists()


class Checkups:
    """What is measured of the whole model between batches, and the models that are saved."""

    def __init__(self, job: Job, run: Path):
        self.job, self.run, self.flags = job, run, job.flags
        self.texts = None
        if job.perplexity_corpus:
            texts = find_corpus(job.perplexity_corpus).texts()
            self.texts = list(itertools.islice((text for text in texts if text.strip()), PERPLEXITY_TEXTS))
            if not self.texts:
                raise UserError(f"--perplexity_corpus {job.perplexity_corpus}: it holds no text")

    @property
    def wanted(self) -> bool:
        """Whether anything is measured or saved also where each batch is edited by itself."""
        return bool(self.job.downstream or self.flags["save_model"])

    def path(self, edits: int) -> Path:
        return self.run / "batches" / f"{edits:06d}.json"

    def unedited(self) -> None:
        """The unedited model, before the first batch."""
        downstream_figures = self._downstream(0) if self.job.downstream else {}
        self._write(self.path(0), {"batch": 0, "edits": 0, **self._perplexity(), **downstream_figures})

    def unedited_once(self) -> None:
        """The same where each batch is edited by itself: if it is wanted, and not there."""
        if self.wanted and not ranks.from_first(self.path(0).exists):
            self.unedited()

    def edited_once(self, batch: int, chunk: Sequence[Record], info: Mapping[str, Any], last: bool) -> None:
        """The model with this batch alone in it."""
        if "statistics" in info and not (self.run / run_folder.STATISTICS).exists():  # the same for every batch
            self._write(self.run / run_folder.STATISTICS, info["statistics"])
        edits = (batch - 1) * self.flags["num_edits"] + len(chunk)
        content = {}
        if self.job.hparams.get("calculate_objective_value"):
            content["objective_distances"] = info["objective_distances"]
        if self.job.downstream and self._due("downstream_eval_steps", batch, last):
            content |= self._downstream(edits)
        if content:
            about = {"batch": batch, "edits": edits, "case_ids": [record.case_id for record in chunk]}
            self._write(self.path(edits), about | content)
        self._save(batch, edits, last)

    def after_batch(
        self, sequence: EditSequence, chunk: Sequence[Record], edited: Sequence[Record], seconds: float, info: Mapping[str, Any],
        last: bool,
    ) -> None:
        """The model with this and all earlier batches in it."""
        batch, edits = sequence.batches, len(edited)
        content = {
            "batch": batch, "edits": edits, "case_ids": [record.case_id for record in chunk], "seconds": seconds,
            "phases": info.get("seconds", {}), "statistics": info.get("statistics", {}), "weights": sequence.distances(),
            "objective_distances": info.get("objective_distances", {}),
            "memory_mb": psutil.Process().memory_info().rss / 2**20,
            **{key: info[key] for key in ("rounding",) if key in info},
        }
        if self._due("history_eval_steps", batch, last):
            self._history(edited)
            content |= self._perplexity()
        if self.job.downstream and self._due("downstream_eval_steps", batch, last):
            content |= self._downstream(edits)
        self._write(self.path(edits), content)
        self._save(batch, edits, last)

    def _write(self, path: Path, content: Any) -> None:
        if ranks.rank() == 0:
            run_folder.write_json(path, content)

    def _due(self, flag: str, batch: int, last: bool) -> bool:
        steps = self.flags[flag]
        return bool(steps) and (last or batch % steps == 0)

    def _save(self, batch: int, edits: int, last: bool) -> None:
        """The model and its tokenizer as transformers loads them, in ``<save_model_location>/edits_<edits>``."""
        if ranks.rank() == 0 and self.flags["save_model"] and self._due("save_model_interval", batch, last):
            folder = Path(self.flags["save_model_location"] or self.run / "models") / f"edits_{edits}"
            part = folder.with_name(f".{folder.name}.part")
            self.job.model.save_pretrained(part)
            self.job.tok.save_pretrained(part)
            run_folder.replace_folder(part, folder)

    def _history(self, edited: Sequence[Record]) -> None:
        """Measures earlier edits, or a sample of them, on the model as it is now."""
        most, edits = self.flags["history_sample"], len(edited)
        if most and len(edited) > most:
            edited = random.Random(f"{self.flags['seed']}-{len(edited)}").sample(edited, most)
        lines = [json.dumps({"case_id": record.case_id, "post": post}, ensure_ascii=False)
                 for record, post in metrics_of(self.job, edited)]
        path = self.run / "history" / f"{edits:06d}.jsonl"
        if ranks.rank() == 0:
            write_atomically(path, lambda file: file.write(("\n".join(lines) + "\n").encode()))

    def _perplexity(self) -> dict[str, Any]:
        if self.texts is None:
            return {}
        from experiments.metrics.generation import perplexities  # nltk and scikit-learn are slow to import

        values = perplexities(self.job.model, self.job.tok, self.texts)
        return {"perplexity": sum(values) / len(values)}

    def _downstream(self, edits: int) -> dict[str, Any]:
        def measure_and_write() -> dict[str, Any]:  # not shared out: the first process does it
            figures, outputs = downstream.evaluate_tasks(
                self.job.model, self.job.tok, self.job.downstream, self.flags["gen_len"], self.flags["legacy_rte_labels"])
            for task, output in outputs.items():
                run_folder.write_json(self.run / "downstream" / f"{edits:06d}_{task}_gen.json", output)
            return figures

        return {"downstream": ranks.from_first(measure_and_write)}
