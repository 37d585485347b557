"""Editing in one language and measuring in several: MEMIT, and what MEMAT or ITI add to it (``--language``, ``--add_attention``).

A run holds, beside ``params.json`` and ``run.json``, a folder for each stage and measured language, each read like a run of its own:

    memit/<language>/                    the model with MEMIT's edit alone
    heads_<K>/<language>/                with the corrections of K heads (MEMAT)
    heads_<K>_alpha_<alpha>/<language>/  with K heads shifted (ITI)
    relevance/<chunk>.json               how well every head tells new facts from old ones; accuracy null and no heads where too few
                                         edits took to tell, so that every stage of the chunk is MEMIT's edit alone

All chunks (batches of ``num_edits`` facts) start from the unedited model. Of a chunk there is one MEMIT edit and one probing, whatever
the number of stages.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import UserError
from data.download import data_folder
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
from experiments.run.job import Job
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
        if self.name == "memit":
            return "memit"
        return f"heads_{self.heads}" + ("" if self.alpha is None else f"_alpha_{self.alpha:g}")


def stages(flags: Mapping[str, Any]) -> list[Stage]:
    """What a run measures, MEMIT's edit alone (which is that with 0 heads) first."""
    numbers = [number for number in flags["top_num_heads"] if number] if flags["add_attention"] else []
    if flags["alg_name"] == "ITI":
        return [Stage("memit"), *(Stage("iti", heads, alpha) for heads in numbers for alpha in flags["alpha"])]
    return [Stage("memit"), *(Stage("memat", heads) for heads in numbers)]


def _held_out(job: Job) -> float:
    """Share of each chunk's facts that heads were neither chosen nor trained by; of heads that came from a file nobody knows."""
    given = job.flags["head_ind"] or job.flags["load_attention"]
    return 0.0 if given else getattr(job.editor.hparams, "held_out", 0.0)


def run_files(job: Job, about: Mapping[str, Any]) -> dict[str, Any]:
    """The params.json and run.json of each stage in each measured language, by their path in the run."""
    files: dict[str, Any] = {}
    for stage in stages(job.flags):
        for language in job.languages.measured:
            of_stage = {"name": stage.name, "heads": stage.heads, "alpha": stage.alpha, "language": job.languages.edit,
                        "language_eval": job.languages.heads, "measured": language, "profile": job.settings()["profile"],
                        "bilingual": job.flags["bilingual"], "held_out": _held_out(job)}
            place = f"{stage.folder}/{language}"
            files |= {f"{place}/{run_folder.PARAMS}": job.hparams, f"{place}/{run_folder.RUN}": {**about, "stage": of_stage}}
    return files


def evaluate(job: Job, run: Path) -> None:
    """Edits and measures every chunk whose files are not all there. The model is afterwards what it was, bit by bit."""
    num_edits, count = job.flags["num_edits"], len(job.records)
    chunks = [slice(start, start + num_edits) for start in range(0, count, num_edits)]
    templates = _templates(job) if _corrects(job) and job.flags["alg_name"] == "MEMAT" else {}
    with tqdm(total=count, desc=job.flags["alg_name"], unit="case") as bar:
        for number, chunk in enumerate(chunks):
            records = {language: job.languages.records[language][chunk] for language in job.languages.records}
            skipped = job.flags["eval_on_others"] and number == 0
            if not skipped and not _done(job, run, records):
                _Chunk(job, run, number, records, templates).evaluate()
            bar.update(len(job.records[chunk]))
    if job.flags["save_figure"]:
        _draw(run, Path(job.flags["save_figure"]))


def _corrects(job: Job) -> bool:
    """Whether any stage has heads corrected."""
    return any(stage.heads for stage in stages(job.flags))


def _done(job: Job, run: Path, records: Mapping[str, Sequence[Record]]) -> bool:
    return all(run_folder.case_path(run / stage.folder / language, job.flags["num_edits"], record.case_id).exists()
               for stage in stages(job.flags) for language in job.languages.measured for record in records[language])


