"""The editor of a run: its hyper-parameters from their file, with what flags and language add to them."""

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import nearest_name, UserError
from data import languages
from data.download import data_folder
import editors
from editors.automatic import has_values
from editors.base import Editor
from editors.configuration import read_values
from experiments.run.config import RunConfig
from experiments.run.models import name_hint

HPARAMS = Path(__file__).resolve().parents[2] / "hparams"
AUTOMATIC = "auto"


def is_automatic(hparams_fname: str | Path | None) -> bool:
    """Whether layers follow from a trace (:mod:`experiments.run.auto_hparams`)."""
    return hparams_fname == AUTOMATIC or str(hparams_fname).startswith(f"{AUTOMATIC}:")


def load_editor(
    config: RunConfig, language: str | None = None, contexts: str | None = None
) -> tuple[dict[str, Any], Editor]:
    """(hyper-parameters as in their file, the editor).

    language: whose KL prompt, context starts and corpus it edits with, where the file does not set them (profile "paper": with
    the starts of the language ``contexts``, which the published program keeps for both).

    ``hparams_fname`` is looked for in hparams/<alg_name>/, then as a path; the default is <model_name>.json. ``mom2_dataset``
    "world" stands for the built-in world's corpus, ``system`` "world" for the SERAC trained on it; a ``checkpoint`` is looked
    for among trained editors, then beside the file; ``context_seed``, where the file does not set it, is ``seed``.
    """
    if is_automatic(config.hparams_fname):
        raise UserError(f"--hparams_fname {config.hparams_fname}: only experiments.evaluate traces a model; "
                        "give the params.json of such a run")
    name, shipped = Path(config.hparams_fname or ""), _shipped(config)
    path = name if config.hparams_fname and name.is_file() and not shipped.is_file() else shipped
    if not config.hparams_fname and not path.is_file():
        shipped_files = ", ".join(sorted(file.name for file in shipped.parent.glob("*.json")))
        by_trace = f"let --hparams_fname {AUTOMATIC} trace the model, or " * has_values(config.alg_name)
        raise UserError(f"{config.alg_name} has no hyper-parameters of its own for the model {config.model_name!r}"
                        f"{name_hint(config.model_name)}; {by_trace}name a file (there is {shipped_files})")
    editor = editors.load(config.alg_name, path)
    with warnings.catch_warnings():  # given above
        warnings.simplefilter("ignore")
        hparams = read_values(path, {field.name for field in dataclasses.fields(editor.hparams)})
    if config.set:
        hparams = changed(config, hparams)
        editor = None
    return hparams, configured(config, hparams, editor, path.parent, language, contexts)


def has_file(config: RunConfig) -> bool:
    """Whether hyper-parameters are shipped for the configuration's editor and model. Raises UserError for no such editor."""
    return _shipped(config).is_file()


def _shipped(config: RunConfig) -> Path:
    folder = HPARAMS / (editors.editor_class(config.alg_name).hparams_folder or config.alg_name)
    path = folder / (config.hparams_fname or config.model_name.replace("/", "_") + ".json")
    if not config.hparams_fname or path.is_file() or Path(config.hparams_fname).is_file():
        return path
    same = [file for file in sorted(folder.glob("*.json")) if _plain(file.name) == _plain(path.name)]
    return same[0] if len(same) == 1 else path


def _plain(name: str) -> str:
    """A file's name without what repositories spell in different ways: llama2-7b.json is Llama-2-7B.json."""
    plain = re.sub("[^a-z0-9]", "", name.lower().removesuffix(".json"))
    return {"aguila": "aguila7b"}.get(plain, plain)


