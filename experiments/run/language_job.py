"""What an evaluation in several languages, or with heads corrected, needs: made from its flags and checked before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import UserError
from data import bilingual, in_every_language, languages, world
import data
from data.download import data_folder
from editors.core.decoder import Decoder
from editors.core.prompts import parse_requests
from editors.heads import probes
from editors.heads.outputs import check_heads, head_shape
from editors.heads.relevance import sentence_rows
from experiments.run import auto_hparams, head_files
from experiments.run.job import ATTENTION, check_flags, check_lengths, Job, Languages, load_editor
from experiments.run.models import identity, load_model

DEFAULT_HEADS, DEFAULT_ALPHA = 16, 15.0


def complete(flags: dict[str, Any]) -> None:
    """Fills in what the flags of languages and heads say by what others do not."""
    if flags["add_attention"] and flags["alg_name"] == "MEMIT":
        flags["alg_name"] = "MEMAT"
    if flags["add_attention"] and flags["alg_name"] not in ATTENTION:
        raise UserError(f"--add_attention goes with MEMIT, not with {flags['alg_name']}")
    flags["add_attention"] = flags["alg_name"] in ATTENTION
    if flags["add_attention"] or flags["bilingual"]:
        flags["language"] = flags["language"] or "english"
    if flags["language"]:
        flags["language_eval"] = flags["language_eval"] or flags["language"]
    if flags["add_attention"]:
        flags["top_num_heads"] = list(flags["top_num_heads"] or [DEFAULT_HEADS])
    if flags["alg_name"] == "ITI":
        flags["alpha"] = list(flags["alpha"] or [DEFAULT_ALPHA])


def prepare(flags: Mapping[str, Any], loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None) -> Job:
    """Everything a run needs; ``loaded`` is its model where that is in memory already.

    Raises UserError for whatever does not fit.
    """
    check_flags(flags)
    _check_combinations(flags)
    hparams, _ = load_editor(flags)
    model, tok = loaded or load_model(flags["model_name"], flags["dtype"], flags["device"])
    model.eval()  # without dropout
    first, heads, ds_name = languages.spec(flags["language"]).name, languages.spec(flags["language_eval"]).name, flags["ds_name"]
    asked = flags["languages_measured"]
    measured = [languages.spec(name).name for name in asked.split(",")] if asked else _known_in(flags, [first, heads])
    records = data.load_aligned(ds_name, list(dict.fromkeys([first, heads, *measured])), flags["data_dir"], flags["dataset_size_limit"])
    count, within = len(records[first]), " within --dataset_size_limit" if flags["dataset_size_limit"] else ""
    if flags["num_edits"] > count:
        raise UserError(f"--num_edits {flags['num_edits']}: {ds_name} has only {count} records{within}")
    if flags["eval_on_others"] and count <= flags["num_edits"]:
        raise UserError(f"--eval_on_others: all {count} records are in the first batch of {flags['num_edits']}, so none are left")
    for of_language in records.values():
        parse_requests([record.request() for record in of_language], tok)
        check_lengths(model, tok, of_language)
    edited = [first, heads] if flags["bilingual"] else [first]
    by_language = {name: load_editor(flags, name, first if flags["bilingual"] else name)[1] for name in edited}
    editor = by_language[first]
    flags = {**flags, "pairing": flags["pairing"] or ("legacy" if getattr(editor.hparams, "profile", "") == "paper" else "matched")}
    shape = _head_shape(flags, model, count) if flags["add_attention"] else None
    if flags["add_attention"] and any(flags["top_num_heads"]) and not flags["head_ind"]:
        _check_chunks(flags, editor, count)
        for language in [first, heads] if flags["bilingual"] else [heads]:
            asked = parse_requests([record.request() for record in records[language]], tok)
            for start in range(0, count, flags["num_edits"]):
                chunk = asked[start:start + flags["num_edits"]]
                sentence_rows(Decoder.of(model, tok), chunk[:editor.for_heads(len(chunk))], editor.hparams.probe_token)
    files = _files(flags, model, count)
    return Job(model, tok, editor, records[first], flags, hparams, generate=None, downstream=[], context_templates=None,
               perplexity_corpus=None, texts=None, languages=Languages(first, heads, measured, records, files), editors=by_language,
               head_shape=shape)


def _known_in(flags: Mapping[str, Any], own: list[str]) -> list[str]:
    """The two languages of a run, and any other that the data set is there in."""
    first, ds_name, found = own[0], flags["ds_name"], list(dict.fromkeys(own))
    builtin = in_every_language(ds_name)
    for name in languages.names():
        if name not in found:
            there = Path(bilingual.counterpart(ds_name, first, name))
            beside = str(there) != ds_name and (there.is_file() or (data_folder(flags["data_dir"]) / there).is_file())
            if languages.spec(name).code in world.LANGUAGES if builtin else beside:
                found.append(name)
    return sorted(found)


def _head_shape(flags: Mapping[str, Any], model: PreTrainedModel, records: int) -> tuple[int, int, int]:
    """The model's; after a check of the numbers of heads, and of the files of heads and vectors, against it."""
    decoder = Decoder.of(model)
    sites, (count, size) = decoder.sites, head_shape(decoder)
    most = max(flags["top_num_heads"])
    if most > sites.layers * count:
        raise UserError(f"--top_num_heads {most}: the model has {sites.layers * count} heads ({sites.layers} layers of {count})")
    named = identity(model) if flags["head_ind"] else ""
    for chunk in range(-(-records // flags["num_edits"])) if flags["head_ind"] else ():
        path = head_files.of_chunk(flags["head_ind"], chunk)
        pairs = check_heads(head_files.read_heads(path), decoder, f"--head_ind {path}")
        head_files.check_model("--head_ind", path, (sites.layers, count, size), named)
        if len(pairs) < most:
            raise UserError(f"--head_ind {path}: names {len(pairs)} heads, --top_num_heads asks for {most}")
        if flags["load_attention"]:
            vectors = head_files.of_chunk(flags["load_attention"], chunk)
            made = head_files.read_corrections(vectors, pairs[:most])
            head_files.check_model("--load_attention", vectors, (sites.layers, count, size), named)
            if made.vectors.shape[1] != size:
                raise UserError(f"--load_attention {flags['load_attention']}: vectors of head size {made.vectors.shape[1]}, the model's "
                                   f"heads have {size}")
    return sites.layers, count, size


def _check_chunks(flags: Mapping[str, Any], editor: Any, records: int) -> None:
    """Raises UserError for chunks too short to choose heads by, whatever the edits come to."""
    hparams, size = editor.hparams, flags["num_edits"]
    ways = 2 if flags["bilingual"] and hparams.profile == "paper" else 1
    last = records % size or size
    if not probes.enough(ways * editor.for_heads(size), hparams.val_share):
        raise UserError(f"--num_edits {size}: heads can't be chosen by {ways * editor.for_heads(size)} facts, which do not split into training and "
                           f"validation (val_share {hparams.val_share:g}); edit more together, or give heads with --head_ind")
    if not probes.enough(ways * editor.for_heads(last), hparams.val_share):
        raise UserError(f"the last chunk has {last} facts, too few to choose heads by (val_share {hparams.val_share:g}); leave it out "
                           f"with --dataset_size_limit {records - last}, or change --num_edits {size}")


def _files(flags: Mapping[str, Any], model: PreTrainedModel, records: int) -> dict[str, str]:
    """{flag: hash of the contents} of the files of all chunks that heads, vectors and changes are loaded from.

    Raises UserError for a missing or damaged --load_delta, and for one that does not fit the model.
    """
    chunks, found = range(-(-records // flags["num_edits"])), {}
    for flag in ("head_ind", "load_attention", "load_delta"):
        if not flags[flag] or flags[flag] == "original_model":
            continue
        content = hashlib.sha256()
        for path in dict.fromkeys(head_files.of_chunk(flags[flag], chunk) for chunk in chunks):
            if flag == "load_delta":
                try:
                    head_files.read_delta(path).check(model)
                except UserError as error:
                    raise UserError(f"--load_delta {path}: {str(error).removeprefix(f'--load_delta {path}: ')}") from error
            content.update(path.read_bytes())
        found[flag] = content.hexdigest()[:16]
    return found


def _check_combinations(flags: Mapping[str, Any]) -> None:
    """Raises UserError for flags that do not go together where languages are told apart."""
    for flag in ("sequential", "do_downstream_eval", "save_model", "sample_num", "index_file", "max_edits", "context_templates"):
        if flags[flag] not in (None, False):
            raise UserError(f"--{flag} does not go with --language and --add_attention")
    if flags["generation_test_interval"] not in (1, -1):
        raise UserError("--generation_test_interval has no effect with --language: no texts are generated")
    if auto_hparams.is_automatic(flags["hparams_fname"]):
        raise UserError(f"--hparams_fname {flags['hparams_fname']} does not go with --language: name a file, such as the params.json "
                           "of a run without it")
    if flags["alpha"] and flags["alg_name"] != "ITI":
        raise UserError(f"--alpha has no effect with --alg_name {flags['alg_name']}, only with ITI")
    if flags["bilingual"] and flags["language"] == flags["language_eval"]:
        raise UserError(f"--bilingual {flags['bilingual']}: name two languages with --language and --language_eval")
    if flags["bilingual"] and flags["load_delta"]:
        raise UserError("--load_delta does not go with --bilingual")
    if flags["bilingual"] and flags["alg_name"] not in ("MEMIT", *ATTENTION):
        raise UserError(f"--bilingual is MEMIT's and MEMAT's, not --alg_name {flags['alg_name']}'s")
    if flags["bilingual"] == "joint" and flags["use_cache"]:
        raise UserError("--use_cache has no effect with --bilingual joint")
    if flags["profile"] and flags["alg_name"] not in ATTENTION:
        raise UserError(f"--profile has no effect with --alg_name {flags['alg_name']}; MEMIT's edit alone in a profile is "
                           "--alg_name MEMAT --top_num_heads 0")
    if flags["add_attention"] and not any(flags["top_num_heads"]):
        for flag in ("head_ind", "load_attention", "save_attention_heads", "save_figure", "eval_on_others"):
            if flags[flag]:
                raise UserError(f"--{flag} has no effect with --top_num_heads 0: no heads are corrected")
    if flags["save_figure"] and flags["head_ind"]:
        raise UserError("--save_figure has no effect with --head_ind: no probes are trained")
