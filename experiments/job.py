"""What an evaluation needs, made from its flags and checked before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

import data
import editors
from data.records import Record, fingerprint
from editors.core.fingerprint import tokenizer_fingerprint
from editors.core.prompts import parse_requests
from editors.errors import EditingError
from experiments import results
from experiments.models import identity, load_model

HPARAMS = Path(__file__).resolve().parent.parent / "hparams"


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
    texts: Mapping[str, Any] | None
    """Where the generation metrics' reference texts come from."""

    def settings(self) -> dict[str, Any]:
        """Whatever changes a run's numbers, beside the hyper-parameters: only a run with the same can be continued."""
        flags = self.flags
        return {
            **{key: flags[key] for key in
               ("alg_name", "num_edits", "seed", "generation_test_interval", "skip_generation_tests")},
            "model": f"{Path(flags['model_name']).name}, {identity(self.model)}",
            "tokenizer": tokenizer_fingerprint(self.tok),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "data": f"{Path(flags['ds_name']).name}, {len(self.records)} records, sha256 {fingerprint(self.records)[:16]}",
            "generation_texts": self.texts,
        }


def prepare(flags: Mapping[str, Any], loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None) -> Job:
    """Everything a run needs; ``loaded`` is its model where that is in memory already.

    Raises EditingError or DataError for whatever does not fit.
    """
    hparams, editor = load_editor(flags)
    model, tok = loaded or load_model(flags["model_name"], flags["dtype"], flags["device"])
    model.eval()  # without dropout
    ds_name, num_edits = flags["ds_name"], flags["num_edits"]
    if ds_name == "cf" and num_edits > 1:
        raise EditingError("--ds_name cf has records that contradict each other and can't be edited together; "
                           "use mcf, or --num_edits 1")
    records = data.load(ds_name, flags["data_dir"], flags["dataset_size_limit"], tok)
    if num_edits > len(records):
        raise EditingError(f"--num_edits {num_edits}: {ds_name} has only {len(records)} records" +
                           (" within --dataset_size_limit" if flags["dataset_size_limit"] else ""))
    parse_requests([record.request() for record in records], tok)
    sampled = [record for record in records if is_sampled(record, flags)]
    generate, texts = _generation(model, tok, flags, sampled) if sampled else (None, None)
    return Job(model, tok, editor, records, flags, hparams, generate, texts)


def load_editor(flags: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """(hyper-parameters as in their file, the editor).

    ``hparams_fname`` is looked for in hparams/<alg_name>/, then as a path; the default is <model_name>.json. ``mom2_dataset``
    "world" stands for the built-in world's corpus; ``context_seed``, where the file does not set it, is ``seed``.
    """
    alg_name = flags["alg_name"]
    fields = {field.name for field in dataclasses.fields(editors.editor_class(alg_name).hparams_class)}
    name = Path(flags["hparams_fname"] or flags["model_name"].replace("/", "_") + ".json")
    shipped = HPARAMS / alg_name / name
    path = name if name.is_file() and not shipped.is_file() else shipped
    editor = editors.load(alg_name, path)
    hparams = results.read_json(path)
    changed = {}
    if "context_seed" in fields - hparams.keys():
        changed["context_seed"] = flags["seed"]
    if hparams.get("mom2_dataset") == "world":
        from data import world
        changed["mom2_dataset"] = str(world.corpus_path(flags["data_dir"]))
    return hparams, editors.load(alg_name, {**hparams, **changed}) if changed else editor


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
    snippets = data.load_snippets(flags["ds_name"], flags["data_dir"], own)
    for record in records:
        snippets.samples(record.relation_id, record.target_new.id)  # raises DataError for those that have none
    tfidf = data.load_tfidf(snippets, flags["data_dir"])
    generate = partial(generation_metrics, model, tok, snippets=snippets, vectorizer=tfidf.vectorizer, seed=flags["seed"])
    return generate, {"snippets": snippets.source, "snippets_sha256": snippets.sha256, "tfidf": tfidf.source}
