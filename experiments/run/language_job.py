"""What an evaluation in several languages, or with heads corrected, needs: checked before anything is written."""

import dataclasses
import hashlib
from pathlib import Path

from transformers import PreTrainedModel

from common.errors import UserError
from data import bilingual, in_every_language, languages, world
import data
from data.download import data_folder
from data.records import Record
import editors
from editors.base import Editor
from editors.core.decoder import Decoder
from editors.core.prompts import parse_requests
from editors.heads import probes
from editors.heads.outputs import check_heads, head_shape
from editors.heads.relevance import sentence_rows
from experiments.run import head_files
from experiments.run.config import ATTENTION, RunConfig
from experiments.run.hparams_file import is_automatic, load_editor
from experiments.run.job import check_flags, check_lengths, Languages, Loaded, RunJob
from experiments.run.models import check_readable, identity, load_model


def prepare(config: RunConfig, loaded: Loaded | None = None) -> RunJob:
    """Everything a run needs; ``loaded`` is its model where that is in memory already.

    Raises UserError for whatever does not fit.
    """
    check_flags(config)
    _check_combinations(config)
    hparams, _ = load_editor(config)
    model, tok = loaded or load_model(config.model_name, config.dtype, config.device)
    model.eval()  # without dropout
    check_readable(model, f"an edit by {config.alg_name}" if editors.editor_class(config.alg_name).needs_cache else None)
    first, heads = languages.spec(config.language).name, languages.spec(config.language_eval).name
    if config.languages_measured:
        measured = [languages.spec(name).name for name in config.languages_measured.split(",")]
    else:
        measured = languages_of_data(config, [first, heads])
    records = _records(config, list(dict.fromkeys([first, heads, *measured])))
    count = len(records[first])
    for of_language in records.values():
        parse_requests([record.request() for record in of_language], tok)
        check_lengths(model, tok, of_language)
    edited = [first, heads] if config.bilingual else [first]
    by_language = {name: load_editor(config, name, first if config.bilingual else name)[1] for name in edited}
    editor = by_language[first]
    pairing = config.pairing or ("legacy" if getattr(editor.hparams, "profile", "") == "paper" else "matched")
    config = dataclasses.replace(config, pairing=pairing)
    shape = _head_shape(config, model, count) if config.add_attention else None
    if config.add_attention and any(config.top_num_heads) and not config.head_ind:
        _check_chunks(config, editor, count)
        for language in [first, heads] if config.bilingual else [heads]:
            _check_sentences(config, editor, Decoder.of(model, tok), records[language])
    told_apart = Languages(first, heads, measured, records, _files(config, model, count))
    return RunJob(config, model, tok, editor, hparams, records[first], languages=told_apart, editors=by_language,
                  head_shape=shape)


def _check_combinations(config: RunConfig) -> None:
    """Raises UserError for flags that do not go together where languages are told apart."""
    for name in ("sequential", "do_downstream_eval", "save_model", "sample_num", "index_file", "max_edits",
                 "context_templates"):
        if getattr(config, name) not in (None, False):
            raise UserError(f"--{name} does not go with --language and --add_attention")
    if config.generation_test_interval not in (1, -1):
        raise UserError("--generation_test_interval has no effect with --language: no texts are generated")
    if is_automatic(config.hparams_fname):
        raise UserError(f"--hparams_fname {config.hparams_fname} does not go with --language: name a file, such as the "
                        "params.json of a run without it")
    if config.alpha and config.alg_name != "ITI":
        raise UserError(f"--alpha has no effect with --alg_name {config.alg_name}, only with ITI")
    if config.bilingual:
        _check_bilingual(config)
    if config.profile and config.alg_name not in ATTENTION:
        raise UserError(f"--profile has no effect with --alg_name {config.alg_name}; MEMIT's edit alone in a profile is "
                        "--alg_name MEMAT --top_num_heads 0")
    if config.add_attention and not any(config.top_num_heads):
        for name in ("head_ind", "load_attention", "save_attention_heads", "save_figure", "eval_on_others"):
            if getattr(config, name):
                raise UserError(f"--{name} has no effect with --top_num_heads 0: no heads are corrected")
    if config.save_figure and config.head_ind:
        raise UserError("--save_figure has no effect with --head_ind: no probes are trained")


def _check_bilingual(config: RunConfig) -> None:
    if config.language == config.language_eval:
        raise UserError(f"--bilingual {config.bilingual}: name two languages with --language and --language_eval")
    if config.load_delta:
        raise UserError("--load_delta does not go with --bilingual")
    if config.alg_name not in ("MEMIT", *ATTENTION):
        raise UserError(f"--bilingual is MEMIT's and MEMAT's, not --alg_name {config.alg_name}'s")
    if config.bilingual == "joint" and config.use_cache:
        raise UserError("--use_cache has no effect with --bilingual joint")


