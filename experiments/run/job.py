"""What an evaluation needs, made from its flags and checked before anything is written."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from data import languages, orders
import data
from data.download import Unavailable, data_folder
from data.files import read_json
from data.records import Prompt, Record, fingerprint
import editors
from editors.core.contexts import as_groups
from editors.core.files import check_writable
from editors.core.fingerprint import tokenizer_fingerprint
from editors.core.prompts import encode_target, fill, parse_requests
from experiments import downstream
from experiments.downstream import TaskRun
from experiments.metrics.incremental import check_length, longest_row, shortened
from experiments.metrics.scoring import prompt_ids
from experiments.results import run_folder
from experiments.run import auto_hparams, head_files
from experiments.run.models import identity, load_model, name_hint

HPARAMS = Path(__file__).resolve().parents[2] / "hparams"
ATTENTION = ("ITI", "MEMAT")
"""Editors that correct attention heads after MEMIT's edit."""
ATTENTION_FLAGS = ("top_num_heads", "alpha", "save_attention_heads", "load_attention", "head_ind", "save_figure", "eval_on_others")
LANGUAGE_FLAGS = (
    "language_eval", "languages_measured", "pairing", "bilingual", "profile", "load_delta", "save_delta_matrix", *ATTENTION_FLAGS)


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
class Job:
    """What a run needs; all of it checked."""

    model: PreTrainedModel
    tok: PreTrainedTokenizerBase
    editor: Any
    records: list[Record]
    flags: Mapping[str, Any]
    hparams: Mapping[str, Any]
    """As in the hparams file."""
    generate: Callable[[Sequence[Record]], list[dict[str, Any]]] | None
    """Gives the generation metrics of records; None where there is nothing to generate."""
    downstream: list[TaskRun]
    """Downstream tasks to measure."""
    context_templates: list[list[str]] | None
    """Of --context_templates; None: sampled from the model."""
    perplexity_corpus: str | None
    texts: Mapping[str, Any] | None
    """Where the generation metrics' reference texts come from."""
    traced: Mapping[str, Any] | None = None
    """What the layers follow from, where ``hparams_fname`` is auto."""
    languages: Languages | None = None
    editors: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """With two languages edited at once: the editor of each."""
    head_shape: tuple[int, int, int] | None = None
    """(layers, heads a layer, head size) of the model, where heads are corrected."""

    def given_heads(self, chunk: int) -> list[tuple[int, int]] | None:
        """The heads that --head_ind names for a chunk."""
        path = self.flags["head_ind"]
        return head_files.read_heads(head_files.of_chunk(path, chunk)) if path else None

    def settings(self) -> dict[str, Any]:
        """Whatever changes a run's numbers, beside the hyper-parameters: only a run with the same can be continued."""
        flags, records = self.flags, self.records
        if self.languages:
            records = [record for language in sorted(self.languages.records) for record in self.languages.records[language]]
        return {
            **{key: flags[key] for key in
               ("alg_name", "num_edits", "seed", "generation_test_interval", "skip_generation_tests", "sequential",
                "history_eval_steps", "history_sample", "perplexity_corpus")},
            **{key: flags[key] or None for key in ("language", *LANGUAGE_FLAGS) if not key.startswith("save_")},
            "profile": getattr(self.editor.hparams, "profile", None),
            "model": f"{Path(flags['model_name']).name}, {identity(self.model)}",
            "tokenizer": tokenizer_fingerprint(self.tok),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "data": f"{Path(flags['ds_name']).name}, {len(self.records)} records, sha256 {fingerprint(records)[:16]}",
            "generation_texts": self.texts,
            **({"contains_length": flags["contains_length"]} if flags["contains_length"] else {}),
            **({"context_templates": self.context_templates} if self.context_templates else {}),
            **({"loaded": dict(self.languages.files)} if self.languages and self.languages.files else {}),
            "checkpoint": getattr(self.editor, "identity", None),
            "downstream": {run.name: run.settings() for run in self.downstream} and {
                "tasks": {run.name: run.settings() for run in self.downstream},
                **{key: flags[key] for key in ("downstream_eval_steps", "gen_len", "legacy_rte_labels")}},
        }


