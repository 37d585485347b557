"""Data sets as typed records: ``data.load("mcf")``.

Files are looked for in the data folder (``data_dir``, else the environment's ``KE_DATA_DIR``, else
~/.cache/knowledge-editing/data) and downloaded into it from where the MEMIT authors publish them. The built-in world needs
no file. A mistake, of the user's or in a file, raises :class:`UserError` with one clear line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import nearest_name, UserError
from data import bilingual, counterfact, facts as own_facts, languages, snippets, variants, zsre
from data.download import cache_folder, data_folder, fetch
from data.files import read_records
from data.known import KnownFact
from data.known import load as known_facts
from data.records import Prompt, Record, Target, fingerprint
from data.snippets import Snippet, Snippets

if TYPE_CHECKING:  # only named here, and slow to import
    from transformers import PreTrainedTokenizerBase

    from data.tfidf import TfIdf

DataError = UserError  # its name among the users of this package

FILES = {"mcf": "multi_counterfact.json", "cf": "counterfact.json", "zsre": "zsre_mend_eval.json"}
WORLDS = {"world": ("en", "counterfact"), "world-ca": ("ca", "counterfact"),
          "world-zsre": ("en", "zsre"), "world-ca-zsre": ("ca", "zsre"),
          "world-test": ("en", "counterfact"), "world-ca-test": ("ca", "counterfact"), "world-zsre-test": ("en", "zsre")}
"""The built-in world: name -> (language, schema). "world:100000" is a world of so many facts. Names that end in -test are the
facts about the test split's subjects, which no editor trained on the world has seen."""
FILE_TYPES = (".json", ".jsonl", ".csv")
_PARSERS = {"counterfact": counterfact.parse, "variants": variants.parse, "zsre": zsre.parse}


def names() -> list[str]:
    """The data sets that :func:`load` knows by name."""
    return [*FILES, *WORLDS]


def load(ds_name: str | Path, data_dir: str | Path | None = None, limit: int | None = None,
         tok: PreTrainedTokenizerBase | None = None, language: str | None = None) -> list[Record]:
    """The records of a data set, in its order.

    ds_name: one of :func:`names` (a world's with ":" and a number of facts is a larger or smaller world), or the path of a
        .json or .jsonl file in the schema of CounterFact or (MEND's) zsRE, or of facts of one's own (:mod:`data.facts`), for
        which .csv serves, too.
    limit: only the first so many; a data set that has fewer is returned whole.
    tok: fills in the ``neighborhood_prompts`` of zsRE records, which are one a token of the locality answer. Without it
        they are empty (:func:`data.zsre.with_locality` can fill them in later).
    language: the name of one of :mod:`data.languages`, which says how the file is read: of "world" the records in this
        language, of a file with objects of records by language (combined_data.json) those. A file that is not in the working
        directory is looked for in the data folder.

    Raises ``UserError``: unknown name, file missing and not to be downloaded, damaged, or not of its schema.
    """
    if limit is not None and limit < 1:
        raise UserError(f"the limit on the size of data set {str(ds_name)!r} should be at least 1, found {limit}")
    if language is not None:
        raw, source = raw_records(ds_name, language, data_dir)
        spec = languages.spec(language)
        try:
            records = spec.parse(raw, source, limit)
        except UserError as error:
            raise UserError(f"{error} (read as records in {language})") from error
        if spec.joined is None:
            return records
        return [record if record.joined is not None else replace(record, joined=spec.joined) for record in records]
    if _is_own(str(ds_name)):
        return own_facts.read_own(ds_name, limit)
    raw, schema, source = _raw(str(ds_name), data_dir)
    records = _PARSERS[schema](raw, source, limit)
    if not records:
        raise UserError(f"{source}: none of its {len(raw)} records can be used")
    return records if tok is None else zsre.with_locality(records, tok)


def raw_records(ds_name: str | Path, language: str, data_dir: str | Path | None = None) -> tuple[list[Any], str]:
    """(the records of a data set in a language as its file has them, what to call their source); see :func:`load`."""
    spec, name = languages.spec(language), str(ds_name)
    if in_every_language(name):
        return _world_records(name, spec.code, "bilingual", _world(name)[2]), name
    in_folder = data_folder(data_dir) / name
    use_folder = name.endswith(".json") and not Path(name).exists() and in_folder.exists()
    raw, _, source = _raw(str(in_folder) if use_folder else name, data_dir, spec.name)
    return raw, source


def in_every_language(ds_name: str) -> bool:
    """Whether one name stands for the records in every language: that of the built-in world."""
    return _world(ds_name) is not None and ds_name.partition(":")[0] in ("world", "world-test")


