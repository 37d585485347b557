"""Editing in one language and measuring in several: MEMIT, and what MEMAT or ITI add to it (``--language``,
``--add_attention``).

A run holds, beside ``params.json`` and ``run.json``, a folder for each stage and measured language, each read like a run:

    memit/<language>/                    the model with MEMIT's edit alone
    heads_<K>/<language>/                with the corrections of K heads (MEMAT)
    heads_<K>_alpha_<alpha>/<language>/  with K heads shifted (ITI)
    relevance/<chunk>.json               how well every head tells new facts from old ones; accuracy null and no heads where too
                                         few edits took to tell, so that every stage of the chunk is MEMIT's edit alone

All chunks (batches of ``num_edits`` facts) start from the unedited model. Of a chunk there is one MEMIT edit and one probing,
whatever the number of stages.
"""

import random
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import UserError
from data.records import Record
from editors.base import Editor
from editors.closed_form.bilingual import joint_edit
from editors.core.decoder import Decoder
from editors.core.prompts import parse_requests, Request
from editors.edit import Edit
from editors.heads import probes
from editors.heads.corrections import Corrections
from editors.heads.outputs import check_heads, Head
from editors.heads.relevance import Relevance
from experiments.results import run_folder
from experiments.run import head_files
from experiments.run.config import RunConfig
from experiments.run.job import RunJob
from experiments.run.measure import measure

RELEVANCE = "relevance"
SHUFFLE_SEED = 123
"""Of the facts of both languages, when corrections are trained on them together (published)."""


@dataclass(frozen=True)
class Stage:
    """A way in which the model is changed."""

    name: str
    """"memit", "memat" or "iti"."""
    heads: int = 0
    alpha: float | None = None

    @property
    def folder(self) -> str:
        """The stage's folder within the run's."""
        if self.name == "memit":
            return "memit"
        return f"heads_{self.heads}" + ("" if self.alpha is None else f"_alpha_{self.alpha:g}")


def stages(config: RunConfig) -> list[Stage]:
    """What a run measures, MEMIT's edit alone (which is that with 0 heads) first."""
    head_counts = [count for count in config.top_num_heads if count] if config.add_attention else []
    if config.alg_name == "ITI":
        return [Stage("memit"), *(Stage("iti", heads, alpha) for heads in head_counts for alpha in config.alpha)]
    return [Stage("memit"), *(Stage("memat", heads) for heads in head_counts)]


def _held_out(job: RunJob) -> float:
    """Share of each chunk's facts that heads were neither chosen nor trained by; of heads from a file nobody knows."""
    from_file = job.config.head_ind or job.config.load_attention
    return 0.0 if from_file else getattr(job.editor.hparams, "held_out", 0.0)


def run_files(job: RunJob, about: Mapping[str, Any]) -> dict[str, Any]:
    """The params.json and run.json of each stage in each measured language, by their path in the run."""
    files: dict[str, Any] = {}
    for stage in stages(job.config):
        for language in job.languages.measured:
            stage_about = {"name": stage.name, "heads": stage.heads, "alpha": stage.alpha, "language": job.languages.edit,
                           "language_eval": job.languages.heads, "measured": language, "profile": job.settings()["profile"],
                           "bilingual": job.config.bilingual, "held_out": _held_out(job)}
            place = f"{stage.folder}/{language}"
            files |= {f"{place}/{run_folder.PARAMS}": job.hparams, f"{place}/{run_folder.RUN}": {**about, "stage": stage_about}}
    return files


def evaluate(job: RunJob, run: Path) -> None:
    """Edits and measures every chunk whose files are not all there. The model is afterwards what it was, bit by bit."""
    config, count = job.config, len(job.records)
    chunks = [slice(start, start + config.num_edits) for start in range(0, count, config.num_edits)]
    templates = _templates(job) if _corrects(job) and config.alg_name == "MEMAT" else {}
    with tqdm(total=count, desc=config.alg_name, unit="case") as bar:
        for number, chunk in enumerate(chunks):
            records = {language: job.languages.records[language][chunk] for language in job.languages.records}
            skipped = config.eval_on_others and number == 0
            if not skipped and not _done(job, run, records):
                _Chunk(job, run, number, records, templates).evaluate()
            bar.update(len(job.records[chunk]))
    if config.save_figure:
        _draw(run, Path(config.save_figure))


def _corrects(job: RunJob) -> bool:
    """Whether any stage has heads corrected."""
    return any(stage.heads for stage in stages(job.config))


def _done(job: RunJob, run: Path, records: Mapping[str, Sequence[Record]]) -> bool:
    return all(run_folder.case_path(run / stage.folder / language, job.config.num_edits, record.case_id).exists()
               for stage in stages(job.config) for language in job.languages.measured for record in records[language])


Metrics = Mapping[str, Mapping[int, dict[str, Any]]]
"""{language: {case id: metrics}}"""