def prepare(flags: Mapping[str, Any], loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None) -> Job:
    """Everything a run needs; ``loaded`` is its model where that is in memory already.

    Raises UserError for whatever does not fit.
    """
    check_flags(flags)
    automatic, traced = auto_hparams.is_automatic(flags["hparams_fname"]), None
    if not automatic:
        hparams, editor = load_editor(flags)
    model, tok = loaded or load_model(flags["model_name"], flags["dtype"], flags["device"])
    model.eval()  # without dropout
    if automatic:
        hparams, traced = auto_hparams.make(flags, model, tok)
        editor = _configured(flags, hparams)
    ds_name, num_edits = flags["ds_name"], flags["num_edits"]
    ordered = flags["sample_num"] is not None or flags["index_file"]
    if ds_name == "cf" and num_edits > 1 and not ordered:
        raise UserError("--ds_name cf has records that contradict each other and can't be edited together; "
                           "use mcf, --num_edits 1, or an order in which each subject comes once (--sample_num 0)")
    records = data.load(ds_name, flags["data_dir"], flags["dataset_size_limit"], tok)
    limits = " within --dataset_size_limit" if flags["dataset_size_limit"] else ""
    if ordered:
        records = [records[position] for position in _order(flags, records)]
        limits += " with different subjects" if not flags["index_file"] else " in this order"
    if flags["max_edits"] and flags["max_edits"] > len(records):
        raise UserError(f"--max_edits {flags['max_edits']}: {ds_name} has only {len(records)} records{limits}")
    records = records[: flags["max_edits"]]
    if flags["contains_length"] and records[0].schema != "counterfact":
        raise UserError("--contains_length has no effect on zsRE, which is not scored by what a continuation contains")
    if num_edits > len(records):
        limits += " within --max_edits" if flags["max_edits"] else ""
        raise UserError(f"--num_edits {num_edits}: {ds_name} has only {len(records)} records{limits}")
    parse_requests([record.request() for record in records], tok)
    check_lengths(model, tok, records)
    sampled = [record for record in records if is_sampled(record, flags)]
    generate, texts = _generation(model, tok, flags, sampled) if sampled else (None, None)
    runs = downstream.prepare(flags["downstream_tasks"], flags["number_of_few_shots"], flags["number_of_tests"], flags["gen_len"],
                              flags["downstream_data"] or downstream.default_source(flags["model_name"]),
                              flags["data_dir"]) if flags["do_downstream_eval"] else []
    corpus = flags["perplexity_corpus"]
    if corpus == "world":
        corpus = _world_corpus(flags)
    return Job(model, tok, editor, records, flags, hparams, generate, runs, _contexts(flags), corpus, texts, traced)


def check_flags(flags: Mapping[str, Any]) -> None:
    """Raises UserError for flags that would have no effect, and for models that would be overwritten."""
    sequential, checked = flags["sequential"], flags["history_eval_steps"] > 0
    for flag, needs, there in (
        ("history_eval_steps", "--sequential", sequential), ("history_sample", "--history_eval_steps", checked),
        ("perplexity_corpus", "--sequential and --history_eval_steps", sequential and checked),
        ("save_model_location", "--save_model", flags["save_model"]),
        *((flag, "--do_downstream_eval", flags["do_downstream_eval"])
          for flag in ("downstream_tasks", "number_of_tests", "legacy_rte_labels", "downstream_data")),
        *((flag, "--add_attention, or --alg_name MEMAT", flags["add_attention"]) for flag in ATTENTION_FLAGS),
        *((flag, "--language", flags["language"]) for flag in LANGUAGE_FLAGS),
        ("load_attention", "--head_ind, which says whose vectors they are", flags["head_ind"]),
    ):
        if flags[flag] and not there:
            raise UserError(f"--{flag} has no effect without {needs}")
    location = flags["save_model_location"]
    if location:
        check_writable(Path(location), "models")
        if flags["continue_from_run"] is None and any(Path(location).glob("edits_*")):
            raise UserError(f"--save_model_location {location}: holds models of another run; choose another folder")
    for flag, instead in (("sequential", "--save_model"), ("language", "--save_delta_matrix")):
        if flags["save_edits"] and flags[flag]:
            raise UserError(f"--save_edits does not go with --{flag}; there is {instead}")
    number = flags["sample_num"]
    if number is not None and not flags["index_file"] and not 0 <= number < orders.SAMPLES:
        raise UserError(f"--sample_num {number}: there are orders 0 to {orders.SAMPLES - 1}")


