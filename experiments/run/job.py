"""What an evaluation needs, made from its configuration and checked before anything is written."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from common.orthography import without_space
from data import orders, zsre
import data
from data.download import Unavailable, data_folder
from data.files import read_json
from data.records import Prompt, Record, fingerprint
import editors
from editors.base import Editor
from editors.core import ranks
from editors.core.contexts import as_groups
from editors.core.files import check_writable
from editors.core.fingerprint import tokenizer_fingerprint
from editors.core.modules import longest_context
from editors.core.prompts import fill, parse_requests, prompt_ids, target_ids
from experiments.metrics.incremental import check_length, shortened
from experiments.run import auto_hparams, head_files, tasks
from experiments.run.config import ALWAYS, IF_SET, OR_NULL, RunConfig, WITH_TASKS
from experiments.run.hparams_file import configured, is_automatic, load_editor, world_corpus
from experiments.run.models import check_readable, identity, load_model

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
Generate = Callable[[Sequence[Record]], list[dict[str, Any]]]
"""The generation metrics of records."""


@dataclass(frozen=True)
class Languages:
    """Of a run that tells languages apart."""

    edit: str
    """That MEMIT edits in."""
    heads: str
    """That heads are chosen and corrected in."""
    measured: list[str]
    records: Mapping[str, list[Record]]
    """Those of each language: the same facts in the same order."""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{flag: hash} of what is loaded instead of made."""


@dataclass(frozen=True)
class RunJob:
    """What a run needs; all of it checked."""

    config: RunConfig
    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    editor: Editor
    hparams: Mapping[str, Any]
    """As in the hparams file."""
    records: list[Record]
    generate: Generate | None = None
    """None where there is nothing to generate."""
    tasks: Sequence[tasks.TaskRun] = ()
    """Downstream tasks to measure."""
    context_templates: list[list[str]] | None = None
    """Of --context_templates; None: sampled from the model."""
    perplexity_corpus: str | None = None
    texts: Mapping[str, Any] | None = None
    """Where the generation metrics' reference texts come from."""
    traced: Mapping[str, Any] | None = None
    """What the layers follow from, where ``hparams_fname`` is auto."""
    languages: Languages | None = None
    editors: Mapping[str, Editor] = dataclasses.field(default_factory=dict)
    """With two languages edited at once: the editor of each."""
    head_shape: tuple[int, int, int] | None = None
    """(layers, heads a layer, head size) of the model, where heads are corrected."""

    @property
    def z_cache(self) -> Path | None:
        """Where target states are kept."""
        return data_folder(self.config.data_dir) / "z_cache" if self.config.use_cache else None

    @property
    def unedited_cache(self) -> Path | None:
        """Where metrics of the unedited model are kept."""
        return data_folder(self.config.data_dir) / "unedited" if self.config.use_cache else None

    @property
    def originals_device(self) -> str | None:
        """Where the original weights are while an edit is in the model; None: beside it."""
        return "cpu" if self.config.conserve_memory else None

    def heads_of_file(self, chunk: int) -> list[tuple[int, int]] | None:
        """The heads that --head_ind names for a chunk."""
        path = self.config.head_ind
        return head_files.read_heads(head_files.of_chunk(path, chunk)) if path else None

    def settings(self) -> dict[str, Any]:
        """Whatever changes a run's numbers, beside the hyper-parameters: only a run with the same can be continued."""
        config, records = self.config, self.records
        if self.languages:
            records = [record for language in sorted(self.languages.records) for record in self.languages.records[language]]
        task_settings = {run.name: run.settings() for run in self.tasks}
        return {
            **config.settled(ALWAYS, OR_NULL, IF_SET),
            "profile": getattr(self.editor.hparams, "profile", None),
            "model": f"{Path(config.model_name).name}, {identity(self.model)}",
            "tokenizer": tokenizer_fingerprint(self.tok),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "data": f"{Path(config.ds_name).name}, {len(self.records)} records, sha256 {fingerprint(records)[:16]}",
            "generation_texts": self.texts,
            **({"context_templates": self.context_templates} if self.context_templates else {}),
            **({"loaded": dict(self.languages.files)} if self.languages and self.languages.files else {}),
            "checkpoint": getattr(self.editor, "identity", None),
            "downstream": task_settings and {"tasks": task_settings, **config.settled(WITH_TASKS)},
        }