class _Chunk:
    """One batch of facts: edited, measured, corrected, measured."""

    def __init__(self, job: RunJob, run: Path, number: int, records: Mapping[str, Sequence[Record]],
                 templates: Mapping[str, tuple[list[str], str]]):
        self.job, self.run, self.number, self.records, self.templates = job, run, number, records, templates
        self.config, self.languages = job.config, job.languages
        self.before = {language: measure(job, records[language]) for language in self.languages.measured}
        self.head_languages = [self.languages.edit, self.languages.heads] if self.config.bilingual else [self.languages.heads]

    def evaluate(self) -> None:
        with self._edited() as seconds:
            after = self._measure(Stage("memit"), seconds)
            if _corrects(self.job):
                self._correct(seconds, after)

    @contextmanager
    def _edited(self) -> Iterator[float]:
        """Inside, MEMIT's edit is in the model; yields the seconds that it took."""
        config = self.config
        started = time.perf_counter()
        if config.load_delta == "original_model":
            yield 0.0
            return
        edit = self._memit_edit()
        if config.save_delta_matrix:
            tag = "both" if config.bilingual else self.languages.edit
            edit.save(head_files.delta_name(config.save_delta_matrix, tag, self.number, config.num_edits))
        with _in_model(edit, self.job):
            yield time.perf_counter() - started

    def _memit_edit(self) -> Edit:
        """MEMIT's edit of the chunk: loaded, or made in the languages of the run."""
        job, config = self.job, self.config
        if config.load_delta:
            return head_files.read_delta(head_files.of_chunk(config.load_delta, self.number))
        if config.bilingual == "joint":
            requests = [(editor, self._requests(language)) for language, editor in job.editors.items()]
            return joint_edit(requests, job.model, job.tok)
        editors = job.editors if config.bilingual else {self.languages.edit: job.editor}
        edit, *others = [_memit(editor, job, self._requests(language)) for language, editor in editors.items()]
        for other in others:
            edit = edit.plus(other)
        return edit

    def _correct(self, seconds: float, after: Metrics) -> None:
        """Every stage with corrections, on top of MEMIT's edit, which took so many seconds."""
        job, editor = self.job, self.job.editor
        corrected = [stage for stage in stages(self.config) if stage.heads]
        requests = [request for language in self.head_languages for request in self._head_requests(language)]
        voters = self._voters(after) if editor.hparams.voters == "correct" else range(len(requests))
        voters = editor.telling(requests, voters)
        started = time.perf_counter()
        heads = job.heads_of_file(self.number)
        most = max(stage.heads for stage in corrected)
        shifts = self.config.alg_name == "ITI" and not self.config.load_attention
        facts = by_fact(self.config, editor.hparams, len(requests))
        independent = len(voters if facts is None else {facts[i] for i in voters})
        if heads is None and not probes.enough(independent, editor.hparams.val_share) or shifts and not voters:
            self._without_heads(corrected, voters, seconds, after)
            return
        outputs = editor.features(job.model, job.tok, requests, progress=True) if heads is None or shifts else None
        if heads is None:
            relevance = editor.relevance(job.model, job.tok, requests, voters, progress=True, outputs=outputs, facts=facts)
            heads = editor.choose(relevance, most)
            self._write_relevance(relevance, relevance.voters, heads)
        else:
            heads = check_heads(heads, Decoder.of(job.model), "--head_ind")
        # Every head's shift is its own, and linear in alpha: one of the most heads serves all stages.
        unit = None
        if shifts:
            unit = editor.correct(job.model, job.tok, requests, heads[:most], voters=voters, alpha=1.0, outputs=outputs)
        choosing = time.perf_counter() - started
        for stage in corrected:
            started = time.perf_counter()
            if unit is None:
                corrections = self._corrections(heads[:stage.heads])
            else:
                corrections = Corrections(heads[:stage.heads], stage.alpha * unit.vectors[:stage.heads])
            if self.config.save_attention_heads:
                path = head_files.corrections_name(
                    self.config.save_attention_heads, self.languages.edit, "-".join(self.head_languages), stage.heads,
                    self.number, self.config.num_edits)
                Corrections(corrections.heads, corrections.vectors, self._about(stage)).save(path)
            biases = editor.fold(job.model, corrections)
            stage_seconds = seconds + choosing + time.perf_counter() - started
            with _in_model(biases, job):
                self._measure(stage, stage_seconds)

    def _without_heads(self, corrected: Sequence[Stage], voters: Sequence[int], seconds: float, after: Metrics) -> None:
        """Too few edits took to choose heads by: none is corrected, so that every stage is MEMIT's edit."""
        warnings.warn(f"chunk {self.number}: only {len(voters)} facts can vote on heads; none is corrected there", stacklevel=2)
        self._write_relevance(None, voters, [])
        for stage in corrected:
            self._write(stage, seconds, after)

    def _corrections(self, heads: list[Head]) -> Corrections:
        """MEMAT's corrections of these heads: loaded, or trained on the facts of the languages of heads."""
        job = self.job
        if self.config.load_attention:
            return head_files.read_corrections(head_files.of_chunk(self.config.load_attention, self.number), heads)
        facts = [(request, *self.templates[language])
                 for language in self.head_languages for request in self._head_requests(language)]
        if self.config.bilingual:  # as published
            random.Random(SHUFFLE_SEED).shuffle(facts)
        requests, templates, kl_prompts = map(list, zip(*facts))
        return job.editor.correct(job.model, job.tok, requests, heads, templates, progress=True, kl_prompts=kl_prompts)

    def _voters(self, after: Metrics) -> list[int]:
        """Positions, among the facts in the languages of the heads, of those whose new object the edited model says."""
        says_new = [after[language][record.case_id]["rewrite_prompts_correct"][0]
                    for language in self.head_languages for record in self._head_records(language)]
        return [position for position, correct in enumerate(says_new) if correct]

    def _measure(self, stage: Stage, seconds: float) -> Metrics:
        """Measures the model as it is in each language and writes the cases."""
        after = {language: measure(self.job, self.records[language]) for language in self.languages.measured}
        self._write(stage, seconds, after)
        return after

    def _write(self, stage: Stage, seconds: float, after: Metrics) -> None:
        for language in self.languages.measured:
            run_folder.write_cases(self.run / stage.folder / language, self.config.num_edits, self.records[language],
                                   run_folder.about_edit(seconds, {}), self.before[language], after[language])

    def _write_relevance(self, relevance: Relevance | None, voters: Sequence[int], heads: list[Head]) -> None:
        ids = [record.case_id for language in self.head_languages for record in self._head_records(language)]
        run_folder.write_json(self.run / RELEVANCE / f"{self.number:06d}.json", {
            "chunk": self.number, "language": self.languages.edit, "language_eval": self.languages.heads, "case_ids": ids,
            "voters": [ids[i] for i in voters], "train": len(relevance.training) if relevance else 0,
            "validation": len(relevance.validation) if relevance else 0,
            "accuracy": relevance.accuracy.tolist() if relevance else None, "heads": heads})

    def _about(self, stage: Stage) -> dict[str, Any]:
        """What saved corrections are of."""
        return {"model": self.job.settings()["model"], "shape": self.job.head_shape, "language": self.languages.edit,
                "language_eval": self.head_languages, "heads": stage.heads, "alpha": stage.alpha, "chunk": self.number,
                "num_edits": self.config.num_edits, "profile": self.job.settings()["profile"],
                "case_ids": [record.case_id for record in self.records[self.languages.edit]], "hparams": dict(self.job.hparams)}

    def _requests(self, language: str) -> list[dict[str, Any]]:
        return [record.request() for record in self.records[language]]

    def _head_records(self, language: str) -> list[Record]:
        """Those that heads are chosen and corrected by."""
        records = self.records[language]
        return list(records[: self.job.editor.for_heads(len(records))])

    def _head_requests(self, language: str) -> list[Request]:
        return parse_requests([record.request() for record in self._head_records(language)], self.job.tok)