def _order(flags: Mapping[str, Any], records: Sequence[Record]) -> list[int]:
    """Positions of ``records`` in the order that the flags ask for."""
    number = flags["sample_num"] or 0
    return orders.read_order(flags["index_file"], number, len(records)) if flags["index_file"] else orders.edit_order(records, number)


def _contexts(flags: Mapping[str, Any]) -> list[list[str]] | None:
    path = flags["context_templates"]
    try:
        return as_groups(read_json(path)) if path else None
    except UserError as error:
        raise UserError(f"--context_templates {path}: {error}") from error


def _language_settings(flags: Mapping[str, Any], hparams: Any, language: str, contexts: str | None) -> dict[str, Any]:
    spec, heads = languages.spec(language), languages.spec(language if flags["bilingual"] else flags["language_eval"])
    shared = getattr(hparams, "profile", None) == "paper" and contexts
    return {
        "kl_prompt": spec.kl_prompt, "context_starts": list((languages.spec(contexts) if shared else spec).context_starts),
        "head_kl_prompt": heads.kl_prompt, "head_context_starts": list(heads.context_starts),
    }


def _world_corpus(flags: Mapping[str, Any], language: str | None = None) -> str:
    """The corpus of both languages, or of one."""
    from data import world

    return str(world.corpus_path(flags["data_dir"], language=language))


def check_lengths(model: PreTrainedModel, tok: PreTrainedTokenizerBase, records: Sequence[Record]) -> None:
    """Raises UserError for the first case with a prompt that, with its target, is longer than the model's positions."""
    limit = longest_row(model)
    for record in records if limit else ():
        targets = [" " + target.str for target in (record.target_new, record.target_true) if target]
        prompts = [(p.prompt, [p.target]) if isinstance(p, Prompt) else (p, targets) for p in
                   (fill(record.prompt, record.subject), *record.paraphrase_prompts, *record.neighborhood_prompts,
                    *record.attribute_prompts)]
        for prompt, behind in prompts:
            longest = max(behind, key=lambda text: len(text.encode()))
            if len((prompt + longest).encode()) < limit:
                continue  # a token is a byte at least, so this fits, and needs no tokenizing
            row = prompt_ids(tok, prompt) + max((tuple(encode_target(tok, text)) for text in behind), key=len)
            check_length(model, row, f"case {record.case_id}: the prompt {shortened(prompt)} with its target")


def load_editor(flags: Mapping[str, Any], language: str | None = None, contexts: str | None = None) -> tuple[dict[str, Any], Any]:
    """(hyper-parameters as in their file, the editor).

    language: whose KL prompt, context starts and corpus it edits with, where the file does not set them (profile "paper": with the
    starts of the language ``contexts``, which the published program keeps for both).

    ``hparams_fname`` is looked for in hparams/<alg_name>/, then as a path; the default is <model_name>.json. ``mom2_dataset``
    "world" stands for the built-in world's corpus, ``system`` "world" for the SERAC trained on it; a ``checkpoint`` is looked for among
    trained editors, then beside the file; ``context_seed``, where the file does not set it, is ``seed``.
    """
    alg_name = flags["alg_name"]
    if auto_hparams.is_automatic(flags["hparams_fname"]):
        raise UserError(f"--hparams_fname {flags['hparams_fname']}: only experiments.evaluate traces a model; "
                           "give the params.json of such a run")
    kind = editors.editor_class(alg_name)
    name = Path(flags["hparams_fname"] or flags["model_name"].replace("/", "_") + ".json")
    shipped = HPARAMS / (kind.hparams_folder or alg_name) / name
    path = name if name.is_file() and not shipped.is_file() else shipped
    if not flags["hparams_fname"] and not path.is_file():
        there = ", ".join(sorted(file.name for file in shipped.parent.glob("*.json")))
        raise UserError(f"{alg_name} has no hyper-parameters of its own for the model {flags['model_name']!r}"
                           f"{name_hint(flags['model_name'])}; name a file with --hparams_fname (there is {there})")
    editor = editors.load(alg_name, path)
    hparams = run_folder.read_json(path)
    return hparams, _configured(flags, hparams, editor, path.parent, language, contexts)


