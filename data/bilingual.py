"""The same facts in two languages: which file is the other language's, and which of its records is the same fact."""

import re
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from data import languages
from data.records import Record

SHOWN = 5
"""Case ids that a message lists, at most."""


def counterpart(ds_name: str, language: str, other: str) -> str:
    """The name of the data set that holds in the language ``other`` what ``ds_name`` holds in ``language``.

    catalan_CF.json for english_CF.json, data_cat_dif_subj.json for data_eng_dif_subj.json. A name without a language stands
    for both ("world", combined_data.json).
    """
    spec, other_spec = languages.spec(language), languages.spec(other)
    path = Path(ds_name)
    for old, new in ((spec.name, other_spec.name), (spec.tag, other_spec.tag)):
        name, replaced = re.subn(rf"(?<![a-z]){old}(?![a-z])", new, path.name)
        if replaced:
            return str(path.with_name(name))
    return ds_name


def align(records: Sequence[Record], others: Sequence[Record], source: str, other_source: str) -> list[Record]:
    """The counterparts of ``records`` among ``others``: for each, in its order, the record of the same ``case_id``.

    source, other_source: what messages call the two. Raises UserError where a case id is missing or stands for another fact:
    relations or ids of the objects differ, where both records have them.
    """
    by_id = {record.case_id: record for record in others}
    missing = [record.case_id for record in records if record.case_id not in by_id]
    if missing:
        shown = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        raise UserError(f"{other_source} and {source} are not aligned: it lacks {len(missing)} of the {len(records)} case ids "
                        f"asked for: {shown}")
    for record in records:
        other = by_id[record.case_id]
        for what, a, b in (("relation", record.relation_id, other.relation_id),
                           ("new object", record.target_new.id, other.target_new.id),
                           ("true object", record.target_true and record.target_true.id,
                            other.target_true and other.target_true.id)):
            if a and b and a != b:
                raise UserError(f"{other_source} and {source} are not aligned: case {record.case_id} has the {what} {b} there "
                                f"and {a} here")
    return [by_id[record.case_id] for record in records]