def prepare(config: RunConfig, loaded: Loaded | None = None) -> RunJob:
    """Everything a run needs; ``loaded`` is its model where that is in memory already.

    Raises UserError for whatever does not fit.
    """
    check_flags(config)
    automatic, traced = is_automatic(config.hparams_fname), None
    if not automatic:
        hparams, editor = load_editor(config)
    model, tok = loaded or load_model(config.model_name, config.dtype, config.device)
    model.eval()  # without dropout
    check_readable(model, f"an edit by {config.alg_name}" if editors.editor_class(config.alg_name).needs_cache else None)
    records = _records(config, tok)
    if (note := not_measured(records)) and ranks.process() == 0:
        print(note, file=sys.stderr)
    parse_requests([record.request() for record in records], tok)
    check_lengths(model, tok, records)
    sampled = [record for record in records if is_sampled(record, config)]
    generate, texts = _generation(model, tok, config, sampled) if sampled else (None, None)
    task_runs = []
    if config.do_downstream_eval:
        task_runs = tasks.prepare(config, tasks.source_of(config, config.model_name), config.data_dir)
    corpus = world_corpus(config) if config.perplexity_corpus == "world" else config.perplexity_corpus
    contexts = _contexts(config)
    if automatic:  # at last, for it takes minutes
        hparams, traced = auto_hparams.propose_hparams(config, model, tok)
        editor = configured(config, hparams)
    return RunJob(config, model, tok, editor, hparams, records, generate, task_runs, contexts, corpus, texts, traced)


def check_flags(config: RunConfig) -> None:
    """Raises UserError for flags that would have no effect or do not go together, and for models that would be overwritten."""
    config.check_needs()
    location = config.save_model_location
    if location:
        check_writable(Path(location), "models")
        if config.continue_from_run is None and any(Path(location).glob("edits_*")):
            raise UserError(f"--save_model_location {location}: holds models of another run; choose another folder")
    if config.save_edits and config.sequential:
        raise UserError("--save_edits does not go with --sequential; there is --save_model")
    if config.save_edits and config.language:
        raise UserError("--save_edits does not go with --language; there is --save_delta_matrix")
    number = config.sample_num
    if number is not None and not config.index_file and not 0 <= number < orders.SAMPLES:
        raise UserError(f"--sample_num {number}: there are orders 0 to {orders.SAMPLES - 1}")


def _records(config: RunConfig, tok: PreTrainedTokenizerBase) -> list[Record]:
    """The records that the flags ask for, in their order. Raises UserError where there are too few."""
    ds_name, num_edits = config.ds_name, config.num_edits
    ordered = config.sample_num is not None or config.index_file
    if ds_name == "cf" and num_edits > 1 and not ordered:
        raise UserError("--ds_name cf has records that contradict each other and can't be edited together; "
                        "use mcf, --num_edits 1, or an order in which each subject comes once (--sample_num 0)")
    records = data.load(ds_name, config.data_dir, config.dataset_size_limit, tok)
    limits = " within --dataset_size_limit" if config.dataset_size_limit else ""
    if ordered:
        number, file = config.sample_num or 0, config.index_file
        order = orders.read_order(file, number, len(records)) if file else orders.edit_order(records, number)
        records = [records[position] for position in order]
        limits += " with different subjects" if not config.index_file else " in this order"
    if config.max_edits and config.max_edits > len(records):
        raise UserError(f"--max_edits {config.max_edits}: {ds_name} has only {len(records)} records{limits}")
    records = records[: config.max_edits]
    if config.contains_length and records[0].schema != "counterfact":
        raise UserError("--contains_length has no effect on zsRE, which is not scored by what a continuation contains")
    if num_edits > len(records):
        limits += " within --max_edits" if config.max_edits else ""
        raise UserError(f"--num_edits {num_edits}: {ds_name} has only {len(records)} records{limits}")
    return records