def _configured(
    flags: Mapping[str, Any], hparams: Mapping[str, Any], editor: Any = None, folder: Path | None = None, language: str | None = None,
    contexts: str | None = None,
) -> Any:
    """The editor of these hyper-parameters, with what flags and language add to them (see :func:`load_editor`). folder: their file's."""
    editor = editor or editors.load(flags["alg_name"], hparams)
    fields = {field.name for field in dataclasses.fields(editor.hparams)}
    changed = {}
    if flags.get("profile") or flags.get("top_num_heads"):
        asked = {"profile": flags["profile"], "top_num_heads": max(flags["top_num_heads"] or [0])}
        with warnings.catch_warnings():  # given above
            warnings.simplefilter("ignore")
            editor = editors.load(flags["alg_name"], hparams | {key: value for key, value in asked.items() if value and key in fields})
    if language:
        of_language = _language_settings(flags, editor.hparams, language, contexts)
        changed |= {key: value for key, value in of_language.items() if key in fields - hparams.keys()}
        if "mom2_dataset" in hparams:
            changed["mom2_dataset"] = languages.spec(language).corpus(hparams["mom2_dataset"])
    if "context_seed" in fields - hparams.keys():
        changed["context_seed"] = flags["seed"]
    if hparams.get("mom2_dataset") == "world":
        changed["mom2_dataset"] = _world_corpus(flags, language and languages.spec(language).code)
    if hparams.get("system") == "world":
        changed["system"] = str(data_folder(flags["data_dir"]) / "world-models" / "serac")
    if "checkpoint" in fields:
        beside = [folder] * bool(folder) + [HPARAMS / flags["alg_name"]]  # a sweep's changed files stand elsewhere
        trained = editor.hparams.file(editor.name, data_folder(flags["data_dir"]) / "learned", beside)
        changed["checkpoint"] = str(trained.absolute())
        print(f"trained editor: {trained}")
    return editors.load(flags["alg_name"], dataclasses.replace(editor.hparams, **changed))


def is_sampled(record: Record, flags: Mapping[str, Any]) -> bool:
    """Whether texts are generated for a record."""
    interval = flags["generation_test_interval"]
    wanted = not flags["skip_generation_tests"] and interval != -1
    return wanted and bool(record.generation_prompts) and record.case_id % interval == 0


def _generation(
    model: PreTrainedModel, tok: PreTrainedTokenizerBase, flags: Mapping[str, Any], records: Sequence[Record]
) -> tuple[Callable, dict[str, Any]]:
    """(function of records that gives their generation metrics, where its reference texts come from)."""
    from experiments.metrics.generation import generation_metrics  # nltk and scikit-learn are slow to import

    # A data set of one's own may come with snippets of its own.
    beside = Path(flags["ds_name"]).parent / "attribute_snippets.json"
    own = beside if flags["ds_name"].endswith(".json") and beside.is_file() else None
    try:
        snippets = data.load_snippets(flags["ds_name"], flags["data_dir"], own)
    except Unavailable as error:
        raise UserError(f"{error}; or do without, with --skip_generation_tests") from error
    for pair in {(record.relation_id, record.target_new.id): None for record in records}:
        if pair not in snippets:
            snippets.samples(*pair)  # raises UserError; to read those that are there would take minutes
    tfidf = data.load_tfidf(snippets, flags["data_dir"])
    generate = partial(generation_metrics, model, tok, snippets=snippets, vectorizer=tfidf.vectorizer, seed=flags["seed"])
    return generate, {"snippets": snippets.source, "snippets_sha256": snippets.sha256, "tfidf": tfidf.source}