def languages_of_data(config: RunConfig, of_run: list[str]) -> list[str]:
    """The languages of a run, the first of which its data set is in, and any other that the data set is there in."""
    names, ds_name = list(dict.fromkeys(of_run)), config.ds_name
    builtin = in_every_language(ds_name)
    for name in languages.names():
        if name not in names:
            path = Path(bilingual.counterpart(ds_name, of_run[0], name))
            exists = str(path) != ds_name and (path.is_file() or (data_folder(config.data_dir) / path).is_file())
            if languages.spec(name).code in world.LANGUAGES if builtin else exists:
                names.append(name)
    return sorted(names)


def _records(config: RunConfig, names: list[str]) -> dict[str, list[Record]]:
    """{language: records}, the same facts in the same order. Raises UserError where there are too few."""
    records = data.load_aligned(config.ds_name, names, config.data_dir, config.dataset_size_limit)
    count, within = len(records[names[0]]), " within --dataset_size_limit" if config.dataset_size_limit else ""
    if config.num_edits > count:
        raise UserError(f"--num_edits {config.num_edits}: {config.ds_name} has only {count} records{within}")
    if config.eval_on_others and count <= config.num_edits:
        raise UserError(f"--eval_on_others: all {count} records are in the first batch of {config.num_edits}, so none are left")
    return records


def _chunks(config: RunConfig, records: int) -> range:
    """The numbers of the batches of so many records."""
    return range(-(-records // config.num_edits))


def _head_shape(config: RunConfig, model: PreTrainedModel, records: int) -> tuple[int, int, int]:
    """(layers, heads a layer, head size) of the model; after a check of the numbers of heads, and of the files of heads and
    vectors, against it."""
    decoder = Decoder.of(model)
    layers, (count, size), most = decoder.sites.layers, head_shape(decoder), max(config.top_num_heads)
    shape = layers, count, size
    if most > layers * count:
        raise UserError(f"--top_num_heads {most}: the model has {layers * count} heads ({layers} layers of {count})")
    if not config.head_ind:
        return shape
    weights = identity(model)
    for chunk in _chunks(config, records):
        path = head_files.of_chunk(config.head_ind, chunk)
        heads = check_heads(head_files.read_heads(path), decoder, f"--head_ind {path}")
        head_files.check_model("--head_ind", path, shape, weights)
        if len(heads) < most:
            raise UserError(f"--head_ind {path}: names {len(heads)} heads, --top_num_heads asks for {most}")
        if config.load_attention:
            path = head_files.of_chunk(config.load_attention, chunk)
            corrections = head_files.read_corrections(path, heads[:most])
            head_files.check_model("--load_attention", path, shape, weights)
            width = corrections.vectors.shape[1]
            if width != size:
                raise UserError(f"--load_attention {config.load_attention}: vectors of head size {width}, the model's heads "
                                f"have {size}")
    return shape


def _check_chunks(config: RunConfig, editor: Editor, records: int) -> None:
    """Raises UserError for chunks too short to choose heads by, whatever the edits come to."""
    hparams, size = editor.hparams, config.num_edits
    ways = 2 if config.bilingual and hparams.profile == "paper" else 1
    last = records % size or size
    facts = ways * editor.for_heads(size)
    if not probes.enough(facts, hparams.val_share):
        raise UserError(f"--num_edits {size}: heads can't be chosen by {facts} facts, which do not split into training and "
                        f"validation (val_share {hparams.val_share:g}); edit more together, or give heads with --head_ind")
    if not probes.enough(ways * editor.for_heads(last), hparams.val_share):
        raise UserError(f"the last chunk has {last} facts, too few to choose heads by (val_share {hparams.val_share:g}); leave "
                        f"it out with --dataset_size_limit {records - last}, or change --num_edits {size}")


def _check_sentences(config: RunConfig, editor: Editor, decoder: Decoder, records: list[Record]) -> None:
    """Raises UserError for a fact that heads would be chosen by and whose sentences don't fit the model."""
    requests = parse_requests([record.request() for record in records], decoder.tok)
    for start in range(0, len(requests), config.num_edits):
        chunk = requests[start:start + config.num_edits]
        sentence_rows(decoder, chunk[:editor.for_heads(len(chunk))], editor.hparams.probe_token)


def _files(config: RunConfig, model: PreTrainedModel, records: int) -> dict[str, str]:
    """{flag: hash of the contents} of the files of all chunks that heads, vectors and changes are loaded from.

    Raises UserError for a missing or damaged --load_delta, and for one that does not fit the model.
    """
    hashes = {}
    for name in ("head_ind", "load_attention", "load_delta"):
        pattern = getattr(config, name)
        if not pattern or pattern == "original_model":
            continue
        content = hashlib.sha256()
        for path in dict.fromkeys(head_files.of_chunk(pattern, chunk) for chunk in _chunks(config, records)):
            if name == "load_delta":
                try:
                    head_files.read_delta(path).check(model)
                except UserError as error:
                    raise UserError(f"--load_delta {path}: {str(error).removeprefix(f'--load_delta {path}: ')}") from error
            content.update(path.read_bytes())
        hashes[name] = content.hexdigest()[:16]
    return hashes
