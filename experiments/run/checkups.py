"""What is measured and saved of the whole model between batches, of a sequence or of batches by themselves.

Files: ``batches/<edits>.json``, ``history/<edits>.jsonl``, ``downstream/<edits>_<task>_gen.json``, ``statistics.json`` and
models; ``<edits>`` counts the edits in the model; 0 is the unedited one.
"""

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from transformers import PreTrainedModel

from common.files import part_of, sweep_once
from data.files import json_lines, write_text
from data.records import Record
from editors.core import ranks
from editors.core.corpus import find_corpus
from editors.core.solve import double
from editors.core.wrappers import plain_parameters
from editors.edit import Edit
from editors.sequence import EditSequence
from experiments.metrics.perplexity import stream_ids, stream_perplexity
from experiments.results import run_folder
from experiments.run import tasks
from experiments.run.job import RunJob
from experiments.run.measure import metrics_of

MOST_TEXTS = 10
"""Batches apart under which perplexity is measured, at most."""


class Checkups:
    """Measures and saves the model of a job, into the folder of its run."""

    def __init__(self, job: RunJob, run: Path):
        self.job, self.run, self.config = job, run, job.config
        self.stream = None
        if job.perplexity_corpus:
            corpus = find_corpus(job.perplexity_corpus)
            self.stream = stream_ids(job.tok, corpus, self.config.perplexity_tokens)

    @property
    def between_batches(self) -> bool:
        """Whether anything is measured or saved also where each batch is edited by itself."""
        return bool(self.job.tasks or self.config.save_model or self.stream)

    def path(self, edits: int) -> Path:
        """The file of what is measured after so many edits."""
        return self.run / "batches" / f"{edits:06d}.json"

    def unedited(self) -> None:
        """The unedited model, before the first batch."""
        downstream_figures = self._downstream(0) if self.job.tasks else {}
        self._write(self.path(0), {"batch": 0, "edits": 0, **self._perplexity(), **downstream_figures})

    def unedited_once(self) -> None:
        """The same where each batch is edited by itself: if it is asked for, and not there."""
        if self.between_batches and not ranks.from_first(self.path(0).exists):
            self.unedited()

    def edited_once(self, batch: int, chunk: Sequence[Record], edit: Any, last: bool) -> None:
        """The model with this batch's edit alone in it."""
        info = edit.info
        if "statistics" in info and not (self.run / run_folder.STATISTICS).exists():  # the same for every batch
            self._write(self.run / run_folder.STATISTICS, info["statistics"])
        edits = (batch - 1) * self.config.num_edits + len(chunk)
        content = {}
        if self.job.hparams.get("calculate_objective_value"):
            content["objective_distances"] = info["objective_distances"]
        steps = -(-len(self.job.records) // (MOST_TEXTS * self.config.num_edits))
        if self.stream is not None and _due(steps, batch, last):
            content |= self._perplexity() | {"weights": _relative_changes(self.job.model, edit)}
        if self.job.tasks and _due(self.config.downstream_eval_steps, batch, last):
            content |= self._downstream(edits)
        if content:
            batch_of = {"batch": batch, "edits": edits, "case_ids": [record.case_id for record in chunk]}
            self._write(self.path(edits), batch_of | content)
        self._save(batch, edits, last)

    def after_batch(
        self, sequence: EditSequence, edited: Sequence[Record], seconds: float, info: Mapping[str, Any], last: bool
    ) -> None:
        """The model with this and all earlier batches in it."""
        batch, edits = sequence.batches, len(edited)
        chunk = edited[(batch - 1) * self.config.num_edits:]
        content = {
            "batch": batch, "edits": edits, "case_ids": [record.case_id for record in chunk], "seconds": seconds,
            "phases": info.get("seconds", {}), "statistics": info.get("statistics", {}), "weights": sequence.distances(),
            "objective_distances": info.get("objective_distances", {}),
            "memory_mb": psutil.Process().memory_info().rss / 2**20,
            **{key: info[key] for key in ("rounding",) if key in info},
        }
        if _due(self.config.history_eval_steps, batch, last):
            self._history(edited)
            content |= self._perplexity()
        if self.job.tasks and _due(self.config.downstream_eval_steps, batch, last):
            content |= self._downstream(edits)
        self._write(self.path(edits), content)
        self._save(batch, edits, last)

    def _write(self, path: Path, content: Any) -> None:
        if ranks.rank() == 0:
            run_folder.write_json(path, content)

    def _save(self, batch: int, edits: int, last: bool) -> None:
        """The model and its tokenizer as transformers loads them, in ``<save_model_location>/edits_<edits>``."""
        if ranks.rank() == 0 and self.config.save_model and _due(self.config.save_model_interval, batch, last):
            folder = Path(self.config.save_model_location or self.run / "models") / f"edits_{edits}"
            sweep_once(folder.parent)
            part = part_of(folder)
            try:
                self.job.model.save_pretrained(part)
                self.job.tok.save_pretrained(part)
                run_folder.replace_folder(part, folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)

    def _history(self, edited: Sequence[Record]) -> None:
        """Measures earlier edits, or a sample of them, on the model as it is now."""
        sample, edits = self.config.history_sample, len(edited)
        if sample and edits > sample:
            edited = random.Random(f"{self.config.seed}-{edits}").sample(edited, sample)
        lines = [{"case_id": record.case_id, "post": post} for record, post in metrics_of(self.job, edited)]
        path = self.run / "history" / f"{edits:06d}.jsonl"
        if ranks.rank() == 0:
            write_text(path, json_lines(lines))

    def _perplexity(self) -> dict[str, Any]:
        if self.stream is None:
            return {}
        measured = stream_perplexity(self.job.model, self.job.tok, self.stream)
        return {"perplexity": measured.perplexity, "perplexity_tokens": measured.tokens}

    def _downstream(self, edits: int) -> dict[str, Any]:
        def measure_and_write() -> dict[str, Any]:  # not shared out: the first process does it
            figures, outputs = tasks.evaluate_tasks(
                self.job.model, self.job.tok, self.job.tasks, self.config.gen_len, self.config.legacy_rte_labels)
            for task, output in outputs.items():
                run_folder.write_json(self.run / "downstream" / f"{edits:06d}_{task}_gen.json", output)
            return figures

        return {"downstream": ranks.from_first(measure_and_write)}


def _relative_changes(model: PreTrainedModel, edit: Any) -> dict[str, dict[str, float]]:
    """`relative_distance` |W - W_0| / |W_0| of each weight, by its name, that an edit has changed; the edit is in the model."""
    changes = edit.deltas() if isinstance(edit, Edit) else {}
    edited = plain_parameters(model)
    return {name: {"relative_distance": float(double(change).norm() / double(edited[name].detach() - change).norm())}
            for name, change in changes.items() if name in edited}


def _due(steps: int, batch: int, last: bool) -> bool:
    """Whether something that happens every so many batches, and at the end, happens now; never where there are 0 steps."""
    return bool(steps) and (last or batch % steps == 0)
