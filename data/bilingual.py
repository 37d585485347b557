"""The same facts in two languages: which file is the other language's, and which of its records is the same fact."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import data
from data import languages
from data.errors import DataError
from data.records import Record

SHOWN = 5
"""Case ids that a message lists, at most."""


def counterpart(ds_name: str, language: str, other: str) -> str:
    """The data set ``ds_name`` of ``language`` in the language ``other``: catalan_CF.json for english_CF.json,
    data_cat_dif_subj.json for data_eng_dif_subj.json. One whose name names no language is of both ("world",
    combined_data.json)."""
    here, there = languages.load(language), languages.load(other)
    path = Path(ds_name)
    for old, new in ((here.name, there.name), (here.tag, there.tag)):
        name, found = re.subn(rf"(?<![a-z]){old}(?![a-z])", new, path.name)
        if found:
            return str(path.with_name(name))
    return ds_name


def load_aligned(
    ds_name: str, language: str, others: Sequence[str], data_dir: str | Path | None = None, limit: int | None = None
) -> dict[str, list[Record]]:
    """{language: records}: of ``language`` the data set's (the first ``limit`` of them), and the same facts in each of ``others``.

    Raises DataError for what :func:`data.load` and :func:`align` find wrong.
    """
    records = data.load(ds_name, data_dir, limit, language=language)
    found = {language: records}
    for other in others:
        if other not in found:
            there = counterpart(ds_name, language, other)
            found[other] = align(records, data.load(there, data_dir, language=other), ds_name, there)
    return found


def align(records: Sequence[Record], others: Sequence[Record], source: str, other_source: str) -> list[Record]:
    """Of ``others`` the record of the same ``case_id``, for each of ``records``, in their order.

    Raises DataError, which calls the two by their sources, where case ids are missing, or name another fact (relation or ids of
    the objects, where both records have them).
    """
    by_id = {record.case_id: record for record in others}
    missing = [record.case_id for record in records if record.case_id not in by_id]
    if missing:
        shown = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        raise DataError(f"{other_source} and {source} are not aligned: it lacks {len(missing)} of the {len(records)} case ids "
                        f"asked for: {shown}")
    for record in records:
        other = by_id[record.case_id]
        for what, a, b in (("relation", record.relation_id, other.relation_id),
                           ("new object", record.target_new.id, other.target_new.id),
                           ("true object", record.target_true and record.target_true.id,
                            other.target_true and other.target_true.id)):
            if a and b and a != b:
                raise DataError(f"{other_source} and {source} are not aligned: case {record.case_id} has the {what} {b} there "
                                f"and {a} here")
    return [by_id[record.case_id] for record in records]