class _Chunk:
    """One batch of facts: edited, measured, corrected, measured."""

    def __init__(self, job: Job, run: Path, number: int, records: Mapping[str, Sequence[Record]],
                 templates: Mapping[str, tuple[list[str], str]]):
        self.job, self.run, self.number, self.records, self.templates = job, run, number, records, templates
        self.flags, self.languages = job.flags, job.languages
        self.before = {language: measure(job, records[language]) for language in self.languages.measured}
        self.head_language = [self.languages.edit, self.languages.heads] if self.flags["bilingual"] else [self.languages.heads]

    def evaluate(self) -> None:
        with self._edited() as seconds:
            after = self._measure(Stage("memit"), seconds)
            if _corrects(self.job):
                self._correct(seconds, after)

    @contextmanager
    def _edited(self) -> Iterator[float]:
        """Inside, MEMIT's edit is in the model; yields the seconds that it took."""
        job, flags = self.job, self.flags
        started = time.perf_counter()
        cache = data_folder(flags["data_dir"]) / "z_cache" if flags["use_cache"] else None
        if flags["load_delta"] == "original_model":
            yield 0.0
            return
        if flags["load_delta"]:
            edit = head_files.read_delta(head_files.of_chunk(flags["load_delta"], self.number))
        elif flags["bilingual"] == "joint":
            edit = joint_edit([(editor, self._requests(language)) for language, editor in job.editors.items()], job.model, job.tok)
        else:
            wanted = job.editors if flags["bilingual"] else {self.languages.edit: job.editor}
            made = [(language, _memit(editor, job, self._requests(language), cache)) for language, editor in wanted.items()]
            edit = made[0][1]
            for _, other in made[1:]:
                edit = edit.plus(other)
        if flags["save_delta_matrix"]:
            tag = "both" if flags["bilingual"] else self.languages.edit
            edit.save(head_files.delta_name(flags["save_delta_matrix"], tag, self.number, flags["num_edits"]))
        with _in_model(edit, job):
            yield time.perf_counter() - started

    def _correct(self, seconds: float, after: Mapping[str, Mapping[int, dict[str, Any]]]) -> None:
        """Every stage with corrections, on top of MEMIT's edit."""
        job, editor, wanted = self.job, self.job.editor, [stage for stage in stages(self.flags) if stage.heads]
        requests = [request for language in self.head_language for request in self._head_requests(language)]
        voters = self._voters(after) if editor.hparams.voters == "correct" else range(len(requests))
        voters = editor.telling(requests, voters)
        started = time.perf_counter()
        given = job.given_heads(self.number)
        most = max(stage.heads for stage in wanted)
        iti = job.flags["alg_name"] == "ITI" and not self.flags["load_attention"]
        facts = by_fact(self.flags, editor.hparams, len(requests))
        independent = len(voters if facts is None else {facts[i] for i in voters})
        if given is None and not probes.enough(independent, editor.hparams.val_share) or iti and not voters:
            self._without_heads(wanted, voters, seconds, after)
            return
        outputs = editor.features(job.model, job.tok, requests, progress=True) if given is None or iti else None
        if given is None:
            found = editor.relevance(job.model, job.tok, requests, voters, progress=True, outputs=outputs, facts=facts)
            heads = editor.choose(found, most)
            self._write_relevance(found, found.voters, heads)
        else:
            heads = check_heads(given, Decoder.of(job.model), "--head_ind")
        # Every head's shift is its own, and linear in alpha: one of the most heads serves all stages.
        unit = editor.correct(job.model, job.tok, requests, heads[:most], voters=voters, alpha=1.0, outputs=outputs) if iti else None
        choosing = time.perf_counter() - started
        for stage in wanted:
            started = time.perf_counter()
            heads_of = heads[: stage.heads]
            made = self._corrections(heads_of) if unit is None else Corrections(
                heads_of, stage.alpha * unit.vectors[: stage.heads])
            if self.flags["save_attention_heads"]:
                path = head_files.name(self.flags["save_attention_heads"], self.languages.edit, "-".join(self.head_language),
                                       stage.heads, self.number, self.flags["num_edits"])
                Corrections(made.heads, made.vectors, self._about(stage)).save(path)
            biases = editor.fold(job.model, made)
            spent = seconds + choosing + time.perf_counter() - started
            with _in_model(biases, job):
                self._measure(stage, spent)

    def _without_heads(self, wanted: Sequence[Stage], voters: Sequence[int], seconds: float, after: Mapping[str, Any]) -> None:
        """Too few edits took to choose heads by: none is corrected, so that every stage is MEMIT's edit; ``relevance`` tells."""
        warnings.warn(f"chunk {self.number}: only {len(voters)} facts can vote on heads; none is corrected there", stacklevel=2)
        self._write_relevance(None, voters, [])
        for stage in wanted:
            self._write(stage, seconds, after)

    def _corrections(self, heads: list) -> Corrections:
        job = self.job
        if self.flags["load_attention"]:
            return head_files.read_corrections(head_files.of_chunk(self.flags["load_attention"], self.number), heads)
        told = [(request, *self.templates[language]) for language in self.head_language for request in self._head_requests(language)]
        if self.flags["bilingual"]:  # as published
            random.Random(SHUFFLE_SEED).shuffle(told)
        requests, templates, kl_prompts = map(list, zip(*told))
        return job.editor.correct(job.model, job.tok, requests, heads, templates, progress=True, kl_prompts=kl_prompts)

    def _voters(self, after: Mapping[str, Mapping[int, dict[str, Any]]]) -> list[int]:
        """Positions, among the facts in the languages of the heads, of those whose new object the edited model says."""
        right = [after[language][record.case_id]["rewrite_prompts_correct"][0]
                 for language in self.head_language for record in self._head_records(language)]
        return [position for position, correct in enumerate(right) if correct]

    def _measure(self, stage: Stage, seconds: float) -> dict[str, dict[int, dict[str, Any]]]:
        """Measures the model as it is in each language and writes the cases."""
        after = {language: measure(self.job, self.records[language]) for language in self.languages.measured}
        self._write(stage, seconds, after)
        return after

    def _write(self, stage: Stage, seconds: float, after: Mapping[str, Mapping[int, dict[str, Any]]]) -> None:
        for language in self.languages.measured:
            records = self.records[language]
            for record in records:
                run_folder.write_case(self.run / stage.folder / language, self.flags["num_edits"], record, records, run_folder.about_edit(seconds, {}),
                                   self.before[language][record.case_id], after[language][record.case_id])

    def _write_relevance(self, found: Relevance | None, voters: Sequence[int], heads: list[Head]) -> None:
        ids = [record.case_id for language in self.head_language for record in self._head_records(language)]
        run_folder.write_json(self.run / RELEVANCE / f"{self.number:06d}.json", {
            "chunk": self.number, "language": self.languages.edit, "language_eval": self.languages.heads, "case_ids": ids,
            "voters": [ids[i] for i in voters], "train": len(found.training) if found else 0,
            "validation": len(found.validation) if found else 0, "accuracy": found.accuracy.tolist() if found else None,
            "heads": heads})

    def _about(self, stage: Stage) -> dict[str, Any]:
        return {"model": self.job.settings()["model"], "shape": self.job.head_shape, "language": self.languages.edit,
                "language_eval": self.head_language, "heads": stage.heads, "alpha": stage.alpha, "chunk": self.number,
                "num_edits": self.flags["num_edits"], "profile": self.job.settings()["profile"],
                "case_ids": [record.case_id for record in self.records[self.languages.edit]], "hparams": dict(self.job.hparams)}

    def _requests(self, language: str) -> list[dict[str, Any]]:
        return [record.request() for record in self.records[language]]

    def _head_records(self, language: str) -> list[Record]:
        """Those that heads are chosen and corrected by."""
        records = self.records[language]
        return list(records[: self.job.editor.for_heads(len(records))])

    def _head_requests(self, language: str) -> list[Request]:
        return parse_requests([record.request() for record in self._head_records(language)], self.job.tok)