def _memit(editor: Editor, job: RunJob, requests: list[dict]) -> Edit:
    """MEMIT's edit by an editor that may be more than MEMIT."""
    memit_edit = getattr(editor, "memit", editor.edit)
    return memit_edit(job.model, job.tok, requests, z_cache=job.z_cache, progress=True)


@contextmanager
def _in_model(edit: Edit, job: RunJob) -> Iterator[None]:
    edit.apply(job.model, originals_device=job.originals_device)
    try:
        yield
    finally:
        edit.revert(job.model)


def by_fact(config: RunConfig, hparams: Any, requests: int) -> list[int] | None:
    """Which fact each request of the heads tells, where both languages tell the same ones; None in the profile paper, which
    splits requests, so that a fact may be trained on in one language and validated in the other."""
    return list(range(requests // 2)) * 2 if config.bilingual and hparams.profile != "paper" else None


def _templates(job: RunJob) -> dict[str, tuple[list[str], str]]:
    """{language of heads: contexts, of the unedited model, and KL prompt for training corrections}: its own; in the
    profile paper for both languages three contexts of each, as published."""
    editors = job.editors if job.config.bilingual else {job.languages.heads: job.editor}
    templates = {language: (editor.head_templates(job.model, job.tok), editor.settings().kl_prompt)
                 for language, editor in editors.items()}
    if job.config.bilingual and job.editor.hparams.profile == "paper":
        mixed = [template for contexts, _ in templates.values() for template in contexts[:3]]
        templates = {language: (mixed, kl_prompt) for language, (_, kl_prompt) in templates.items()}
    return templates


def _draw(run: Path, path: Path) -> None:
    """The map of the heads' relevance, by a program of its own: figures read results, and no program knows figures."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run([sys.executable, "-m", "figures.head_relevance", run.resolve(), "--out", path.resolve()], cwd=root,
                             capture_output=True, text=True)
    if process.returncode:
        error = (process.stderr.strip().splitlines() or ["no figure"])[-1].removeprefix("error: ")
        raise UserError(f"--save_figure {path}: {error}")
