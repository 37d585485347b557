"""CounterFact and multi-CounterFact (Meng et al. 2022, ROME; 2023, MEMIT): one schema, two selections of records."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data.fields import Fields, check_template
from data.records import Record, Target


def parse(raw: Sequence[Any], source: str, limit: int | None = None) -> list[Record]:
    """The first ``limit`` records (all by default) of the published CounterFact schema, in the file's order.

    ``source`` names the file in messages. Records may lack ``target_true`` and every list of prompts (what needs them is not
    measured then), and all of them ``case_id`` (their place in the file). Raises ``UserError`` at the first record that has
    another key missing or one wrong, a rewrite prompt without exactly one ``{}``, an empty subject or target, a negative
    ``case_id`` or that of an earlier record.
    """
    return read_all(raw, source, limit, _record)


def read_all(raw: Sequence[Any], source: str, limit: int | None, read: Callable[[Fields], Record]) -> list[Record]:
    """The records that ``read`` makes of the raw ones. Raises ``UserError`` for a negative ``case_id``, or one met twice."""
    records, number_of_case = [], {}
    numbered = not raw or not isinstance(raw[0], Mapping) or "case_id" in raw[0]
    for number, item in enumerate(raw[:limit]):
        fields = Fields(item, f"{source}, record {number}")
        record = read(fields if numbered else fields.with_default("case_id", number))
        if record.case_id < 0:
            raise fields.error(f"its case_id {record.case_id} is negative")
        if record.case_id in number_of_case:
            raise fields.error(f"its case_id {record.case_id} is that of record {number_of_case[record.case_id]}, too")
        number_of_case[record.case_id] = number
        records.append(record)
    return records


def _record(fields: Fields) -> Record:
    rewrite = fields.nested("requested_rewrite")
    prompt = rewrite.text("prompt")
    check_template(prompt, rewrite)
    return Record(
        case_id=fields.integer("case_id"),
        subject=rewrite.text("subject"),
        prompt=prompt,
        relation_id=rewrite.optional_text("relation_id"),
        target_new=read_target(rewrite.nested("target_new")),
        target_true=read_target(rewrite.nested("target_true")) if rewrite.has("target_true") else None,
        paraphrase_prompts=fields.texts("paraphrase_prompts", optional=True),
        neighborhood_prompts=fields.texts("neighborhood_prompts", optional=True),
        attribute_prompts=fields.texts("attribute_prompts", optional=True),
        generation_prompts=fields.texts("generation_prompts", optional=True),
        schema="counterfact",
        joined=read_joined(fields),
        extra=fields.rest(),
    )


def read_joined(fields: Fields) -> bool | None:
    """The record's own word on whether targets are joined to their prompts: beside ``requested_rewrite`` or in it."""
    joined = fields.optional_flag("joined")
    return fields.nested("requested_rewrite").optional_flag("joined") if joined is None else joined


def read_target(fields: Fields) -> Target:
    """The target in an object with ``str`` and, optionally, ``id``."""
    return Target(fields.text("str"), fields.optional_text("id"))