def load_aligned(ds_name: str | Path, languages: Sequence[str], data_dir: str | Path | None = None,
                 limit: int | None = None) -> dict[str, list[Record]]:
    """{language: records} of the same facts, in the same order.

    In the first language the (first ``limit``) records of the data set; in each other one the records of the same case ids,
    from the file that :func:`data.bilingual.counterpart` names. Raises UserError as :func:`load` and
    :func:`data.bilingual.align` do.
    """
    first = languages[0]
    aligned = {first: load(ds_name, data_dir, limit, language=first)}
    for other in languages[1:]:
        if other not in aligned:
            source = bilingual.counterpart(str(ds_name), first, other)
            aligned[other] = bilingual.align(aligned[first], load(source, data_dir, language=other), str(ds_name), source)
    return aligned


def load_snippets(ds_name: str | Path = "mcf", data_dir: str | Path | None = None, path: str | Path | None = None) -> Snippets:
    """The attribute snippets that belong to a data set: the built-in world's own, else ``path``, else the published file."""
    builtin = _world(str(ds_name))
    if builtin:
        from data import world
        language, _, facts = builtin
        return snippets.from_records(world.snippets(language, facts), str(ds_name))
    return snippets.open_file(path or fetch("attribute_snippets.json", data_dir), cache_folder(data_dir))


def load_tfidf(snips: Snippets, data_dir: str | Path | None = None) -> TfIdf:
    """The tf-idf vectoriser of the reference score: fitted on the built-in world's snippets where ``snips`` are those, else
    the published one, else (with a warning, where it can't be had) fitted on ``snips``."""
    from data import tfidf
    return tfidf.fitted(snips) if _world(snips.source) else tfidf.published_or_fitted(snips, data_dir)


def _raw(ds_name: str, data_dir: str | Path | None, language: str | None = None) -> tuple[list[Any], str, str]:
    """(raw records, their schema, what to call their source); of records by language those in ``language``."""
    builtin = _world(ds_name)
    if builtin:
        language, schema, facts = builtin
        return _world_records(ds_name, language, schema, facts), schema, ds_name
    if ds_name in FILES:
        path = fetch(FILES[ds_name], data_dir)
        return read_records(path), "zsre" if ds_name == "zsre" else "counterfact", path.name
    if not ds_name.endswith(FILE_TYPES) and "/" not in ds_name:
        raise UserError(f"unknown data set {ds_name!r}; {nearest_name(ds_name, names())}known are {', '.join(names())}, "
                        "and the path of a .json, .jsonl or .csv file")
    raw = own_facts.raw_records(Path(ds_name)) if ds_name.endswith(".jsonl") else read_records(ds_name)
    if language is not None:
        raw = [item.get(language, item) if isinstance(item, Mapping) else item for item in raw]
    return raw, _schema(raw[0], ds_name), ds_name


def _is_own(ds_name: str) -> bool:
    """Whether a path names facts of one's own, by its first record."""
    if not ds_name.endswith(FILE_TYPES):
        return False
    if ds_name.endswith(".csv"):
        return True
    first = own_facts.first_record(Path(ds_name)) if ds_name.endswith(".jsonl") else read_records(ds_name)[0]
    return isinstance(first, Mapping) and {"prompt", "subject"} <= first.keys()


def _world_records(ds_name: str, language: str, schema: str, facts: int | None) -> list[dict[str, Any]]:
    """The built-in world's records, or of a name that ends in -test those of the test split's subjects."""
    from data import world
    from data.episodes.splits import by_subject
    raw = world.load(language, schema, facts)
    if not ds_name.partition(":")[0].endswith("-test"):
        return raw
    english = world.load("en", "counterfact", facts)  # by whose names the splits go; the same facts in the same order
    return [raw[i] for i in by_subject(range(len(raw)), lambda i: english[i]["requested_rewrite"]["subject"], "test")]


def _world(ds_name: str) -> tuple[str, str, int | None] | None:
    """(language, schema, number of facts or None for the usual number) if the name is the built-in world's."""
    name, colon, facts = ds_name.partition(":")
    if name not in WORLDS:
        return None
    if colon and not (facts.isascii() and facts.isdecimal() and int(facts)):
        raise UserError(f"data set {ds_name!r}: the number of facts behind the colon should be 1 or more, found {facts!r}")
    return *WORLDS[name], int(facts) if colon else None


def _schema(first: Any, source: str) -> str:
    """The schema of a file, by the keys of its first record."""
    if isinstance(first, Mapping):
        if "requested_rewrite" in first:
            return "counterfact"
        if "eval_target_new" in first:
            return "variants"
        if {"src", "answers"} & first.keys():
            return "zsre"
    keys = ", ".join(first) or "(none)" if isinstance(first, Mapping) else None
    content = f"is {json.dumps(first)[:40]}, not an object" if keys is None else f"has the keys {keys}"
    raise UserError(f"{source}: neither CounterFact's schema (key 'requested_rewrite', or in two variants 'eval_target_new') "
                    f"nor zsRE's (keys 'src', 'answers'), nor facts of one's own (keys 'prompt', 'subject', 'target'); its "
                    f"first record {content}")