def changed(config: RunConfig, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters with what --set changes; its values are JSON, or else text.

    Raises UserError for what is no KEY=VALUE, a key that the editor does not have, and a value of a wrong type or size.
    """
    changes: dict[str, Any] = {}
    for word in config.set or ():
        key, sign, value = word.partition("=")
        if not sign or not value:
            raise UserError(f"--set {word}: give KEY=VALUE")
        if key in changes:
            raise UserError(f"--set {word}: {key} is there twice")
        try:
            changes[key] = json.loads(value)
        except (ValueError, RecursionError):
            changes[key] = value
    return with_changes(config.alg_name, hparams, changes, f"--set {', '.join(config.set or ())}")


def with_changes(alg_name: str, hparams: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The hyper-parameters of a file with ``changes``, checked as the file is. where: how an error begins.

    Raises UserError for a key that the editor does not have or does not read, and a value of a wrong type or size.
    """
    hparams_class = editors.editor_class(alg_name).hparams_class
    names = {field.name for field in dataclasses.fields(hparams_class)}
    for key in changes:
        if key in hparams_class.ignored:
            raise UserError(f"{where}: {key} has no effect ({hparams_class.ignored[key]})")
        if key not in names | hparams_class.fixed.keys():
            raise UserError(f"{where}: {alg_name} has no hyper-parameter {key!r}; "
                            f"{nearest_name(key, names) or 'it has ' + ', '.join(sorted(names))}")
    try:
        with warnings.catch_warnings():  # of the file's other keys, given when it was read
            warnings.simplefilter("ignore")
            editors.load(alg_name, {**hparams, **changes})
    except UserError as error:
        raise UserError(f"{where}: {str(error).removeprefix('hparams: ')}") from None
    return {**hparams, **changes}


def configured(
    config: RunConfig, hparams: Mapping[str, Any], editor: Editor | None = None, folder: Path | None = None,
    language: str | None = None, contexts: str | None = None,
) -> Editor:
    """The editor of these hyper-parameters, with what flags and language add to them (see :func:`load_editor`).

    editor: of the hyper-parameters alone, if it is there already. folder: of their file.
    """
    editor = editor or editors.load(config.alg_name, hparams)
    names = {field.name for field in dataclasses.fields(editor.hparams)}
    changes: dict[str, Any] = {}
    if config.profile or config.top_num_heads:
        by_flags = {"profile": config.profile, "top_num_heads": max(config.top_num_heads or [0])}
        by_flags = {key: value for key, value in by_flags.items() if value and key in names}
        if twice := [word for word in config.set or () if word.partition("=")[0] in by_flags]:
            raise UserError(f"--set {twice[0]} does not go with --{twice[0].partition('=')[0]}: give one of them")
        with warnings.catch_warnings():  # given above
            warnings.simplefilter("ignore")
            editor = editors.load(config.alg_name, hparams | by_flags)
    if language:
        by_language = _of_language(config, editor.hparams, language, contexts)
        changes |= {key: value for key, value in by_language.items() if key in names - hparams.keys()}
        if "mom2_dataset" in hparams:
            changes["mom2_dataset"] = languages.spec(language).corpus(hparams["mom2_dataset"])
    if "context_seed" in names - hparams.keys():
        changes["context_seed"] = config.seed
    if hparams.get("mom2_dataset") == "world":
        changes["mom2_dataset"] = world_corpus(config, language and languages.spec(language).code)
    if hparams.get("system") == "world":
        changes["system"] = str(data_folder(config.data_dir) / "world-models" / "serac")
    if "checkpoint" in names:
        beside = [folder] * bool(folder) + [HPARAMS / config.alg_name]  # a sweep's changed files stand elsewhere
        checkpoint = editor.hparams.file(editor.name, data_folder(config.data_dir) / "learned", beside)
        changes["checkpoint"] = str(checkpoint.absolute())
        print(f"trained editor: {checkpoint}")
    return editors.load(config.alg_name, dataclasses.replace(editor.hparams, **changes))


def _of_language(config: RunConfig, hparams: Any, language: str, contexts: str | None) -> dict[str, Any]:
    """KL prompts and context starts, of edits and of heads, by the languages of the run."""
    spec, heads = languages.spec(language), languages.spec(language if config.bilingual else config.language_eval)
    shared = getattr(hparams, "profile", None) == "paper" and contexts
    return {
        "kl_prompt": spec.kl_prompt, "context_starts": list((languages.spec(contexts) if shared else spec).context_starts),
        "head_kl_prompt": heads.kl_prompt, "head_context_starts": list(heads.context_starts),
    }


def world_corpus(config: RunConfig, language: str | None = None) -> str:
    """The path of the built-in world's corpus of both languages, or of one."""
    from data import world

    return str(world.corpus_path(config.data_dir, language=language))