def _memit(editor: Editor, job: Job, requests: list[dict], cache: Path | None) -> Edit:
    """MEMIT's edit by an editor that may be more than MEMIT."""
    make = getattr(editor, "memit", editor.edit)
    return make(job.model, job.tok, requests, z_cache=cache, progress=True)


@contextmanager
def _in_model(edit: Edit, job: Job) -> Iterator[None]:
    edit.apply(job.model, originals_device="cpu" if job.flags["conserve_memory"] else None)
    try:
        yield
    finally:
        edit.revert(job.model)


def by_fact(flags: Mapping[str, Any], hparams: Any, requests: int) -> list[int] | None:
    """Which fact each request of the heads tells, where both languages tell the same ones; None in the profile paper, which splits
    requests, so that a fact may be trained on in one language and validated in the other."""
    return list(range(requests // 2)) * 2 if flags["bilingual"] and hparams.profile != "paper" else None


def _templates(job: Job) -> dict[str, tuple[list[str], str]]:
    """{language of heads: contexts, of the unedited model, and KL prompt for training corrections}: its own; in the
    profile paper for both languages three contexts of each, as published."""
    editors = job.editors if job.flags["bilingual"] else {job.languages.heads: job.editor}
    found = {language: (editor.head_templates(job.model, job.tok), editor.settings().kl_prompt)
             for language, editor in editors.items()}
    if job.flags["bilingual"] and job.editor.hparams.profile == "paper":
        mixed = [template for templates, _ in found.values() for template in templates[:3]]
        found = {language: (mixed, kl_prompt) for language, (_, kl_prompt) in found.items()}
    return found


def _draw(run: Path, path: Path) -> None:
    """The map of the heads' relevance. Figures read results and know this program, not the other way round: so it runs by itself."""
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-m", "figures.head_relevance", run.resolve(), "--out", path.resolve()], cwd=root,
                          capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"--save_figure {path}: {(done.stderr.strip().splitlines() or ['no figure'])[-1].removeprefix('error: ')}")