def not_measured(records: Sequence[Record]) -> str | None:
    """A line on the metrics that lack what they need in some records; None where all have all."""
    lacking = {
        "true answers (success, difference, neighbourhood)": [record.target_true is None for record in records],
        "paraphrases": [not record.paraphrase_prompts for record in records],
        "neighbourhood prompts": [
            not (zsre.locality(record) if record.schema == "zsre" else record.neighborhood_prompts or record.locality)
            for record in records],
    }
    parts = [f"{what} in {sum(lacks)}" for what, lacks in lacking.items() if any(lacks)]
    return f"not measured, of {len(records)} records: without {', '.join(parts)}" if parts else None


def _contexts(config: RunConfig) -> list[list[str]] | None:
    path = config.context_templates
    try:
        return as_groups(read_json(path)) if path else None
    except UserError as error:
        raise UserError(f"--context_templates {path}: {error}") from error


def check_lengths(model: PreTrainedModel, tok: PreTrainedTokenizerBase, records: Sequence[Record]) -> None:
    """Raises UserError for the first case with a prompt that, with its target, is longer than the model's positions."""
    limit = longest_context(model)
    for record in records if limit else ():
        neighbours = zsre.locality(record) if record.schema == "zsre" else record.neighborhood_prompts
        targets = [target.str for target in (record.target_new, record.target_true) if target]
        prompts = [(p.prompt, [p.target]) if isinstance(p, Prompt) else (p, targets) for p in
                   (fill(record.prompt, record.subject), *record.paraphrase_prompts, *neighbours, *record.attribute_prompts,
                    *record.portability, *record.locality)]
        for prompt, behind in prompts:
            longest = max(behind, key=lambda text: len(text.encode()))
            if len(f"{prompt} {longest}".encode()) < limit:
                continue  # a token is a byte at least, so this fits, and needs no tokenizing
            where = f"case {record.case_id}: "
            try:
                targets_ids = [target_ids(tok, prompt, text, record.joined) for text in behind]
            except UserError as error:
                raise UserError(f"{where}{error}") from None
            row = prompt_ids(tok, without_space(prompt)) + tuple(max(targets_ids, key=len))
            check_length(model, row, f"{where}the prompt {shortened(prompt)} with its target")


def is_sampled(record: Record, config: RunConfig) -> bool:
    """Whether texts are generated for a record."""
    interval = config.generation_test_interval
    if config.skip_generation_tests or interval == -1:
        return False
    return bool(record.generation_prompts) and record.case_id % interval == 0


def _generation(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, config: RunConfig, records: Sequence[Record]
) -> tuple[Generate, dict[str, Any]]:
    """(function of records that gives their generation metrics, where its reference texts come from)."""
    from experiments.metrics.generation import generation_metrics  # nltk and scikit-learn are slow to import

    # A data set of one's own may come with snippets of its own.
    path = Path(config.ds_name).parent / "attribute_snippets.json"
    beside = path if config.ds_name.endswith(".json") and path.is_file() else None
    try:
        snippets = data.load_snippets(config.ds_name, config.data_dir, beside)
    except Unavailable as error:
        raise UserError(f"{error}; or do without, with --skip_generation_tests") from error
    for pair in {(record.relation_id, record.target_new.id): None for record in records}:
        if pair not in snippets:
            snippets.samples(*pair)  # raises UserError; to read those that are there would take minutes
    tfidf = data.load_tfidf(snippets, config.data_dir)
    generate = partial(generation_metrics, model, tok, snippets=snippets, vectorizer=tfidf.vectorizer, seed=config.seed)
    return generate, {"snippets": snippets.source, "snippets_sha256": snippets.sha256, "tfidf": tfidf.source}
